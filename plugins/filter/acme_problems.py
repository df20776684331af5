# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says what no ACME server could be asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
name: acme_problems
short_description: What is wrong with records of certificates, and with the settings of their server
description:
  - Checks what the specification of the role cannot say.
  - Lets no text pass that means something else to a shell or to certbot, for texts go into their files as they are.
  - Says all that is wrong at once, and no secret.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: settings
options:
  _input:
    description: Records as C(acme_certificates) of the role P(wsgi.fleet.acme#role) has them.
    type: list
    elements: dict
    required: true
  settings:
    description: The role's other variables without their prefix, and C(system), the host's family of systems.
    type: dict
    required: true
"""

EXAMPLES = r"""
problems: "{{ certificates | wsgi.fleet.acme_problems({'server': url, 'renew_days': 30, 'system': 'Debian'}) }}"
"""

RETURN = r"""
_value:
  description:
    - One line for each problem, with the record, the key, what is wrong and what would be right.
    - Empty when all is well.
  type: list
  elements: str
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SYSTEMS = ("Debian",)
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
DOMAIN = re.compile(rf"(?=.{{1,253}}$)({LABEL}\.)+{LABEL}")
URL = re.compile(r"https://[!#-&(-~]+")  # no quotes, no spaces
EMAIL = re.compile(r"[^\s@,%]+@[^\s@,%]+")
WORD = re.compile(r"[\w.+/=:~-]+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def record_problems(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with the certificates."""
    names: set[str] = set()
    for index, record in enumerate(records):
        where = f"acme_certificates[{index}] ({record['name']}): "
        if not NAME.fullmatch(record["name"]):
            yield where + 'name: give lower-case letters, digits, "-" and "_", a letter first, 63 at most'
        if record["name"] in names:
            yield where + "name: given twice; give each certificate its own"
        names.add(record["name"])
        if not record["domains"]:
            yield where + "domains: none given; give at least one"
        for domain in record["domains"]:
            if not DOMAIN.fullmatch(domain):
                yield (
                    f"{where}domains: {domain} is no name that can be proven over HTTP; "
                    "give one like shop.example.com, in lower case, no wildcard"
                )


def setting_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with everything else."""
    if settings["system"] not in SYSTEMS:
        yield f"this role knows {', '.join(SYSTEMS)}, not {settings['system']}"
    if not URL.fullmatch(settings["server"]):
        yield f"acme_server: {settings['server']} is no https:// URL of a directory"
    if settings.get("email") and not EMAIL.fullmatch(settings["email"]):
        yield f"acme_email: {settings['email']} is no address"
    if bool(settings.get("eab_kid")) != bool(settings.get("eab_hmac_key")):
        yield "acme_eab_kid and acme_eab_hmac_key belong together; give both, or none of them"
    for key in ("eab_kid", "eab_hmac_key"):
        if settings.get(key) and not WORD.fullmatch(settings[key]):
            yield f"acme_{key}: holds what no such text holds, such as a space; give it as the server's operator does"
    if not 1 <= settings["renew_days"] <= 365:
        yield f"acme_renew_days: {settings['renew_days']} is out of range; give 1 to 365"
    if not settings.get("reload", ["true"]):
        yield "acme_reload: is empty; give a command, [true] for none"
    for name in settings.get("environment", {}):
        if not VARIABLE.fullmatch(str(name)):
            yield f"acme_environment: {name} is no name of a variable"


def acme_problems(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """See DOCUMENTATION."""
    return [*setting_problems(settings), *record_problems(records)]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"acme_problems": acme_problems}
