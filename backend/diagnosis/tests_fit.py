"""Which version the record fits: are weights old, as a whole or in part? Pure functions of a case."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rltop.backend.diagnosis import loop, sequential
from rltop.backend.diagnosis.pile import Pile, Piles
from rltop.backend.diagnosis.sequential import Shift
from rltop.backend.diagnosis.tell import LOG_FOUND, asked, finding, unknown
from rltop.backend.diagnosis.tests_level import bound_of, exceeds
from rltop.backend.diagnosis.tests_ratio import shape
from rltop.backend.diagnosis.verdict import Finding


def fit(piles: Piles) -> Iterator[Finding]:
    """How many versions the record is behind its label, by how far the trainer's own weights move in one."""
    for engine, pile in asked(piles):
        if not pile.sums[:, loop.BY_OLD].sum():
            yield unknown("fit", "no old logprobs: pass sequences(old_logprobs=..., old_version=...)", engine)
            continue
        least, _ = bound_of(piles, engine)
        off = exceeds(pile, least)
        if off.log_e < LOG_FOUND:
            yield finding("fit", "matches", off, pile, engine, text="the record fits the version it is labelled with")
            continue
        if _before_updates(pile, least):
            yield unknown("fit", "the gap is there before any update: it is not the weights' version", engine)
            continue
        if shape(pile, least):
            yield unknown("fit", "the gap is that of another distribution, not of other weights", engine)
            continue
        late = pile.from_step(max(off.start, pile.steps - 8))
        drift, lag = _drift(late)
        if not drift or not lag:
            yield unknown("fit", "no tokens of an older version yet: how far an update moves is not known", engine)
            continue
        here = sequential.stretches(late.moments[:, loop.M_K3])
        k3 = float(here.mean[0])
        ratio = k3 / (drift / lag)
        behind = math.sqrt(ratio * lag) if ratio > lag else ratio
        since = int(pile.last[-1]) - int(pile.first[off.start])
        if since < 1 or behind > since + lag + SLACK:
            yield unknown("fit", "one step, or a gap larger than the weights have moved since it began", engine)
            continue
        enough = max(FROZEN, FROZEN_SHARE * since)
        frozen = behind >= enough
        if not frozen and behind > enough / 2:
            yield unknown(
                "fit", f"about {behind:.1f} versions behind the label in {since} steps: too near to call", engine
            )
            continue
        text = f"matched k3 {k3:.2g}; the trainer's own weights move {drift:.2g} in {lag:.1f} versions"
        text += (
            f": about {behind:.1f} versions behind the label"
            if frozen
            else f": about {behind:.1f} versions' worth, in the {since} steps since it began"
        )
        told = Shift(off.log_e, off.start, behind, math.nan, math.nan, off.sequences, off.tokens)
        outcome = "frozen" if frozen else "partial"
        yield finding("fit", outcome, told, pile, engine, text=text, unit="versions", detail=f"{behind:.1f}")


def _before_updates(pile: Pile, least: float) -> bool:
    """Whether the run's step 0, which no update came before, has the gap already."""
    moments = pile.moments[0, loop.M_ABS]
    return bool(pile.first[0] == 0 and pile.last[0] == 0 and moments[1] and moments[2] / moments[1] > least)


FROZEN, FROZEN_SHARE = 1.0, 0.2
"""Versions behind the label from which on weights are old as a whole, and as a share of the steps since it began: of
weights that stay as they are it grows by 1 a step (0.4 to 0.8 where updates become smaller), of one old tensor or of an
old prefix by far less."""


def _drift(pile: Pile) -> tuple[float, float]:
    """Mean k3 between the trainer's own logprobs under the old version and now, and the mean lag between the two."""
    n = pile.moments[:, loop.DRIFT, 1].sum()
    if not n:
        return 0.0, 0.0
    return float(pile.moments[:, loop.DRIFT, 2].sum() / n), float(pile.sums[:, loop.LAG].sum() / n)


SLACK = 3.0
"""Versions by which the estimate may be too high: updates differ in size."""
