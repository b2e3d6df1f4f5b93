"""Suggests the known word that a wrong one resembles. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

CUTOFF = 0.6
"""Least similarity (``difflib``) of a suggestion."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar known word; empty if none is similar. Case, dashes and underscores do not count."""
    plain = {_plain(one): one for one in known}
    found = get_close_matches(_plain(word), plain, 1, CUTOFF)
    longer = [one for one in plain if len(word) > 2 and one.startswith(_plain(word))]
    return plain[found[0]] if found else plain[longer[0]] if len(longer) == 1 else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause to append to an error: ``; did you mean 'prefix_caching'?``; empty if no known word is similar."""
    found = nearest(word, known)
    return f"; did you mean {found!r}?" if found else ""


def _plain(word: str) -> str:
    return word.lower().replace("_", "-")
