# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a failure is told: what, where, the fix; and never a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote


class ReleaseError(Exception):
    """A step of one application's release failed: what happened, where, and how to mend it where that is known."""

    def __init__(self, step: str, problem: str, fix: str = "") -> None:
        super().__init__(f"{step}: {problem}")
        self.step = step
        self.problem = problem
        self.fix = fix


_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Blot out secrets, and whatever stands before the host in an address."""
    for secret in sorted({value for value in secrets if len(value) > 3}, key=len, reverse=True):
        text = text.replace(secret, "********")
    return _USERINFO.sub("********", text)


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """The values among these variables that must not be shown."""
    found: list[str] = []
    for name, value in environment.items():
        if re.search(r"PASS|TOKEN|SECRET|KEY|AUTH|CREDENTIAL", name, re.IGNORECASE):
            found.append(value)
        for userinfo in _USERINFO.findall(value):
            password = userinfo.partition(":")[2] or userinfo  # alone, it is a token
            found += [password, unquote(password)]
    return found


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a program's output that say anything."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


# Most telling first: a failed download can also end in "No solution found".
_FIXES = (
    (r"invalid peer certificate|UnknownIssuer|certificate verify failed|SSL certificate problem",
     "the host does not trust that server: install the authority's certificate in the host's own store"),
    (r"Host key verification failed|No \w+ host key is known",
     "give the server's public key in ssh_known_hosts (as `ssh-keyscan` prints it, compared by you)"),
    (r"Permission denied \(publickey|error in libcrypto|invalid format",
     "give a private key that may read the repository, in ssh_key"),
    (r"Authentication failed|could not read Username|terminal prompts disabled|HTTP Basic: Access denied",
     "give source.username and source.password (or a token) that may read the repository"),
    (r"Hash mismatch|hash mismatch|THESE PACKAGES DO NOT MATCH",
     "what the index serves is not what the requirements name: find out why before you touch the hashes"),
    (r"In `--require-hashes` mode",
     "one hash makes hashes necessary for all: give one for every requirement (uv pip compile --generate-hashes)"),
    (r"incompatible with the project's Python requirement|Requires-Python|does not satisfy Python",
     "give the application a `python` that the project supports"),
    (r"No solution found|unsatisfiable|conflict",
     "the application's requirements and `packages` (the server and its workers) contradict each other: align them"),
    (r"was not found in the package registry|not found in the provided package locations",
     "correct the package's name, or name the index that has it in app_uv_environment"),
    (r"'apxs' command appears not to be installed",
     "mod_wsgi is compiled with apache2-dev: run site.yml, which installs that, or give role python python_packages"),
    (r"Python\.h: No such file|unable to execute|command '[^']*(?:cc|gcc|g\+\+)' failed|Unknown compiler|error: linker",
     "this package is compiled: add the compiler and the headers that it wants to python_build_packages"),
    (r"No space left on device", "make room on the host's file system"),
    (r"Could not resolve host|Temporary failure in name resolution|dns error|Connection timed out|Connection refused",
     "the host cannot reach that server: check its network, name service and the proxy in app_uv_environment"),
)  # fmt: skip


def suggest_fix(output: str) -> str:
    """What to do about a program's message, where that is known."""
    return next((fix for pattern, fix in _FIXES if re.search(pattern, output)), "")


def failure_message(failures: Sequence[Mapping[str, str]], total: int) -> str:
    """One text for all applications that failed."""
    left = total - len({failure["app"] for failure in failures})
    lines = [f"{total - left} of {total} applications failed; the others are done."] if left > 0 else []
    for failure in failures:
        problem = failure["problem"].replace("\n", "\n    ")
        lines.append(f"{failure['app']}: {failure['step']}: {problem}")
        if failure.get("fix"):
            lines.append(f"    Fix: {failure['fix']}")
    return "\n".join(lines)
