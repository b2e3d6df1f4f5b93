"""The runs of the fault bench: fault, settings and part of each. The parts were fixed before any tuning.

``tune`` runs may be inspected and used to choose thresholds; ``score`` runs are only scored; ``unseen`` runs were
scored once, after everything else was written. The parts consist of whole runs: seeds below 200 tune, seeds from 600 on
unseen, the others score. The runs are in the order of recording.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SCORE_SEED, FIRST_UNSEEN_SEED = 200, 600

UNRECORDED = frozenset({"kept-kv", "head-fp32-trainer", "v1-defaults"})
"""Faults without runs here: tests/live/test_incident_live.py shows them on a live fleet."""


@dataclass(frozen=True)
class Run:
    """One run of the demo.

    Attributes:
        fault: a name of ``backend/demo/faults.py``, or ``healthy``.
        seed: of prompts, sampling and the choice of matched sequences.
        at: step at which the fault begins.
        on: the engine with the fault; empty: the fault's default.
        steps: optimizer steps.
        objective: ``ppo`` or ``gspo``.
        engines: number of engines.
        temperature: of sampling; None: the fault's default, or 1.
        options: more options of ``rltop demo``.
    """

    fault: str
    seed: int
    at: int = 0
    on: str = ""
    steps: int = 24
    objective: str = "ppo"
    engines: int = 2
    temperature: float | None = None
    options: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """``tune``, ``score`` or ``unseen``."""
        if self.seed < FIRST_SCORE_SEED:
            return "tune"
        return "score" if self.seed < FIRST_UNSEEN_SEED else "unseen"

    @property
    def name(self) -> str:
        """Name of the run and of its directory: ``<fault>-<variant>-s<seed>``."""
        parts = [self.fault, "gspo" if self.objective == "gspo" else "grpo", f"{self.engines}e"]
        if self.temperature is not None:
            parts.append(f"t{self.temperature:g}")
        if self.at:
            parts.append(f"at{self.at}")
        if self.on:
            parts.append(self.on)
        parts += [option.strip("-").replace("=", "") for option in self.options]
        return "-".join([*parts, f"s{self.seed}"])

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``rltop demo``."""
        arguments = ["--steps", str(self.steps), "--seed", str(self.seed)]
        arguments += ["--objective", self.objective, "--engines", str(self.engines)]
        if self.fault != "healthy":
            arguments += ["--fault", self.fault]
        if self.at:
            arguments += ["--fault-at", str(self.at)]
        if self.on:
            arguments += ["--fault-engine", self.on]
        if self.temperature is not None:
            arguments += ["--temperature", str(self.temperature)]
        return [*arguments, *self.options]


HEALTHY_STEPS = 63
"""Sixteen healthy runs have more than a thousand steps."""

NO_FACTS = ("--no-facts",)


def _healthy(seed: int, objective: str = "ppo", engines: int = 2, temperature: float | None = None) -> Run:
    return Run("healthy", seed, steps=HEALTHY_STEPS, objective=objective, engines=engines, temperature=temperature)


RUNS: tuple[Run, ...] = (
    _healthy(100),
    Run("lying-replica", 107),
    Run("stale-prefix", 110),
    Run("stale-replica", 106, at=10, steps=26, engines=3),
    Run("raw-logprobs", 101),
    Run("trainer-temperature", 102, at=8),
    Run("top-p-processed", 103, at=10, steps=26),
    Run("top-p-raw", 104),
    Run("raw-temperature-silent", 105),
    Run("never-updated", 108),
    Run("head-not-updated", 109, objective="gspo"),
    Run("bf16-engine", 111),
    Run("head-fp32-one-side", 112),
    Run("shifted-logprobs", 113, at=9),
    Run("zero-padded-logprobs", 114),
    Run("dropped-mask", 115),
    Run("dropout", 116),
    Run("lag", 117),
    Run("entropy-collapse", 118, at=6, steps=26),
    Run("penalty-default", 119),
    Run("slow-engine", 120, engines=3),
    _healthy(121, "gspo", temperature=0.7),
    # score part from here on, with other settings too
    Run("raw-logprobs", 201, objective="gspo", engines=3),
    Run("trainer-temperature", 202, options=NO_FACTS),
    Run("top-p-processed", 203, objective="gspo", temperature=0.7, options=NO_FACTS),
    Run("top-p-raw", 204, at=10, steps=26, options=NO_FACTS),
    Run("raw-temperature-silent", 205, objective="gspo", options=NO_FACTS),
    Run("stale-replica", 206, temperature=0.7),
    Run("lying-replica", 207, at=10, on="e2", steps=26, objective="gspo", engines=3),
    Run("never-updated", 208, at=8),
    Run("head-not-updated", 209, at=10, steps=26, temperature=0.7),
    Run("stale-prefix", 210, at=10, steps=26),
    Run("bf16-engine", 211, engines=3, temperature=0.7),
    Run("head-fp32-one-side", 212, objective="gspo", options=NO_FACTS),
    Run("shifted-logprobs", 213, temperature=0.7),
    Run("zero-padded-logprobs", 214, at=10, steps=26, engines=3),
    Run("dropped-mask", 215, at=8, objective="gspo"),
    Run("dropout", 216, at=8),
    Run("lag", 217, at=8, steps=30, objective="gspo"),
    Run("entropy-collapse", 218, engines=3),
    Run("penalty-default", 219, temperature=0.7),
    Run("slow-engine", 220, at=10, on="e0", steps=26),
    # healthy: two objectives, two temperatures, two sizes of fleet, in both parts
    _healthy(221),
    _healthy(222, "gspo"),
    _healthy(122, engines=3),
    _healthy(223, temperature=0.7),
    _healthy(123, "gspo"),
    _healthy(224, "gspo", engines=3),
    _healthy(124, temperature=0.7),
    _healthy(225, "gspo", temperature=0.7),
    _healthy(125, "gspo", engines=3),
    _healthy(226, engines=3, temperature=0.7),
    _healthy(126, engines=3, temperature=0.7),
    _healthy(227, engines=3),
    _healthy(127, "gspo", engines=3, temperature=0.7),
    _healthy(228, "gspo", engines=3, temperature=0.7),
    # each fault again, with the settings permuted
    Run("raw-logprobs", 131, engines=3, objective="gspo", options=NO_FACTS),
    Run("trainer-temperature", 231, at=8, objective="gspo", engines=3),
    Run("top-p-processed", 132, temperature=0.7),
    Run("top-p-raw", 232, objective="gspo", engines=3),
    Run("raw-temperature-silent", 133, objective="gspo", engines=3),
    Run("stale-replica", 233, at=8, on="e0", objective="gspo"),
    Run("lying-replica", 134, temperature=0.7, objective="gspo"),
    Run("never-updated", 234, temperature=0.7, objective="gspo", engines=3),
    Run("head-not-updated", 135, engines=3),
    Run("stale-prefix", 235, temperature=0.7, engines=3),
    Run("bf16-engine", 136, temperature=0.7, objective="gspo"),
    Run("head-fp32-one-side", 236, temperature=0.7),
    Run("shifted-logprobs", 137, objective="gspo", engines=3),
    Run("zero-padded-logprobs", 237, temperature=0.7, objective="gspo"),
    Run("dropped-mask", 138, at=8, engines=3, temperature=0.7),
    Run("dropout", 238, engines=3, temperature=0.7),
    Run("lag", 139, at=8, steps=30, temperature=0.7),
    Run("entropy-collapse", 239, at=6, steps=26, objective="gspo", temperature=0.7),
    Run("penalty-default", 140, objective="gspo", options=NO_FACTS),
    Run("slow-engine", 240, engines=3, temperature=0.7),
    # unseen part: temperatures, fleet sizes and onsets that no run above has
    Run("healthy", 621, steps=40, temperature=0.6),
    Run("zero-padded-logprobs", 614, temperature=1.1, objective="gspo"),
    Run("lying-replica", 607, at=4, temperature=0.6, engines=3, on="e2"),
    Run("stale-prefix", 610, at=4, temperature=0.9, objective="gspo"),
    Run("raw-logprobs", 601, temperature=1.25),
    Run("never-updated", 608, temperature=0.6, options=NO_FACTS),
    Run("entropy-collapse", 618, temperature=1.1, at=3),
    Run("healthy", 622, steps=40, engines=3, temperature=1.1, objective="gspo"),
    Run("dropout", 616, temperature=1.1, at=4),
    Run("trainer-temperature", 602, temperature=0.6, at=4),
    Run("head-not-updated", 609, temperature=0.9, engines=3, at=4),
    Run("bf16-engine", 611, temperature=0.6),
    Run("top-p-processed", 603, temperature=0.9, at=4),
    Run("stale-replica", 606, temperature=0.6, at=4),
    Run("shifted-logprobs", 613, temperature=0.6, at=4, options=NO_FACTS),
    Run("healthy", 623, steps=40, engines=1, temperature=0.9, options=("--matched", "0")),
    Run("head-fp32-one-side", 612, temperature=0.9),
    Run("lag", 617, at=4, steps=28, temperature=0.6),
    Run("penalty-default", 619, temperature=0.6),
    Run("dropped-mask", 615, temperature=0.6, at=4),
    Run("slow-engine", 620, engines=3, temperature=1.1, at=4),
)
