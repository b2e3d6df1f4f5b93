"""The effect of a switch as viewers get it. Pure data; ``rltop.backend.effects.estimate`` computes it."""

from __future__ import annotations

import msgspec


class EffectEstimate(msgspec.Struct, frozen=True):
    """Fitted levels of a figure right before and after a switch, their difference, and its 95 % interval."""

    before: float
    after: float
    difference: float
    low: float
    high: float


class EffectRow(msgspec.Struct, frozen=True):
    """The effect of a switch on one figure.

    Attributes:
        figure, unit: a name of ``rltop.backend.effects.estimate.FIGURES``, and its unit.
        own: estimate for the switched engines, with the run's trend removed; None for the reason in ``reason``.
        against: estimate for their difference to the control group; None without one.
        verdict: ``up``, ``down``, ``none`` (no relevant effect), ``not_yet``, ``unclear`` (too noisy, or too few
            observations and no more will come), ``confounded``, ``unknown`` (not measured). By ``against`` if there is
            a control group.
        reason: of every verdict except up, down and none.
        more: for ``not_yet``, approximate number of further observations that it takes; None if not known.
        before, after: number of observations on either side. every: what one is: ``step``, or a time such as ``5 s``.
        samples_before, samples_after: number of samples behind them, of the unit ``samples`` (tokens, requests, s).
        pulled: number of outliers, which were winsorised.
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
    """The effect of a command on the run so far.

    Attributes:
        command, flag, old, new: the command and its switch. reverts: the command that it reverted, if any.
        engines: switched engines. against: the control group.
        first_step, last_step: of the window. mixed: steps excluded from it, with tokens from before and after.
        ended: reason that no later step will count; empty while the window is open.
        confounds: other changes at the switch.
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
