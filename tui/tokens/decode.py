"""Token ids as text, if the model's tokenizer is on this machine and ``tokenizers`` is installed; otherwise as ids."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from rltop.backend.api import Engine

_SPACE = "▁"
"""The blank of SentencePiece."""

_PART = "\ufffd"
"""Replacement for bytes that are not a whole character: many tokens contain part of one."""


class Decode(Protocol):
    """Decodes one token."""

    def __call__(self, token: int) -> str:
        """The token as text of printable characters, never empty."""
        ...


def as_id(token: int) -> str:
    """The decoder without a tokenizer: the id."""
    return str(token)


def decoder(engines: Iterable[Engine]) -> Decode:
    """A decoder with the tokenizer of the engines' model, if all engines have the same one in a local directory."""
    models = {engine.fingerprint.get("model", "") for engine in engines}
    path = Path(models.pop()) / "tokenizer.json" if len(models) == 1 else None
    if path is None or not path.is_file() or find_spec("tokenizers") is None:
        return as_id
    return _load(path)


def _load(path: Path) -> Decode:
    import tokenizers

    try:
        known = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - the library raises bare Exception for a file it can't read
        return as_id

    @lru_cache(maxsize=1 << 16)
    def decode(token: int) -> str:
        piece = known.id_to_token(token) or ""
        text = known.decode([token], skip_special_tokens=False)
        if piece.startswith(_SPACE) and not text.startswith(" "):  # stripped, as at the start of a text
            text = " " + text
        if _PART in text:
            return f"<{token}>"
        return printable(text or piece) or as_id(token)

    return decode


def printable(text: str) -> str:
    """``text`` with control and invisible characters made visible."""
    shown = text.replace("\n", "↵").replace("\t", "→").replace("\r", "↤")
    return "".join(c if c.isprintable() else "?" for c in shown)
