"""The checks of stated facts, of the objective and of engine health, as data. Imports nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import DETERMINISTIC, LEVEL, Check

CHECKS: tuple[Check, ...] = (
    Check(
        name="facts",
        title="facts of engines and trainer",
        outcomes=("agree", "differs", "shaped"),
        meaning={
            "differs": ("a fact of an engine does not match the trainer's or the other engines'"),
            "shaped": ("requests use sampling parameters that the trainer does not state"),
        },
        on="fingerprints, flags, requests, the trainer's facts",
        formula=(
            "rltop.backend.fleet.facts; shaped: a sampling parameter that is not neutral and that the trainer does not "
            "state"
        ),
        rate=DETERMINISTIC,
        source="docs/facts.md",
        by_engine=True,
        detail="the fact, followed by /fleet if engines differ among themselves",
        mild=("shaped",),
    ),
    Check(
        name="versions",
        title="weight versions",
        outcomes=("advance", "stuck"),
        meaning={"stuck": "rollouts of the engine keep one version while the trainer's advances"},
        on="versions of trained tokens",
        formula=(
            "the newest version of an engine's rollouts stays for 4 steps or more, and more than twice the longest "
            "earlier streak, and is more than 2 behind that of another engine; or stays on all engines for more than 5 "
            "steps. For 3 s or more, and the engine reports no newer version"
        ),
        rate=DETERMINISTIC,
        source="vime, issue 329",
        by_engine=True,
    ),
    Check(
        name="lag",
        title="age of trained tokens",
        outcomes=("steady", "high", "behind"),
        meaning={
            "high": "tokens are many versions old on all engines",
            "behind": "this engine's tokens are older than the others'",
        },
        on="all tokens of known version",
        formula=(
            "mean lag of the last 2 or 8 steps 1.5 above that of the first 8 steps within a range of 2, or above 3 "
            "with a k3, minus that of matched tokens, above 0.01 (0.03 while it only rises, 0.1 once it stays within "
            "a range of 2). Behind: 2 more than another engine"
        ),
        rate=LEVEL,
        source="runs of the demo with a bounded queue: 1 to 2",
        by_engine=True,
        detail="for high: rose, or hurts if decided by k3",
        mild=("behind",),
    ),
    Check(
        name="entropy",
        title="the trainer's entropy",
        outcomes=("steady", "falling", "collapsed", "rising"),
        meaning={
            "falling": "the value falls",
            "collapsed": ("the entropy has fallen to a few percent, or falls faster than learning explains"),
            "rising": "the value rises",
        },
        on="the trainer's entropy",
        formula=(
            "the last 3 steps against the run's first 5: below a half; above 1.5 times. Collapsed: below 5 %, or the "
            "log falls by 0.062 a step over 6 to 16 steps, beyond 3.75 errors"
        ),
        rate=LEVEL + "; at most one in 1,500 simulated runs that learn as the demo's",
        source="LightRFT, issue 53",
        mild=("falling", "rising"),
    ),
    Check(
        name="reward",
        title="reward",
        outcomes=("steady", "rising", "falling", "collapsed"),
        meaning={
            "rising": "the value rises",
            "falling": "the value falls",
            "collapsed": "the value fell far within 20 steps and stays low",
        },
        on="rewards of all rows",
        formula=(
            "the last 5 steps against the best earlier 5, beyond 6 errors; against the first 5, beyond 5 errors. "
            "Collapsed: the last 3 steps against the best 5 of the 20 before, beyond 6 errors by the scatter of steps, "
            "and half a standard deviation of the rewards"
        ),
        rate=LEVEL,
        source="the run's own history",
        mild=("rising", "falling"),
    ),
    Check(
        name="gradient",
        title="gradient norm",
        outcomes=("steady", "spike", "rising", "vanished"),
        meaning={
            "spike": "single steps are far above the rest",
            "rising": "the norm is far above its median",
            "vanished": "the norm is 0",
        },
        on="the trainer's grad_norm",
        formula="the last 3 steps above 10 times the earlier median",
        rate=LEVEL,
        source="the run's own history",
        mild=("spike", "rising"),
    ),
    Check(
        name="clip",
        title="clipped tokens",
        outcomes=("as_noise", "high"),
        meaning={"high": "more tokens are clipped than in the run's first steps"},
        on="clip rates",
        formula="the last 3 steps above 3 times the first 5 plus 10 % of tokens",
        rate=LEVEL,
        source="the run's own history",
        mild=("high",),
    ),
    Check(
        name="speed",
        title="speed of engines",
        outcomes=("alike", "slow"),
        meaning={"slow": "the engine takes longer per token than the others"},
        on="requests",
        formula=(
            "least seconds per token of 4 steps 3 times the median of the other engines', in more consecutive steps"
            " than occasional slowness explains with a probability of 1 in 100,000; or a mean ratio over 8 to 32 steps "
            "above 2 by 6 errors of its scatter"
        ),
        rate=LEVEL,
        source="the run's own history",
        by_engine=True,
    ),
    Check(
        name="aborts",
        title="aborted requests",
        outcomes=("few", "many"),
        meaning={"many": "many requests are aborted or failed"},
        on="requests of the last 3 steps",
        formula="above 10 %",
        rate=LEVEL,
        source="the run's own history",
        by_engine=True,
    ),
    Check(
        name="truncation",
        title="answers cut at the token limit",
        outcomes=("few", "many"),
        meaning={"many": "many answers reach the token limit"},
        on="requests of the last 3 steps",
        formula="above a half",
        rate=LEVEL,
        source="the run's own history",
        mild=("many",),
    ),
)
