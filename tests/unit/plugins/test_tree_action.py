"""The controller's half of wsgi.fleet.tree: a template that many files share gives what it gives one alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.wsgi.fleet.plugins.action import tree


class Action(tree.ActionModule):
    """The action without a play: its templates are in one directory."""

    def __init__(self, directory: Path) -> None:
        self._loader = DataLoader()
        self._templar = Templar(loader=self._loader, variables={})
        self._task = SimpleNamespace(_role=None)
        self._templars = {}
        self.directory = directory

    def _find_needle(self, dirname: str, needle: str) -> str:
        return str(self.directory / dirname / needle)


def render(directory: Path, text: str, *variables: dict[str, Any], name: str = "a.j2") -> list[str]:
    source = directory / "templates" / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    action = Action(directory)
    # as the rest of a play has it: a template that looks at what the file says
    known = {"ansible_search_path": [str(directory)], "twice": trust_as_template("{{ one }}{{ one }}")}
    return [action._render("x", {"template": name, "vars": given}, known) for given in variables]


TEXTS = [
    ("{{ one }}\n", "1\n"),
    ("{{ one }}", "1"),
    ("a\n\n\n", "a\n\n\n"),
    ("{% if one %}\na\n{% endif %}\n", "a\n"),
    ("\n{{ twice }} {{ tree_digest | length > 9 }}\n", "\n11 True\n"),
    ("{{ 'a.b' | replace('.', '\\\\') }} \\\\ \\n\n", "a\\b \\\\ \\n\n"),
    ("#jinja2: variable_start_string: '[[', variable_end_string: ']]'\n[[ one ]] {{ one }}\n", "1 {{ one }}\n"),
    ("{% set own = one %}{{ own }}{{ ansible_managed }}\n", "1Managed by wsgi.fleet (x). Changes here are lost.\n"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "made"), TEXTS, ids=[text for text, _ in TEXTS])
def test_a_shared_template_gives_what_its_text_gives(tmp_path, monkeypatch, text, made):
    given = [{"one": "1"}, {"one": "2"}]
    shared = render(tmp_path, text, *given)
    monkeypatch.setattr(tree, "includable", lambda *_: False)
    assert shared == render(tmp_path, text, *given)
    assert shared[0] == made


def test_only_what_is_found_by_its_name_is_included(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.j2").write_text(folder)
    paths = [tmp_path / "none", tmp_path / "first", tmp_path / "second"]
    assert tree.includable(str(tmp_path / "first/a.j2"), "first", paths)
    assert not tree.includable(str(tmp_path / "second/a.j2"), "second", paths)  # the first one would be
    assert not tree.includable(str(tmp_path / "first/a.j2"), "decrypted", paths)
    assert not tree.includable(str(tmp_path / "first/b.j2"), "", paths)


def test_what_is_undefined_is_told(tmp_path):
    with pytest.raises(Exception, match="'nowhere' is undefined"):
        render(tmp_path, "{{ nowhere }}", {})
