"""Real faults that a demo run can be started with, to see how they show.

The command's help and docs/demo.md are made from this table; engines and trainer act on its fields. Engine faults are
in ``engines/engine_process.py``, checkpoint faults in ``supervisor.py``, trainer faults in ``rl/demo_trainer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault; the defaults are a healthy run.

    Attributes:
        name: on the command line; empty for the healthy run.
        codes: the causes that it is an instance of, the best one first: a letter for the layer (A rollout logprobs, B
            weights, C caches, D numerics, I trainer, J dynamics, K speed) and a number.
        help: what goes wrong, in one line.
        where: the faulty component: ``engine``, ``trainer``, ``checkpoint``.
        engine: the only faulty engine; empty if it is not limited to one.
        at: the step that it starts with.
        launch: it exists from the launch and can't start later.
        first: the first step whose rows show it, counted from ``at``.
        temperature: default sampling temperature of the run.

        loads_weights: an update loads the new weights.
        moves_version: an update that loads no weights still moves the engine's version.
        clears_cache: an update clears the KV that older weights computed.
        unshared: samples per group that share no prefix with any other request, so that there are cache misses.
        logprobs_mode: vLLM's logprobs mode.
        top_p: of sampling.
        dtype, head_dtype: of the engine's weights, and of its head (empty: the same).
        repetition_penalty: in the checkpoint's ``generation_config.json``, for requests that leave it unset.
        slow_ms: delay added to every forward pass.

        burst: steps that are sampled together and then trained on one after the other.
        withheld: tensors that the trainer leaves out of every update.
        trainer_temperature: of the trainer's logprobs, regardless of its stated one; None: the sampling temperature.
        bf16: the trainer computes in bf16, head included (autocast; its weights stay fp32).
        trainer_head_fp32: the trainer's head computes in fp32 nevertheless.
        dropout: attention dropout in the training pass.
        shift: tokens by which the trainer's copy of the rollout logprobs is late.
        zeroed: tokens at the end of an answer whose rollout logprobs are 0.0 in the trainer's copy.
        trains_padding: the loss mask includes padding.
        entropy_bonus: weight of the entropy in the objective; negative values punish it.
    """

    name: str = ""
    codes: tuple[str, ...] = ()
    help: str = ""
    where: str = ""
    engine: str = ""
    at: int = 0
    launch: bool = False
    first: int = 0
    temperature: float = 1.0

    loads_weights: bool = True
    moves_version: bool = True
    clears_cache: bool = True
    unshared: int = 0
    logprobs_mode: str = "processed_logprobs"
    top_p: float = 1.0
    dtype: str = "float32"
    head_dtype: str = ""
    repetition_penalty: float = 1.0
    slow_ms: float = 0.0

    burst: int = 1
    withheld: tuple[str, ...] = ()
    trainer_temperature: float | None = None
    bf16: bool = False
    trainer_head_fp32: bool = False
    dropout: float = 0.0
    shift: int = 0
    zeroed: int = 0
    trains_padding: bool = False
    entropy_bonus: float = 0.0

    @property
    def description(self) -> str:
        """``help`` with the engine of this run."""
        return self.help.replace("e1", self.engine)

    def on(self, engine: str) -> Fault:
        """The fault as it applies to ``engine``."""
        return self if self.engine in ("", engine) else HEALTHY

    def during(self, step: int) -> Fault:
        """The fault as it applies to sampling and training of ``step`` and to the update that follows."""
        return self if step >= self.at else HEALTHY


HEALTHY = Fault()

FAULTS: tuple[Fault, ...] = (
    Fault(
        name="raw-logprobs",
        codes=("A1",),
        help="engines return logprobs before temperature (0.7), the trainer computes them after temperature",
        where="engine",
        launch=True,
        temperature=0.7,
        logprobs_mode="raw_logprobs",
    ),
    Fault(
        name="trainer-temperature",
        codes=("A2",),
        help="the trainer does not divide by the temperature (0.7), but states that it does",
        where="trainer",
        temperature=0.7,
        trainer_temperature=1.0,
    ),
    Fault(
        name="top-p-processed",
        codes=("A4",),
        help="requests use top_p 0.9 and rollout logprobs are after it; the trainer uses the whole distribution",
        where="engine",
        top_p=0.9,
    ),
    Fault(
        name="top-p-raw",
        codes=("A5",),
        help="requests use top_p 0.9, but rollout and trainer logprobs are of the whole distribution: no gap shows it",
        where="engine",
        top_p=0.9,
        logprobs_mode="raw_logprobs",
    ),
    Fault(
        name="raw-temperature-silent",
        codes=("A5",),
        help="sampled at 0.7, but rollout and trainer logprobs are at 1: no gap shows it; the trainer states 0.7",
        where="engine and trainer",
        launch=True,
        temperature=0.7,
        logprobs_mode="raw_logprobs",
        trainer_temperature=1.0,
    ),
    Fault(
        name="zero-padded-logprobs",
        codes=("A13",),
        help="the trainer lost the rollout logprobs of the last four tokens of every answer and has 0.0 instead",
        where="trainer",
        zeroed=4,
    ),
    Fault(
        name="shifted-logprobs",
        codes=("A12",),
        help="the trainer's copy of the rollout logprobs is shifted by one token",
        where="trainer",
        shift=1,
    ),
    Fault(
        name="penalty-default",
        codes=("A6", "A7"),
        help="the checkpoint's generation_config.json has a repetition penalty of 1.1; requests leave it unset",
        where="checkpoint",
        launch=True,
        repetition_penalty=1.1,
    ),
    Fault(
        name="lag",
        codes=("B1",),
        help="eight steps are sampled at once and then trained on in turn, so the policy lag grows within each burst",
        where="trainer",
        first=3,
        burst=8,
    ),
    Fault(
        name="never-updated",
        codes=("B2",),
        help="no engine loads weight updates, but their versions advance",
        where="engine",
        first=1,
        loads_weights=False,
    ),
    Fault(
        name="head-not-updated",
        codes=("B3",),
        help="updates leave out lm_head.weight, so engines have a new body and the initial head",
        where="trainer",
        first=1,
        withheld=("lm_head.weight",),
    ),
    Fault(
        name="stale-replica",
        codes=("B6",),
        help="e1 loads no weight updates, and its version stays at 0",
        where="engine",
        engine="e1",
        first=1,
        loads_weights=False,
        moves_version=False,
    ),
    Fault(
        name="lying-replica",
        codes=("B6",),
        help="e1 loads no weight updates, but its version advances",
        where="engine",
        engine="e1",
        first=1,
        loads_weights=False,
    ),
    Fault(
        name="stale-prefix",
        codes=("C1",),
        help="updates keep the prefix cache, so prompts hit KV of older weights (one in four is salted and misses)",
        where="engine",
        first=1,
        clears_cache=False,
        unshared=2,
    ),
    Fault(
        name="kept-kv",
        codes=("C2",),
        help="updates keep the KV of requests in flight, so answers continue on stale KV (no prompt is shared)",
        where="engine",
        first=1,
        clears_cache=False,
        unshared=8,
    ),
    Fault(
        name="bf16-engine",
        codes=("D1",),
        help="engines compute in bf16, the trainer in fp32",
        where="engine",
        launch=True,
        dtype="bfloat16",
    ),
    Fault(
        name="head-fp32-one-side",
        codes=("D2",),
        help="engines and trainer compute in bf16, but the engines' head is fp32 and the trainer's is not",
        where="engine and trainer",
        launch=True,
        dtype="bfloat16",
        head_dtype="float32",
        bf16=True,
    ),
    Fault(
        name="head-fp32-trainer",
        codes=("D2",),
        help="engines and trainer compute in bf16, but the trainer's head is fp32 and the engines' is not",
        where="engine and trainer",
        launch=True,
        dtype="bfloat16",
        bf16=True,
        trainer_head_fp32=True,
    ),
    Fault(
        name="v1-defaults",
        codes=("A1", "C2", "C1", "D2"),
        help="four at once, as a migration to vLLM V1 meets them: raw logprobs (0.7), prefix cache and KV of requests "
        "kept across updates, engines' heads in bf16 beside the trainer's in fp32",
        where="engine and trainer",
        launch=True,
        temperature=0.7,
        logprobs_mode="raw_logprobs",
        clears_cache=False,
        dtype="bfloat16",
        bf16=True,
        trainer_head_fp32=True,
    ),
    Fault(
        name="dropout",
        codes=("I1",),
        help="the training pass has attention dropout of 0.1",
        where="trainer",
        dropout=0.1,
    ),
    Fault(
        name="dropped-mask",
        codes=("I5",),
        help="the loss mask is lost: padding after short answers is trained on, with a rollout logprob of 0.0",
        where="trainer",
        trains_padding=True,
    ),
    Fault(
        name="entropy-collapse",
        codes=("J1",),
        help="the objective punishes entropy (wrong sign); the backend is healthy",
        where="trainer",
        first=1,
        entropy_bonus=-2.0,
    ),
    Fault(
        name="slow-engine",
        codes=("K1",),
        help="every forward pass of e1 takes 40 ms longer, so it is several times slower",
        where="engine",
        engine="e1",
        slow_ms=40.0,
    ),
)

BY_NAME = {fault.name: fault for fault in (HEALTHY, *FAULTS)}


def as_markdown() -> str:
    """The table of docs/demo.md."""
    rows = [f"| `{f.name}` | {', '.join(f.codes)} | {f.help} | {f.where} | {_since(f)} |" for f in FAULTS]
    return "\n".join(["| name | cause | what goes wrong | in | begins |", "|---|---|---|---|---|", *rows])


def _since(fault: Fault) -> str:
    return "launch" if fault.launch else "any step"


if __name__ == "__main__":
    print(as_markdown())  # noqa: T201
