"""Origins by a pattern: which regular expressions nginx may be given for CORS, and which would let in too many."""

from __future__ import annotations

import re

# What a pattern is made of: an escape, a class, the beginning of a group, or one character.
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?.?|.")
_ESCAPES = re.compile(r"\\[.:dw-]")
_START = re.compile(r"https\??://|http://")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DOT = r"(?:\\\.|\[\.\])"
_DIGITS = r"(?:\\d|\[0-9\])(?:\+|\{1,[1-5]\}|\{[1-5]\})"
_PORT = rf"(?::\d{{1,5}}|\((?:\?:)?:{_DIGITS}\)\?|:{_DIGITS})?"
# A group that ends with a dot, whatever it takes.
_PARTS = rf"\((?:\?:)?[^()|]*{_DOT}\)"
_BEFORE = rf"(?://(?:{_PARTS}[*?+]?)?|{_DOT}|{_PARTS}(?:\+|\{{[1-9](?:,[1-9]?)?\}})?)"
# A domain that is spelled out to its end, after a dot or from its beginning.
_FIXED = re.compile(rf"{_BEFORE}(?:{_LABEL}{_DOT})+{_LABEL}{_PORT}$")


def pattern_problem(pattern: str, credentials: bool) -> str:
    """Say what is wrong with a pattern that the whole of an origin must match; nothing when it will do."""
    if not re.fullmatch(r"[!#-@\[-~]+", pattern):
        return (
            "holds what no origin has: a space, a quotation mark, or a capital (browsers write origins in lower case)"
        )
    start = _START.match(pattern)
    if not start:
        return r"must begin with https://, http:// or https?://, as in https://pr-\d+\.example\.com"
    problem = _words_problem(_TOKEN.findall(pattern[start.end() :]))
    if problem:
        return problem
    try:
        re.compile(pattern)
    except re.error as error:
        return f"is no regular expression: {error}"
    if credentials and not _FIXED.search(pattern):
        return (
            r"must end with a whole domain, as \.example\.com does, for credentials are true: pages of strangers whose "
            "names match could act for its visitors"
        )
    return ""


def _words_problem(words: list[str]) -> str:
    depth = 0
    for word in words:
        depth += word.startswith("(") - (word == ")")
        if word == ".":
            return r"has a . that stands for any character; write \. for a dot, and [a-z0-9-]+ for a part of a name"
        if word in ("^", "$"):
            return f"has {word}, but is for the whole origin anyway; leave it out"
        if word == "/":
            return "has a path; an origin ends with the host or its port"
        if word == "|" and depth == 0:
            return "has a | outside of parentheses; give each as a pattern of its own"
        if word.startswith("(?") and word != "(?:":
            return f"has {word}, which patterns here do not know; groups are ( ) and (?: )"
        if word.startswith("\\") and not _ESCAPES.fullmatch(word):
            return rf"has {word}, which patterns here do not know; there are \. \- \: \d \w"
    return ""
