"""Options of a demo run, validated before any process starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rltop.backend.demo.faults import BY_NAME as FAULTS
from rltop.backend.demo.faults import Fault
from rltop.backend.util.near import did_you_mean
from rltop.collectors.contract.flags import BY_NAME

MODEL = Path(__file__).parent / "sort-sft"
"""The initial checkpoint, made by ``rl/pretrain.py``."""

OBJECTIVES = ("ppo", "gspo")


@dataclass(frozen=True)
class Setting:
    """Set ``flag`` to ``value`` on all engines when ``step`` closes."""

    step: int
    flag: str
    value: str

    def __str__(self) -> str:
        return f"{self.step}:{self.flag}={self.value}"


def parse_setting(text: str) -> Setting:
    """Read ``N:FLAG=VALUE``.

    Raises:
        ValueError: wrong form, unknown flag or value; the message names the valid ones.
    """
    number, colon, rest = text.partition(":")
    flag, equals, value = rest.partition("=")
    if not (colon and equals and number.isascii() and number.isdigit()):
        raise ValueError(f"--set {text!r}: expected N:FLAG=VALUE, such as 5:prefix_caching=off")
    if flag not in BY_NAME:
        raise ValueError(
            f"--set {text!r}: no flag {flag!r}; there are {', '.join(BY_NAME)}{did_you_mean(flag, BY_NAME)}"
        )
    if value not in BY_NAME[flag].values:
        values = BY_NAME[flag].values
        hint = did_you_mean(value, values)
        raise ValueError(f"--set {text!r}: {flag} can be {' or '.join(values)}, not {value!r}{hint}")
    return Setting(int(number), flag, value)


@dataclass(frozen=True)
class DemoOptions:
    """One demo run.

    Attributes:
        run: name of the run and its directory.
        steps: optimizer steps.
        settings: flags to switch, with their steps.
        seed: for prompts, sampling, and the choice of matched sequences.
        temperature: of sampling and the trainer's logprobs; None: the fault's, or 1.
        engines: number of vLLM engines.
        objective: ``ppo`` or ``gspo``.
        matched: sequences per step whose logprobs are recomputed under their own rollout versions.
        json_path: file for the whole run as one JSON object.
        fault: name of a fault in ``faults.FAULTS``; empty for none.
        fault_at: the step that the fault starts with.
        fault_engine: the faulty engine; empty: the fault's default.
        facts: the trainer states its configuration to rltop.
        keep_hub: leave the hub running at the end, for viewers.

    Raises:
        ValueError: an invalid value; the message names it.
    """

    run: str = "sort"
    steps: int = 60
    settings: tuple[Setting, ...] = ()
    seed: int = 0
    temperature: float | None = None
    engines: int = 2
    objective: str = "ppo"
    matched: int = 16
    json_path: Path | None = None
    keep_hub: bool = False
    fault: str = ""
    fault_at: int = 0
    fault_engine: str = ""
    facts: bool = True

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"fault: {self.fault!r}; expected one of {', '.join(filter(None, FAULTS))}")
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps}; expected 1 or more")
        if not 1 <= self.engines <= 8:
            raise ValueError(f"engines: {self.engines}; expected 1 to 8")
        if not 0 < self.sampled_at <= 10:
            raise ValueError(f"temperature: {self.temperature}; expected more than 0, at most 10")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective: {self.objective!r}; expected {' or '.join(OBJECTIVES)}")
        if self.matched < 0:
            raise ValueError(f"matched: {self.matched}; expected 0 or more")
        self._check_fault()
        if self.injected.engine not in ("", *self.engine_ids):
            raise ValueError(
                f"fault {self.fault}: it needs engine {self.injected.engine}; engines are {self.engine_ids}"
            )
        for setting in self.settings:
            if setting.step >= self.steps:
                raise ValueError(f"--set {setting}: the last of {self.steps} steps is {self.steps - 1}")

    def _check_fault(self) -> None:
        known = FAULTS[self.fault]
        if not 0 <= self.fault_at < self.steps:
            raise ValueError(f"--fault-at: {self.fault_at}; expected 0 to {self.steps - 1}")
        if self.fault_at and (known.launch or not self.fault):
            why = f"{self.fault} exists from the launch" if self.fault else "there is no fault"
            raise ValueError(f"--fault-at: {why}, so it can't start at step {self.fault_at}")
        if self.fault_engine and not known.engine:
            raise ValueError(
                f"--fault-engine: {self.fault or 'no fault'} is not limited to one engine; leave the option out"
            )

    @property
    def injected(self) -> Fault:
        """The fault of this run; ``faults.HEALTHY`` for none."""
        known = FAULTS[self.fault]
        return dataclasses.replace(known, at=self.fault_at, engine=self.fault_engine or known.engine)

    @property
    def sampled_at(self) -> float:
        """The temperature of the run."""
        return FAULTS[self.fault].temperature if self.temperature is None else self.temperature

    @property
    def engine_ids(self) -> list[str]:
        """``e0``, ``e1``, ..."""
        return [f"e{index}" for index in range(self.engines)]
