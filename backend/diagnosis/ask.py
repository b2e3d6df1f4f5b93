"""Asks every test of a case. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rltop.backend.diagnosis import tests_course, tests_fit, tests_level, tests_ratio, tests_stated, tests_where
from rltop.backend.diagnosis.case import Case
from rltop.backend.diagnosis.pile import Piles
from rltop.backend.diagnosis.tell import unknown
from rltop.backend.diagnosis.tests import BY_NAME, UNKNOWN
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


def ask(case: Case) -> list[Finding]:
    """What every test finds, the alarming first."""
    piles = Piles(case)
    found = [one for name, test in ASK.items() for one in (test(piles) if case.steps or name == "facts" else ())]
    found += [unknown(name, why) for name, why in NOT_COMPUTED.items()]
    return sorted(found, key=lambda one: one.outcome in (BY_NAME[one.test].healthy, UNKNOWN))
