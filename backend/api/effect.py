"""The effect of a switch as viewers get it. Pure data; ``rltop.backend.effects.estimate`` makes it."""

from __future__ import annotations

import msgspec


class EffectEstimate(msgspec.Struct, frozen=True):
    """A figure's fitted levels right before and after a switch, their difference, and its 95 % interval."""

    before: float
    after: float
    difference: float
    low: float
    high: float


class EffectRow(msgspec.Struct, frozen=True):
    """What a switch did to one figure.

    Attributes:
        figure, unit: a name of ``rltop.backend.effects.estimate.FIGURES``, and what it is measured in.
        own: of the engines that were switched, with the run's own trend taken out. None: see ``reason``.
        against: of the differences to the engines that were not; None where there are none.
        verdict: ``up``, ``down``, ``none`` (no effect of a size that matters), ``not_yet``, ``unclear`` (too few
            observations, and no more will come, or too noisy), ``confounded``, ``unknown`` (not measured). By
            ``against`` where there is one.
        reason: of every verdict but up, down and none.
        more: for ``not_yet``, about how many more observations it takes; None if that can't be told.
        before, after: observations on either side; ``every`` says what one is: ``step``, or a time such as ``5 s``.
        samples_before, samples_after: what they are means over, in ``samples`` (tokens, requests, s).
        pulled: odd observations that were given less weight.
    """

    figure: str
    unit: str
    own: EffectEstimate | None
    against: EffectEstimate | None
    verdict: str
    reason: str = ""
    more: int | None = None
    every: str = "step"
    before: int = 0
    after: int = 0
    samples: str = ""
    samples_before: int = 0
    samples_after: int = 0
    pulled: int = 0


class Effect(msgspec.Struct, frozen=True):
    """What a command did to the run, as far as it can be told by now.

    Attributes:
        command, flag, old, new: the command and what it switched. reverts: the command that it took back, if it did.
        engines: that were switched. against: that were not, and are compared with.
        first_step, last_step: of the window. mixed: steps left out of it, with tokens from before and after.
        ended: why no later step will count; empty while the window is open.
        confounds: what else changed with the switch.
        rows: one per figure.
    """

    command: str
    flag: str
    old: str | None
    new: str | None
    engines: list[str]
    against: list[str]
    first_step: int | None
    last_step: int | None
    mixed: int
    ended: str
    confounds: list[str]
    rows: list[EffectRow]
    reverts: str = ""
