"""The filter of a table: words, regular expressions and comparisons of columns. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rltop.backend.util.near import did_you_mean

_COMPARISON = re.compile(r"([^\s<>=!]+)(<=|>=|!=|<|>|=)(\S+)")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "=": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


class RowFilter:
    """Selects rows by their cells.

    All terms, separated by blanks, must match. ``lag>2`` compares a column (its title, or the first word of it); any
    other term is a regular expression, or plain text if it is none, found anywhere in the row. Case does not count.

    Args:
        text: the terms.
        titles: of the columns.

    Raises:
        ValueError: a comparison names no column.
    """

    def __init__(self, text: str, titles: list[str]) -> None:
        self.text = text.strip()
        self._columns = {title.split()[0].lower(): title for title in reversed(titles) if title}
        self._tests = [self._test(term) for term in self.text.split()]

    def matches(self, cells: Mapping[str, str]) -> bool:
        """Whether a row with these cells, by title, is selected."""
        return all(test(cells) for test in self._tests)

    def _test(self, term: str) -> Callable[[Mapping[str, str]], bool]:
        comparison = _COMPARISON.fullmatch(term)
        if comparison is None:
            pattern = _pattern(term)
            return lambda cells: pattern.search(" ".join(cells.values())) is not None
        name, operator, wanted = comparison.groups()
        title = self._columns.get(name.lower())
        if title is None:
            raise ValueError(f"no column {name!r}; there are {', '.join(self._columns)}"
                             f"{did_you_mean(name, self._columns)}")  # fmt: skip
        number = number_of(wanted)
        if number is None:
            equal = {"=": True, "!=": False}.get(operator)
            if equal is None:
                raise ValueError(f"{term}: {wanted!r} is no number")
            return lambda cells: (wanted.lower() in cells.get(title, "").lower()) == equal
        compare = _OPERATORS[operator]
        return lambda cells: (value := number_of(cells.get(title, ""))) is not None and compare(value, number)


def number_of(text: str) -> float | None:
    """The number that a cell shows: ``12.3k`` is 12300, ``37%`` is 37; None if it begins with none."""
    found = _NUMBER.match(text.strip())
    if found is None:
        return None
    return float(found.group()) * _UNITS.get(text.strip()[found.end() : found.end() + 1], 1.0)


def _pattern(term: str) -> re.Pattern[str]:
    try:
        return re.compile(term, re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(term), re.IGNORECASE)
