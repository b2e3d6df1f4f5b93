"""Asks every test of a case. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rltop.backend.diagnosis import loop, tests_course, tests_fit, tests_level, tests_ratio, tests_stated, tests_where
from rltop.backend.diagnosis.case import Case
from rltop.backend.diagnosis.pile import Piles
from rltop.backend.diagnosis.tell import unknown
from rltop.backend.diagnosis.tests import BY_NAME, UNKNOWN
from rltop.backend.diagnosis.tests_level import bound_of
from rltop.backend.diagnosis.verdict import Finding

ASK: dict[str, Callable[[Piles], Iterator[Finding]]] = {
    "T1": tests_ratio.mean_ratio,
    "T2": tests_ratio.sign,
    "T3": tests_ratio.sides,
    "T4": tests_ratio.sampler,
    "T5": tests_ratio.surprisal,
    "T6": tests_ratio.alignment,
    "T7": tests_where.position,
    "T8": tests_level.course,
    "T9": tests_where.lag,
    "T10": tests_where.engines,
    "T11": tests_where.cache,
    "T12": tests_where.tail,
    "T13": tests_level.lattice,
    "floor": tests_level.floor,
    "fit": tests_fit.fit,
    "slope": tests_ratio.slope,
    "in_flight": tests_where.in_flight,
    "repetition": tests_where.repetition,
    "repeat": tests_level.repeat,
    "repeat_engine": tests_level.repeat_engine,
    "copies": tests_stated.copies,
    "record": tests_stated.record,
    "join": tests_stated.join,
    "mask": tests_stated.mask,
    "facts": tests_stated.stated,
    "versions": tests_stated.versions,
    "lag": tests_stated.lag,
    "entropy": tests_course.entropy,
    "reward": tests_course.reward,
    "gradient": tests_course.gradient,
    "clip": tests_course.clips,
    "speed": tests_course.speed,
    "aborts": tests_course.aborts,
    "truncation": tests_course.truncation,
}
"""The function of each test that can be computed from what collectors have."""

NOT_COMPUTED: dict[str, str] = {
    "T14": "it needs the size of the batch that sampled each token, which collectors do not take",
}


OF_MATCHED = frozenset({"T2", "T3", "T7", "T8", "T11", "T12", "floor", "fit", "slope", "in_flight", "repetition"})
"""Tests of version-matched tokens: where those are few, or of earlier steps alone, nothing is healthy for that."""

LATE_STEPS = 5
"""The latest steps that must have matched tokens: as soon is a fault to be told."""


def ask(case: Case) -> list[Finding]:
    """What every test finds, the alarming first."""
    piles = Piles(case)
    found = [one for name, test in ASK.items() for one in (test(piles) if case.steps or name == "facts" else ())]
    found += [unknown(name, why) for name, why in NOT_COMPUTED.items()]
    seen = {one.engine for one in found if one.test == "floor" and BY_NAME["floor"].alarms(one.outcome)}
    blind = {engine: why for engine in (None, *piles.engines) if (why := _blind(piles, engine, engine in seen))}
    found = [
        unknown(one.test, blind[one.engine], one.engine)
        if one.test in OF_MATCHED and one.engine in blind and one.outcome == BY_NAME[one.test].healthy
        else one
        for one in found
    ]
    return sorted(found, key=lambda one: one.outcome in (BY_NAME[one.test].healthy, UNKNOWN))


def _blind(piles: Piles, engine: str | None, seen: bool) -> str:
    """Why matched tokens can't say that a run, or an engine of it, is healthy; empty where they can.

    ``seen``: they have a gap that is above the floor for sure; then what they say is of its shape.
    """
    if seen:
        return ""
    pile = piles.run if engine is None else piles.engine(engine)
    late = pile.from_step(max(pile.steps - LATE_STEPS, 0))
    if not late.sums[:, loop.MATCHED].sum():
        return f"no version-matched tokens in the latest {LATE_STEPS} steps"
    least, _ = bound_of(piles, engine)
    square = late.moments[:, loop.M_DD, 2].sum() / max(float(late.sums[:, loop.ROOM].sum()), 1e-9)
    if square > least**2:
        return "the latest matched gap is above its floor, in too few sequences to be sure"
    return ""
