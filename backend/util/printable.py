"""Text from other processes, made safe to print: an escape sequence in a name must not reach a terminal or a page."""

from __future__ import annotations

KEPT = "\n\t"
"""Characters that ``escaped`` keeps although they are not printable."""


def escaped(text: str) -> str:
    """The text with control, formatting and bidirectional characters as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in KEPT else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The text with such characters, line ends included, as spaces."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
