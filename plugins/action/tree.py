# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.tree: render everything, then one call of the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.wsgi.fleet.plugins.module_utils.tree import request as tree

SOURCES = ("template", "content", "src")


def source_problems(files: list[dict[str, Any]]) -> list[str]:
    """What is wrong with where the contents come from."""
    found = []
    for index, file in enumerate(files):
        given = [source for source in SOURCES if file[source] is not None]
        where = f"files[{index}] ({file['path']})"
        if len(given) != 1:
            found.append(f"{where}: needs exactly one of template, content, src; has {', '.join(given) or 'none'}")
        elif given == ["content"] and not isinstance(file["content"], str):
            kind = type(file["content"]).__name__
            found.append(f"{where}: content must be text, not {kind}; use a filter such as to_nice_json")
    return found


def trailing_newlines(text: str) -> int:
    """How many newlines a text ends with."""
    return len(text) - len(text.rstrip("\n"))


def includable(source: str, content: str, paths: list[Path]) -> bool:
    """Whether including a template by its name gives what its text gives: it is what is found, and has no settings."""
    found = next((path / Path(source).name for path in paths if (path / Path(source).name).is_file()), None)
    if found is None or not found.samefile(source) or content.startswith("#jinja2:"):
        return False
    return found.read_text() == content and '"' not in found.name  # else it is encrypted


class ActionModule(ActionBase):  # type: ignore[misc]
    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Check, render, pack, and hand over."""
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        _, request = self.validate_argument_spec(tree.ARGUMENTS)
        if request["problems"]:
            raise AnsibleActionFail("\n".join(request["problems"]))
        problems = tree.request_problems(request) + source_problems(request["files"])
        if problems:
            raise AnsibleActionFail("; ".join(problems))

        # one for each source: a template's environment keeps what it has compiled
        self._templars: dict[str, tuple[Any, bool]] = {}
        contents = [self._content(request["name"], file, task_vars) for file in request["files"]]
        digest = tree.tree_digest(request["files"], contents)
        arguments = {
            **request,
            "files": [{k: v for k, v in file.items() if k not in (*SOURCES, "vars")} for file in request["files"]],
            "_contents": tree.pack(
                [
                    content if file["src"] is not None else content.replace(tree.DIGEST_TOKEN.encode(), digest.encode())
                    for file, content in zip(request["files"], contents)
                ]
            ),
        }
        result: dict[str, Any] = self._execute_module("wsgi.fleet.tree", module_args=arguments, task_vars=task_vars)
        return result if result.get("failed") else {**result, "digest": digest}

    def _content(self, name: str, file: dict[str, Any], task_vars: dict[str, Any]) -> bytes:
        """What shall be in one file; an error names the file."""
        if file["content"] is not None:
            return str(file["content"]).encode()
        source = file["template"] or file["src"]
        try:
            return self._render(name, file, task_vars).encode() if file["template"] else self._read(file["src"])
        except Exception as error:
            message = f"file {file['path']!r} from {source!r}"
            if file["secret"] and not isinstance(error, AnsibleUndefinedVariable):
                # what a filter complains about may well be the value
                raise AnsibleActionFail(f"{message}: {type(error).__name__}; hidden, it is secret") from None
            raise AnsibleActionFail(message) from error

    def _read(self, src: str) -> bytes:
        real = self._loader.get_real_file(self._find_needle("files", src))  # decrypts what ansible-vault encrypted
        try:
            return Path(real).read_bytes()
        finally:
            self._loader.cleanup_tmp_file(real)

    def _render(self, name: str, file: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """As ansible.builtin.template does, which offers no way to have the text."""
        source = self._find_needle("templates", file["template"])
        role = f"{self._task._role.get_name()}/" if self._task._role else ""
        variables = {
            "ansible_managed": f"Managed by wsgi.fleet ({role}{name}). Changes here are lost.",
            **task_vars,
            **file["vars"],
            "tree_digest": tree.DIGEST_TOKEN,  # the text must be complete before it can be digested
        }
        content = self._loader.get_text_file_contents(source)
        if source not in self._templars:
            search = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), Path(source).parent]
            paths = [path for directory in search for path in (Path(directory, "templates"), Path(directory))]
            templar = self._templar.copy_with_new_env(searchpath=[str(path) for path in paths])
            self._templars[source] = templar, includable(source, content, paths)
        templar, can_include = self._templars[source]
        templar.available_variables = variables
        # What is included is compiled once for all files; a text, each time, which is most of the work of hundreds.
        text = f'{{% include "{Path(source).name}" %}}' if can_include else content
        rendered = templar.template(trust_as_template(text), escape_backslashes=False, overrides={"trim_blocks": True})
        made = "" if rendered is None else str(rendered)
        # Jinja leaves out the newline at the end, Ansible puts it back where it was its own text.
        missing = trailing_newlines(content) - trailing_newlines(made)
        return made + "\n" * max(0, missing) if can_include else made
