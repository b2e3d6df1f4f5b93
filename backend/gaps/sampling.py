"""Keeps single sequences and tokens: an unbiased sample of each step, and the worst. Pure, bounded.

The sample has the first sequences of a step in the order of a hash of their rank and row number, which is independent
of their content: every sequence has the same chance, in whichever batch it came. The worst are the sequences with the
highest mean k3, and the tokens with the highest |d| and the highest k3; tokens without a finite d come first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.backend.gaps.token_details import Ranked, T, TokenDetails, highest, threshold
from rltop.backend.join.batch import Batch
from rltop.backend.util.bounded import ByteBoundedCache

SAMPLE = 16
WORST = 8
TOKENS = 32
"""Bounds per step: sequences in the sample, worst sequences, worst tokens of either kind."""

ENGINE_WORST = 2
ENGINE_TOKENS = 8
"""Bounds per engine and step."""

STEP_BYTES = 512 << 10
"""Bytes of a step's sample, and of its worst sequences; the sequence that exceeds them is still kept."""

TOTAL_BYTES = 32 << 20
"""Bound over all steps; the oldest are dropped first."""

KINDS = ("sample", "worst", "abs_diff", "k3")


@dataclass(slots=True)
class Worst:
    """The worst sequences and tokens of a step, or of one engine in it.

    Attributes:
        sequences: by falling mean k3. by_diff, by_k3: tokens by falling |d| and k3.
        most_sequences, most_tokens: bounds on their number.
    """

    most_sequences: int = WORST
    most_tokens: int = TOKENS
    sequences: list[Ranked[Sequence]] = field(default_factory=list)
    by_diff: list[Ranked[Token]] = field(default_factory=list)
    by_k3: list[Ranked[Token]] = field(default_factory=list)

    def add_batch(self, details: TokenDetails, engine: str | None) -> None:
        """Merge the worst of a batch, of one engine or of all (None)."""
        rows = details.rows_of(engine)
        worst = highest(details.row_k3[rows], self.most_sequences, threshold(self.sequences, self.most_sequences))
        found = [(float(details.row_k3[n]), int(details.hashes[n]), details.sequence(n)) for n in rows[worst].tolist()]
        self._merge(found, details.tokens(details.size, engine, self.by_diff, self.most_tokens),
                    details.tokens(details.k3, engine, self.by_k3, self.most_tokens))  # fmt: skip

    def __add__(self, other: Worst) -> Worst:
        both = Worst(self.most_sequences, self.most_tokens)
        for part in (self, other):
            both._merge(part.sequences, part.by_diff, part.by_k3)
        return both

    def _merge(
        self, sequences: list[Ranked[Sequence]], by_diff: list[Ranked[Token]], by_k3: list[Ranked[Token]]
    ) -> None:
        worst = _merged(self.sequences, sequences, self.most_sequences)
        self.sequences = worst[: _fitting([sequence for *_, sequence in worst])]
        self.by_diff = _merged(self.by_diff, by_diff, self.most_tokens)
        self.by_k3 = _merged(self.by_k3, by_k3, self.most_tokens)

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return sum(s.nbytes for *_, s in self.sequences) + 600 * (len(self.by_diff) + len(self.by_k3))


def _of_engine() -> Worst:
    return Worst(ENGINE_WORST, ENGINE_TOKENS)


@dataclass(slots=True)
class StepSamples:
    """Sample and worst of one step. ``+`` merges in any order: a part drops only entries that the whole drops too.

    Attributes:
        sequences, tokens: number in the step.
        sample: by rising hash of rank and row number.
        worst: over all engines.
        engines: fewer per engine, for engines without entries in ``worst``. Tokens of unknown engines, and sequences
            that begin with them, are under an empty name.
    """

    sequences: int = 0
    tokens: int = 0
    sample: list[tuple[int, Sequence]] = field(default_factory=list)
    worst: Worst = field(default_factory=Worst)
    engines: dict[str, Worst] = field(default_factory=dict)

    def add_batch(self, batch: Batch) -> None:
        """Add a batch of the step's first update whose join is final."""
        details = TokenDetails(batch)
        self.sequences += details.rows.size
        self.tokens += batch.tokens
        limit = self.sample[-1][0] if len(self.sample) == SAMPLE else 1 << 64
        drawn = [(int(details.hashes[n]), int(n)) for n in np.argsort(details.hashes)[:SAMPLE]]
        self._merge_sample((key, details.sequence(n)) for key, n in drawn if key < limit)
        self.worst.add_batch(details, None)
        for engine in details.engines:
            self.engines.setdefault(engine, _of_engine()).add_batch(details, engine)

    def __add__(self, other: StepSamples) -> StepSamples:
        both = StepSamples(self.sequences + other.sequences, self.tokens + other.tokens, worst=self.worst + other.worst)
        for part in (self, other):
            both._merge_sample(part.sample)
            for engine, worst in part.engines.items():
                both.engines[engine] = both.engines.get(engine, _of_engine()) + worst
        return both

    def _merge_sample(self, others: Iterable[tuple[int, Sequence]]) -> None:
        """Keep a sequence if those before it leave space, regardless of its length, so that long ones are not rarer."""
        sample = sorted([*self.sample, *others], key=lambda entry: entry[0])[:SAMPLE]
        self.sample = sample[: _fitting([sequence for _, sequence in sample])]

    def select(self, kind: str, engine: str | None) -> tuple[list[Sequence], list[Token]]:
        """The sequences or tokens of a kind (``KINDS``), of one engine or of all."""
        if kind == "sample":
            return [sequence for _, sequence in self.sample if _is_of(sequence, engine)], []
        parts = [self.worst] if engine is None else [self.worst, self.engines.get(engine, Worst())]
        if kind == "worst":
            sequences = _distinct(part.sequences for part in parts)
            return [sequence for sequence in sequences if _is_of(sequence, engine)], []
        tokens = _distinct(part.by_diff if kind == "abs_diff" else part.by_k3 for part in parts)
        return [], [token for token in tokens if engine is None or engine == token.engine]

    @property
    def nbytes(self) -> int:
        """Approximate memory use; entries of two lists count twice."""
        parts = [self.worst, *self.engines.values()]
        return 1000 + sum(s.nbytes for _, s in self.sample) + sum(part.nbytes for part in parts)


class SampledSteps:
    """Samples of the last steps; answers ``api.AskSamples``."""

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self._steps: ByteBoundedCache[StepSamples] = ByteBoundedCache(total_bytes)

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return self._steps.nbytes

    def __len__(self) -> int:
        return len(self._steps)

    def put(self, step: int, samples: StepSamples) -> None:
        """Store a finished step, replacing an earlier one of that number."""
        if samples.sequences:
            self._steps.put(step, samples, samples.nbytes)
        else:
            self._steps.drop(step)

    def of_step(self, step: int) -> StepSamples | None:
        """The samples of a step; None if none are kept."""
        return self._steps.get(step)

    def answer(self, step: int | None, kind: str, engine: str | None = None, limit: int = TOKENS) -> Samples:
        """The samples of ``step`` (None: the last), of ``engine`` alone if one is named; see ``api.AskSamples``.

        Raises:
            ValueError: there is no such kind, or nothing is kept of the step; the text lists the possible ones.
        """
        if kind not in KINDS:
            raise ValueError(f"no samples of kind {kind!r}; there are {', '.join(KINDS)}")
        if step is None:
            step = self._steps.last
        found = None if step is None else self._steps.get(step)
        if found is None:
            raise ValueError(self._missing(step))
        sequences, tokens = found.select(kind, engine)
        most = max(limit, 0)
        return Samples(
            step, kind, found.sequences, found.tokens, sequences[:most], tokens[:most], list(self._steps)
        )  # fmt: skip

    def _missing(self, step: int | None) -> str:
        steps = list(self._steps)
        if not steps:
            return "no training step with sequences has closed yet"
        return f"nothing is kept of step {step}; there are {len(steps)} steps from {steps[0]} to {steps[-1]}"


def _merged(ours: list[Ranked[T]], others: Iterable[Ranked[T]], most: int) -> list[Ranked[T]]:
    return heapq.nsmallest(most, [*ours, *others], key=_order)


def _distinct(lists: Iterable[list[Ranked[T]]]) -> list[T]:
    """The items of ranked lists, each once, in the order of their rank."""
    by_key = {entry[1]: entry for ranked in lists for entry in ranked}
    return [item for *_, item in sorted(by_key.values(), key=_order)]


def _is_of(sequence: Sequence, engine: str | None) -> bool:
    """Whether the engine (None: any; empty: unknown) generated part of the sequence."""
    return engine is None or engine in (sequence.engines or [""])


def _order(entry: Ranked[T]) -> tuple[float, int]:
    return -entry[0], entry[1]


def _fitting(sequences: list[Sequence]) -> int:
    """Number of sequences up to and including the one that reaches ``STEP_BYTES``."""
    size = 0
    for number, sequence in enumerate(sequences):
        if size >= STEP_BYTES:
            return number
        size += sequence.nbytes
    return len(sequences)
