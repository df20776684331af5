"""Makes the collection importable under its installed name, from a clone and without ansible-test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collections"))
