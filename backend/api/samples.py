"""Trained sequences and tokens as viewers get them, with the engine's facts per token.

Arrays travel as raw little-endian bytes, as on the wire; ``ints`` and ``floats`` read them. Unknown values are
``wire.UNKNOWN_VERSION`` or an empty name.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


def ints(raw: bytes) -> NDArray[np.int32]:
    """Read an i4 array."""
    return np.frombuffer(raw, "<i4")


def floats(raw: bytes) -> NDArray[np.float32]:
    """Read an f4 array."""
    return np.frombuffer(raw, "<f4")


class Sequence(msgspec.Struct, frozen=True):
    """A trained sequence. Per token [tokens] means: per trained token.

    Attributes:
        step, rank, number: the ``number``-th row, from 0, that the rank sent for the step.
        tokens: trained tokens. invalid: those without a finite d.
        abs_diff_mean, k3_mean: over the valid tokens, in nats; None without any.
        reward: None if the trainer gave none.
        engines: that generated it, in order. requests: their ids. ways: how each was joined (``join.reasons.WAYS``).
        finish_reason: of the last request. prompt_tokens, cached_tokens: of the first; None if not known.
        context: i4, the last ``gaps.token_details.MAX_CONTEXT`` tokens before the first trained one.
        ids: i4, the row from its first trained token on. mask: u1 of the same size, 1 if trained.
        rollout, trainer: logprobs, f4 [tokens], nats.
        versions, epochs: i4 [tokens], policy version and flag epoch that sampled each token.
        unjoined: reason that it has no rollout; empty if it has one.
    """

    step: int
    rank: int
    number: int
    tokens: int
    invalid: int
    abs_diff_mean: float | None
    k3_mean: float | None
    reward: float | None
    engines: list[str]
    requests: list[str]
    ways: list[str]
    finish_reason: str
    prompt_tokens: int | None
    cached_tokens: int | None
    context: bytes
    ids: bytes
    mask: bytes
    rollout: bytes
    trainer: bytes
    versions: bytes
    epochs: bytes
    unjoined: str = ""

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        arrays = (self.context, self.ids, self.mask, self.rollout, self.trainer, self.versions, self.epochs)
        return 500 + sum(map(len, arrays))


class Token(msgspec.Struct, frozen=True):
    """A trained token with some context.

    ``step``, ``rank``, ``number`` are those of its ``Sequence``; ``position`` counts trained tokens from 0, of
    ``tokens``; ``before`` and ``after`` are i4, the ids around it in its row. ``reward``, ``engine``, ``request``,
    ``prompt_tokens`` and ``cached_tokens`` are as in ``Sequence``, for its own request.
    """

    step: int
    rank: int
    number: int
    position: int
    tokens: int
    id: int
    rollout: float
    trainer: float
    engine: str
    request: str
    version: int
    epoch: int
    prompt_tokens: int | None
    cached_tokens: int | None
    reward: float | None
    before: bytes
    after: bytes

    @property
    def diff(self) -> float:
        """Trainer - rollout, nats; NaN if either is not finite."""
        finite = math.isfinite(self.trainer) and math.isfinite(self.rollout)
        return self.trainer - self.rollout if finite else math.nan


class Samples(msgspec.Struct, frozen=True):
    """Samples of a step, out of ``of_sequences`` sequences and ``of_tokens`` tokens.

    ``kind`` as in ``AskSamples``. ``steps``: all steps with samples.
    """

    step: int | None
    kind: str
    of_sequences: int = 0
    of_tokens: int = 0
    sequences: list[Sequence] = []
    tokens: list[Token] = []
    steps: list[int] = []


def as_json(samples: Samples) -> dict[str, Any]:
    """The samples with lists instead of arrays; None for values that are not finite."""
    found = msgspec.structs.asdict(samples)
    found["sequences"] = [_sequence_json(sequence) for sequence in samples.sequences]
    found["tokens"] = [_token_json(token) for token in samples.tokens]
    return found


def _sequence_json(sequence: Sequence) -> dict[str, Any]:
    found = msgspec.structs.asdict(sequence)
    for name in ("context", "ids", "versions", "epochs"):
        found[name] = ints(found[name]).tolist()
    found["mask"] = list(sequence.mask)
    for name in ("rollout", "trainer"):
        found[name] = [_finite(float(value)) for value in floats(found[name])]
    return found


def _token_json(token: Token) -> dict[str, Any]:
    found = msgspec.structs.asdict(token)
    found["before"], found["after"] = ints(token.before).tolist(), ints(token.after).tolist()
    found["rollout"], found["trainer"] = _finite(token.rollout), _finite(token.trainer)
    found["diff"] = _finite(token.diff)
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
