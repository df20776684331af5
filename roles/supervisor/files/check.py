"""Reads a configuration as supervisord does, starts nothing, and says which option of which section is wrong.

Usage: check.py FILE strict|foresee; foresee is for check mode: users and directories that the run would make may miss.
"""

from __future__ import annotations

import sys

from supervisor import datatypes, options

asked = ["", ""]


class Parser(options.UnhosedConfigParser):
    def saneget(self, section: str, option: str, *arguments: object, **keywords: object) -> object:
        asked[:] = section, option
        return super().saneget(section, option, *arguments, **keywords)


options.UnhosedConfigParser = Parser
if sys.argv[2] == "foresee":
    for module in (datatypes, options):
        for name in ("name_to_uid", "name_to_gid", "gid_for_uid"):
            setattr(module, name, lambda _: 0)
        for name in ("existing_dirpath", "existing_directory"):
            setattr(module, name, lambda path: path)

server = options.ServerOptions()
server.configfile = sys.argv[1]
try:
    server.process_config(do_usage=False)
except Exception as error:  # noqa: BLE001 - it raises whatever its converters do, and a traceback helps nobody
    sys.exit(f"[{asked[0]}] {asked[1]}: {error}")
