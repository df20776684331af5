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
        search = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), Path(source).parent]
        role = f"{self._task._role.get_name()}/" if self._task._role else ""
        variables = {
            "ansible_managed": f"Managed by wsgi.fleet ({role}{name}). Changes here are lost.",
            **task_vars,
            **file["vars"],
            "tree_digest": tree.DIGEST_TOKEN,  # the text must be complete before it can be digested
        }
        templar = self._templar.copy_with_new_env(
            searchpath=[str(path) for directory in search for path in (Path(directory, "templates"), directory)],
            available_variables=variables,
        )
        text = templar.template(
            trust_as_template(self._loader.get_text_file_contents(source)),
            escape_backslashes=False,
            overrides={"trim_blocks": True},
        )
        return "" if text is None else str(text)
