"""Faults that a demo run can be started with: real ones, for seeing what they look like.

A table: the command's help and docs/demo.md are made of it, and its fields are what engines and trainer act on.
``engine.py`` is where an engine goes wrong, ``run.py`` its checkpoint, ``trainer.py`` the trainer and what it hands on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong; the defaults are a healthy run.

    Attributes:
        name: what the command line calls it; empty of the healthy run.
        codes: the causes it is an instance of: a letter for the layer (A record, B weights, C caches, D numerics, I
            trainer, J dynamics, K speed) and a number; the first is the one to name.
        help: what happens, in a line.
        where: whose code does it: ``engine``, ``trainer``, ``checkpoint``.
        engine: the one engine it is on; empty where it is not on one alone.
        at: the step it begins with.
        launch: it is there from the launch on, and can't begin later.
        first: the first step whose rows it is in, counted from ``at``.
        temperature: of sampling, where the run is not told another.

        loads: an update brings the new weights.
        labels: an update that brings no weights moves the engine's version nevertheless, or not.
        clears: an update forgets the KV that older weights computed.
        apart: of the samples of a group, those that share no prefix with anything, so that there are misses.
        logprobs_mode: which logprobs vLLM records.
        top_p: of sampling.
        dtype, head_dtype: of the engine's weights, and of its head (empty: the same).
        repetition_penalty: what the checkpoint's ``generation_config.json`` has requests get that don't say.
        slow_ms: what every pass of the model takes longer.

        burst: steps that are sampled at once, and then trained on one after the other.
        keeps_back: tensors that the trainer leaves out of every update.
        trainer_temperature: of the trainer's logprobs, whatever it says; None: the one of sampling.
        bf16: the trainer computes in bf16, head and all (autocast; its weights stay fp32).
        trainer_head_fp32: but for its head, which computes in fp32.
        dropout: of the attention, in the pass that is trained on.
        shift: the trainer's copy of the recorded logprobs is so many tokens late.
        padded: tokens at the end of an answer whose logprobs the trainer lost, and has 0.0 for.
        trains_padding: the mask lets padding into the loss.
        entropy_bonus: weight of the entropy in the objective; below 0 it is punished.
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

    loads: bool = True
    labels: bool = True
    clears: bool = True
    apart: int = 0
    logprobs_mode: str = "processed_logprobs"
    top_p: float = 1.0
    dtype: str = "float32"
    head_dtype: str = ""
    repetition_penalty: float = 1.0
    slow_ms: float = 0.0

    burst: int = 1
    keeps_back: tuple[str, ...] = ()
    trainer_temperature: float | None = None
    bf16: bool = False
    trainer_head_fp32: bool = False
    dropout: float = 0.0
    shift: int = 0
    padded: int = 0
    trains_padding: bool = False
    entropy_bonus: float = 0.0

    @property
    def told(self) -> str:
        """``help``, of the engine that has it."""
        return self.help.replace("e1", self.engine)

    def on(self, engine: str) -> Fault:
        """What ``engine`` has of it."""
        return self if self.engine in ("", engine) else HEALTHY

    def during(self, step: int) -> Fault:
        """What there is of it while ``step`` is sampled and trained, or in the update that ends it."""
        return self if step >= self.at else HEALTHY


HEALTHY = Fault()

FAULTS: tuple[Fault, ...] = (
    Fault(
        name="raw-logprobs",
        codes=("A1",),
        help="engines record logprobs from before the temperature (0.7), the trainer's are from after it",
        where="engine",
        launch=True,
        temperature=0.7,
        logprobs_mode="raw_logprobs",
    ),
    Fault(
        name="trainer-temperature",
        codes=("A2",),
        help="the trainer forgets to divide by the temperature (0.7), and says that it does",
        where="trainer",
        temperature=0.7,
        trainer_temperature=1.0,
    ),
    Fault(
        name="top-p-processed",
        codes=("A4",),
        help="requests ask for top_p 0.9, and the record is of what is left; the trainer has the whole distribution",
        where="engine",
        top_p=0.9,
    ),
    Fault(
        name="top-p-raw",
        codes=("A5",),
        help="requests ask for top_p 0.9, yet record and trainer are of the whole distribution: no gap shows it",
        where="engine",
        top_p=0.9,
        logprobs_mode="raw_logprobs",
    ),
    Fault(
        name="raw-temperature-silent",
        codes=("A5",),
        help="sampled at 0.7, yet recorded and trained as if at 1: no gap shows it; the trainer says 0.7",
        where="engine and trainer",
        launch=True,
        temperature=0.7,
        logprobs_mode="raw_logprobs",
        trainer_temperature=1.0,
    ),
    Fault(
        name="zero-padded-logprobs",
        codes=("A13",),
        help="the trainer lost the logprobs of the last four tokens of every answer, and has 0.0 for them",
        where="trainer",
        padded=4,
    ),
    Fault(
        name="shifted-logprobs",
        codes=("A12",),
        help="the trainer's copy of the recorded logprobs is late by one token",
        where="trainer",
        shift=1,
    ),
    Fault(
        name="penalty-default",
        codes=("A6", "A7"),
        help="the checkpoint's generation_config.json has a repetition penalty of 1.1; requests don't say",
        where="checkpoint",
        launch=True,
        repetition_penalty=1.1,
    ),
    Fault(
        name="lag",
        codes=("B1",),
        help="eight steps are sampled at once, then trained on, so what is trained on gets ever older until the next",
        where="trainer",
        first=3,
        burst=8,
    ),
    Fault(
        name="never-updated",
        codes=("B2",),
        help="no engine gets weight updates, yet their versions advance",
        where="engine",
        first=1,
        loads=False,
    ),
    Fault(
        name="head-not-updated",
        codes=("B3",),
        help="updates leave out lm_head.weight, so engines have a new body and the first head",
        where="trainer",
        first=1,
        keeps_back=("lm_head.weight",),
    ),
    Fault(
        name="stale-replica",
        codes=("B6",),
        help="e1 gets no weight updates, and its version says so",
        where="engine",
        engine="e1",
        first=1,
        loads=False,
        labels=False,
    ),
    Fault(
        name="lying-replica",
        codes=("B6",),
        help="e1 gets no weight updates, yet its version advances",
        where="engine",
        engine="e1",
        first=1,
        loads=False,
    ),
    Fault(
        name="stale-prefix",
        codes=("C1",),
        help="updates leave the prefix cache, so prompts hit KV of older weights (one in four has a salt, and misses)",
        where="engine",
        first=1,
        clears=False,
        apart=2,
    ),
    Fault(
        name="kept-kv",
        codes=("C2",),
        help="updates leave the KV of requests in flight, so their answers end on older weights' (no prompt is shared)",
        where="engine",
        first=1,
        clears=False,
        apart=8,
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
        name="dropout",
        codes=("I1",),
        help="the pass that is trained on drops a tenth of the attention",
        where="trainer",
        dropout=0.1,
    ),
    Fault(
        name="dropped-mask",
        codes=("I5",),
        help="the trainer's mask is lost: padding after short answers is trained on, with a recorded logprob of 0.0",
        where="trainer",
        trains_padding=True,
    ),
    Fault(
        name="entropy-collapse",
        codes=("J1",),
        help="the objective punishes entropy (a wrong sign); nothing is wrong with the backend",
        where="trainer",
        first=1,
        entropy_bonus=-2.0,
    ),
    Fault(
        name="slow-engine",
        codes=("K1",),
        help="every pass of e1's model takes 40 ms longer, so it is several times slower",
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
