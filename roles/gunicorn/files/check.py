"""Does `gunicorn --check-config`, and more: that alone does not notice a worker or logger which cannot be loaded.

Runs in the application's environment. Its arguments are gunicorn's.
"""

from __future__ import annotations

import sys

from gunicorn.app.wsgiapp import WSGIApplication

sys.argv[:1] = ["gunicorn", "--check-config"]
application = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]")
try:
    _ = application.cfg.worker_class, application.cfg.logger_class
except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an import can raise
    sys.exit(f"Error: {error}")
application.run()
