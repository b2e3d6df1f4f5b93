"""Facts of engines that must match each other and the trainer, and the reasons. Data and pure functions.

A fact that an engine or the trainer does not state is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from rltop.backend import api
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.wire import EngineState

Facts = Mapping[str, str]
"""The facts of one engine or of the trainer, by name."""

FLEET, TRAINER = "fleet", "trainer"
"""What an engine's fact is compared with."""

FLAG_NAMES = frozenset(flag.name for flag in FLAGS)

_DTYPES = {
    "fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16",
    "fp64": "float64", "double": "float64",
}  # fmt: skip


def same_text(one: str, other: str) -> bool:
    """Equal as numbers, as names of dtypes (``torch.float32`` is ``fp32``), or as text in any case."""
    return _plain(one) == _plain(other)


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        word = text.strip().lower().removeprefix("torch.").removeprefix("numpy.")
        return _DTYPES.get(word, word)


def same_top_k(one: str, other: str) -> bool:
    """Equal values of top_k; 0, -1 and ``none`` all mean no truncation."""
    return same_text(*("0" if text.strip().lower() in ("-1", "none", "off") else text for text in (one, other)))


def same_model(one: str, other: str) -> bool:
    """Equal last parts of the path: each machine may have its copy elsewhere."""
    return PurePath(one).name == PurePath(other).name


@dataclass(frozen=True)
class Fact:
    """One property of an engine's computation.

    Attributes:
        name: as in ``EngineState.fingerprint`` or ``EngineState.flags``, and in the trainer's facts.
        means: its description.
        why: the effect of a mismatch on the run; empty for flags, which describe their own effect.
        fleet: must be the same on all live engines.
        trainer: must match the trainer's on every engine.
        same: compares two values.
    """

    name: str
    means: str
    why: str
    fleet: bool = True
    trainer: bool = False
    same: Callable[[str, str], bool] = same_text


_SAMPLING_WHY = "the trainer's logprobs describe another distribution than the sampled one"

FACTS: tuple[Fact, ...] = (
    Fact("model", "checkpoint that the engine was started with", "they may be different models",
         trainer=True, same=same_model),
    Fact("vllm_version", "version of vLLM", "other kernels and defaults: logprobs of equal tokens differ"),
    Fact("model_runner", "vLLM's model runner (V1 or V2)", "they have different samplers"),
    Fact("attention_backend", "attention kernels", "other rounding: logprobs of equal tokens differ"),
    Fact("dtype", "dtype of the forward", "other rounding: the gap grows with the length of an answer",
         trainer=True),
    Fact("head_dtype", "dtype of logits", "rounding affects the last digits of logprobs on one side only",
         trainer=True),
    Fact("quantization", "of the weights", "engines sample from other weights than are trained", trainer=True),
    Fact("kv_cache_dtype", "dtype of cached keys and values", "other rounding: the gap grows with the context length"),
    *(Fact(flag.name, flag.summary, "") for flag in FLAGS),
    Fact("temperature", "of recent requests with logprobs", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("top_p", "of recent requests: share of probability that is kept", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("top_k", "of recent requests: number of tokens that are kept", _SAMPLING_WHY, fleet=False, trainer=True,
         same=same_top_k),
    Fact("min_p", "of recent requests: least probability that is kept", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("repetition_penalty", "of recent requests", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("presence_penalty", "of recent requests", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("frequency_penalty", "of recent requests", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("default_sampling", "values of parameters that requests leave unset",
         "logprobs of such requests describe another distribution than is trained"),
    Fact("sampling_path", "sampler implementation", "other rounding at the edge of top-p and top-k"),
    Fact("parallel", "how the model is sharded", "sums in another order: other rounding"),
    Fact("speculative", "speculative decoding", "logprobs and timing differ"),
    Fact("enforce_eager", "no CUDA graphs, no compilation", "other kernels: other rounding"),
    Fact("device", "device type", "other kernels: other rounding"),
    Fact("torch_version", "version of torch", "other kernels: other rounding"),
)  # fmt: skip

BY_NAME: dict[str, Fact] = {fact.name: fact for fact in FACTS}

NEUTRAL = {
    "temperature": "1", "top_p": "1", "top_k": "0", "min_p": "0", "repetition_penalty": "1", "presence_penalty": "0",
    "frequency_penalty": "0",
}  # fmt: skip
"""The value at which each sampling parameter leaves the model's distribution unchanged."""

AND = "; "
"""Separates several explanations of one fact."""

MIXED = ", "
"""Separates the values of a fact that has several: requests and ranks may differ."""


@dataclass(frozen=True)
class Difference:
    """A mismatching fact of one engine.

    Attributes:
        fact: name of the fact.
        engine: id of the engine.
        against: ``FLEET`` or ``TRAINER``.
        value: the engine's value.
        explanation: the other values, or the problem, as text.
    """

    fact: str
    engine: str
    against: str
    value: str
    explanation: str


def of_engine(engine: api.Engine | EngineState) -> dict[str, str]:
    """All facts of an engine: its fingerprint, and the current values of its flags."""
    flags = {name: shown(state.value, state.detail) for name, state in engine.flags.items() if state.value is not None}
    return {**engine.fingerprint, **flags}


def shown(value: str | None, detail: str = "") -> str:
    """A flag's value with its detail: ``off (strict)``."""
    return f"{value or 'unknown'} ({detail})" if detail else value or "unknown"


def compare(engines: Mapping[str, Facts], trainer: Facts) -> list[Difference]:
    """All mismatches, in the order of the table.

    Args:
        engines: facts by engine id, of the engines that count.
        trainer: facts that the trainer states; may be empty.
    """
    found = []
    for fact in FACTS:
        values = {engine: facts[fact.name] for engine, facts in engines.items() if fact.name in facts}
        if fact.fleet:
            found += _within(fact, values)
        if fact.trainer and fact.name in trainer:
            found += _with_trainer(fact, values, trainer[fact.name])
    for engine, facts in engines.items():
        found += _raw_logprobs(engine, facts, trainer) + _defaults(engine, facts, trainer)
    return found


def _within(fact: Fact, values: Facts) -> list[Difference]:
    """The engines outside the majority, or all engines if there is no majority."""
    groups: list[tuple[str, list[str]]] = []
    for engine, value in values.items():
        group = next((engines for known, engines in groups if fact.same(known, value)), None)
        if group is None:
            groups.append((value, group := []))
        group.append(engine)
    if len(groups) < 2:
        return []
    found = []
    for value, engines in groups:
        if 2 * len(engines) > len(values):
            continue  # the majority
        others = AND.join(has(whose, other) for other, whose in groups if whose is not engines)
        found += [Difference(fact.name, engine, FLEET, value, others) for engine in engines]
    return found


def _with_trainer(fact: Fact, values: Facts, stated: str) -> list[Difference]:
    return [
        Difference(fact.name, engine, TRAINER, value, f"the trainer states {stated}")
        for engine, value in values.items()
        if not any(fact.same(one, other) for one in value.split(MIXED) for other in stated.split(MIXED))
    ]


def _raw_logprobs(engine: str, facts: Facts, trainer: Facts) -> list[Difference]:
    """Raw logprobs omit sampling parameters, which only the trainer or the requests state."""
    value = facts.get("logprobs_mode", "")
    if not value.startswith("raw"):
        return []
    used = {name: trainer.get(name, facts.get(name, idle)) for name, idle in NEUTRAL.items()}
    shaped = [
        f"{name} {value}"
        for name, value in used.items()
        if not any(_is(name, one, NEUTRAL[name]) for one in value.split(MIXED))
    ]
    explanation = f"raw logprobs leave out {some(shaped)}, which makes every ratio wrong"
    return [Difference("logprobs_mode", engine, TRAINER, value, explanation)] if shaped else []


def _defaults(engine: str, facts: Facts, trainer: Facts) -> list[Difference]:
    """Sampling parameters from a model's ``generation_config`` that do not match the trainer's."""
    filled = defaults(facts)
    wrong = [
        f"{name} {value} where the trainer states {trainer[name]}"
        for name, value in filled.items()
        if name in trainer and not any(_is(name, value, other) for other in trainer[name].split(MIXED))
    ]
    if not wrong:
        return []
    explanation = f"requests without their own value get {some(wrong)}"
    return [Difference("default_sampling", engine, TRAINER, facts["default_sampling"], explanation)]


def defaults(facts: Facts) -> dict[str, str]:
    """The values that an engine uses for sampling parameters that requests leave unset, by name."""
    pairs = (part.partition("=") for part in facts.get("default_sampling", "").split(MIXED))
    return {name: value for name, equals, value in pairs if equals}


def is_neutral(name: str, sides: Iterable[Facts], trainer: Facts) -> bool | None:
    """Whether a sampling parameter has no effect: all ``sides`` state its neutral value, and the trainer no other one.

    None if a side does not state it.
    """
    stated = [side.get(name) for side in sides]
    used = [value for value in (*stated, trainer.get(name)) if value is not None]
    if any(not _is(name, one, NEUTRAL.get(name, "none")) for value in used for one in value.split(MIXED)):
        return False
    return True if stated and None not in stated else None


def _is(name: str, one: str, other: str) -> bool:
    return BY_NAME[name].same(one, other) if name in BY_NAME else same_text(one, other)


def some(names: list[str], most: int = 4) -> str:
    """An abbreviated list: ``e0, e1 and 6 more``."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def because(fact: str) -> str:
    """The effect of a mismatch of this fact, as a suffix of its description."""
    why = BY_NAME[fact].why if fact in BY_NAME else ""
    return f"; {why}" if why else ""


def has(engines: list[str], value: str) -> str:
    """Engines and their value: ``e0, e1 have float32``."""
    return f"{some(engines)} {'has' if len(engines) == 1 else 'have'} {value}"


def by_engine(found: list[Difference]) -> dict[str, dict[str, str]]:
    """The explanations of each mismatching engine, by fact."""
    explanations: dict[str, dict[str, str]] = {}
    for one in found:
        facts = explanations.setdefault(one.engine, {})
        facts[one.fact] = f"{facts[one.fact]}{AND}{one.explanation}" if one.fact in facts else one.explanation
    return explanations
