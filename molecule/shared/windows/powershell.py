"""Reads the argument specification out of a module in PowerShell: `$spec = @{ ... }`, a literal.

A small reader for the part of PowerShell that such specifications use. What it does not know it refuses (ValueError),
so that a surprise in a new version of a collection is loud.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r]+|`\r?\n|\#[^\n]*|<\#.*?\#>)
  | (?P<line>\n|;)
  | (?P<open>@\{|@\(|\()
  | (?P<close>\)|\})
  | (?P<equals>=) | (?P<comma>,) | (?P<plus>\+)
  | (?P<string>'(?:[^']|'')*'|"(?:[^"`]|`.)*")
  | (?P<cast>\[[A-Za-z][\w.]*(?:\[\])?\](?!::))
  | (?P<static>\[[\w.]+\]::\w+)
  | (?P<variable>\$[\w:]+(?:\.\w+)*)
  | (?P<number>-?0x[0-9A-Fa-f]+|-?\d+(?:\.\d+)?)
  | (?P<word>[A-Za-z_][\w.-]*)
""",
    re.VERBOSE | re.DOTALL,
)
CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}


def tokens(text: str, position: int) -> Iterator[tuple[str, str]]:
    """Cut the text from a position on; the caller stops where the literal ends."""
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise ValueError(f"cannot read {text[position : position + 40]!r}")
        position = found.end()
        if found.lastgroup != "space":
            yield found.lastgroup, found.group()
    yield "end", ""


class Reader:
    """Reads one literal."""

    def __init__(self, text: str, position: int, variables: dict[str, Any]) -> None:
        self.tokens = tokens(text, position)
        self.variables = variables
        self.kind, self.text = next(self.tokens)

    def take(self) -> str:
        """Return the token at hand, and go on."""
        text = self.text
        self.kind, self.text = next(self.tokens)
        return text

    def skip(self, *kinds: str) -> None:
        while self.kind in kinds:
            self.take()

    def expression(self) -> Any:
        """Read values with commas between: an array, as is one after a comma that nothing precedes."""
        array = self.kind == "comma"
        if array:
            self.take()
        values = [self.value()]
        while self.kind == "comma":
            array = True
            self.take()
            self.skip("line")
            values.append(self.value())
        value = values if array else values[0]
        while self.kind == "plus":
            self.take()
            self.skip("line")
            added = self.value()
            value = (
                [*value, *(added if isinstance(added, list) else [added])] if isinstance(value, list) else value + added
            )
        return value

    def value(self) -> Any:
        kind, text = self.kind, self.take()
        if kind == "cast":
            return self.value()
        if kind == "string":
            return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
        if kind == "number":
            return float(text) if "." in text else int(text, 0)
        if kind == "static":
            return f"<{text}>"
        if kind == "variable":
            known = {**self.variables, **CONSTANTS}
            if text[1:].lower() not in known:
                raise ValueError(f"unknown variable {text}")
            return known[text[1:].lower()]
        if text == "@{":
            return self.table()
        if text in ("@(", "("):
            return self.array(text)
        raise ValueError(f"unexpected {text!r}")

    def table(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while True:
            self.skip("line")
            if self.kind == "close":
                self.take()
                return found
            key = self.take().strip("'\"")
            if self.kind != "equals":
                raise ValueError(f"{key!r} is followed by {self.text!r} instead of =")
            self.take()
            self.skip("line")
            found[key] = self.expression()

    def array(self, opened: str) -> Any:
        values: list[Any] = []
        while True:
            self.skip("line")
            if self.kind == "close":
                self.take()
                break
            value = self.expression()
            # Each statement adds what it yields; an array yields its members.
            values += value if isinstance(value, list) else [value]
        return values[0] if opened == "(" and len(values) == 1 else values


def spec_of(source: str) -> dict[str, Any] | None:
    """Return the specification, or nothing for a module from before there were any."""
    source = source.replace("\r\n", "\n")
    source = re.sub(r"\[Func\[[^{}]*?\]\]\s*\{[^{}]*\}", "'raw'", source)  # a type given as a block of code
    variables: dict[str, Any] = {}
    for found in re.finditer(r"(?mi)^\$(\w+)[ \t]*=[ \t]*(?=@\{|@\(|')", source):
        name = found[1].lower()
        try:
            variables[name] = Reader(source, found.end(), variables).expression()
        except ValueError:
            if name == "spec":
                raise
    call = re.search(r"(?i)AnsibleModule\]::Create\(\s*\$args\s*,\s*(\$(\w+)|(?=@\{))", source)
    if call is None:
        return None
    spec: dict[str, Any] = variables[call[2].lower()] if call[2] else Reader(source, call.end(), variables).expression()
    return spec
