"""The tests of what is stated, of the objective and of the engines' health, as data. Loads nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import LEVEL, STATED, Check

TESTS: tuple[Check, ...] = (
    Check(
        name="facts",
        title="what is stated",
        outcomes=(
            "agree",
            "differs",
            "shaped",
        ),
        meaning={
            "differs": ("an engine computes with something else than the trainer or the other engines state"),
            "shaped": ("requests are sampled from a distribution that the trainer does not say it computes"),
        },
        on="fingerprints, flags, requests, the trainer's facts",
        formula=(
            "rltop.backend.fleet.facts; shaped: a sampling parameter that is not neutral, of which the "
            "trainer states nothing"
        ),
        rate=STATED,
        source="docs/facts.md",
        by_engine=True,
        detail="the fact, with /fleet behind it where engines differ among themselves",
        mild=("shaped",),
    ),
    Check(
        name="versions",
        title="weight versions",
        outcomes=(
            "advance",
            "stuck",
        ),
        meaning={"stuck": "the engine's version stays while the trainer's moves on"},
        on="what engines and trainer say",
        formula=(
            "more than 2 versions further behind than the nearest other engine; or all that is trained on is from one "
            "version in more than 5 steps in a row, and in twice as many as ever before"
        ),
        rate=STATED,
        source="rltop.backend.hub.event_log.MAX_SKEW; vime, issue 329",
        by_engine=True,
    ),
    Check(
        name="lag",
        title="age of what is trained on",
        outcomes=(
            "steady",
            "high",
            "behind",
        ),
        meaning={
            "high": "tokens are many versions old on all engines",
            "behind": "this engine's tokens are older than the others'",
        },
        on="all tokens of known version",
        formula=(
            "mean lag of the last 2 or 8 steps 1.5 above the first 8 steps that it varies by 2 in, or above 3 with a"
            " k3, less that of matched tokens, above 0.01 (0.03 where it has only risen so far, 0.1 where it varies by"
            " 2); behind: 2 more than another engine"
        ),
        rate=LEVEL,
        source="runs of the demo with a bounded queue: 1 to 2",
        by_engine=True,
        detail="of high: rose, or hurts, where it is k3 that says so",
    ),
    Check(
        name="entropy",
        title="the trainer's entropy",
        outcomes=(
            "steady",
            "falling",
            "collapsed",
            "rising",
        ),
        meaning={
            "falling": "it falls",
            "collapsed": ("it has fallen to a few percent of what it was, or falls faster than learning makes it"),
            "rising": "it rises",
        },
        on="the trainer's entropy",
        formula=(
            "the last 3 steps against the run's first 5: below a half; above 1.5 times; collapsed: below 5 %,"
            " or its logarithm falls by 0.062 a step over 6 to 16 steps, beyond 3.75 errors"
        ),
        rate=LEVEL + "; of simulated runs that learn as the demo's, one in 1,500 or fewer",
        source="LightRFT, issue 53",
        mild=(
            "falling",
            "rising",
        ),
    ),
    Check(
        name="reward",
        title="reward",
        outcomes=(
            "steady",
            "rising",
            "falling",
        ),
        meaning={"rising": "it rises", "falling": "it falls"},
        on="rewards of all rows",
        formula=("the last 5 steps against the best 5 before, beyond 6 errors; against the first 5, beyond 5"),
        rate=LEVEL,
        source="its own course",
        mild=(
            "rising",
            "falling",
        ),
    ),
    Check(
        name="gradient",
        title="norm of the gradient",
        outcomes=(
            "steady",
            "spike",
            "rising",
            "vanished",
        ),
        meaning={
            "spike": "single steps stand far above the rest",
            "rising": "it stands far above what it was",
            "vanished": "it is 0",
        },
        on="the trainer's grad_norm",
        formula="the last 3 steps against 10 times the median before",
        rate=LEVEL,
        source="its own course",
        mild=(
            "spike",
            "rising",
        ),
    ),
    Check(
        name="clip",
        title="clipped tokens",
        outcomes=(
            "as_noise",
            "high",
        ),
        meaning={"high": "more is clipped than in the run's first steps"},
        on="clip rates",
        formula="the last 3 steps above 3 times the first 5, and 10 % of tokens more",
        rate=LEVEL,
        source="its own course",
        mild=("high",),
    ),
    Check(
        name="speed",
        title="speed of engines",
        outcomes=(
            "alike",
            "slow",
        ),
        meaning={"slow": "it takes longer for a token than the others"},
        on="requests",
        formula=(
            "the least seconds per token of 4 steps against the median of the other engines': 3 times, in more steps"
            " in a row than engines that are so slow now and then would be once in 100,000"
        ),
        rate=LEVEL,
        source="its own course",
        by_engine=True,
    ),
    Check(
        name="aborts",
        title="requests that were aborted",
        outcomes=(
            "few",
            "many",
        ),
        meaning={"many": "many requests are aborted or failed"},
        on="requests of the last 3 steps",
        formula="10 %",
        rate=LEVEL,
        source="its own course",
        by_engine=True,
    ),
    Check(
        name="truncation",
        title="answers cut at the limit",
        outcomes=(
            "few",
            "many",
        ),
        meaning={"many": "many answers reach the limit of tokens"},
        on="requests of the last 3 steps",
        formula="half",
        rate=LEVEL,
        source="its own course",
        mild=("many",),
    ),
)
