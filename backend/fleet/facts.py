"""Which facts of engines must agree, with each other and with what the trainer says, and why. Data and pure functions.

A fact that an engine or the trainer does not state is not compared: absent is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from rltop.backend import api
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.wire import EngineState

Facts = Mapping[str, str]
"""Of one engine or of the trainer, by name."""

FLEET, TRAINER = "fleet", "trainer"
"""What an engine's fact is held against."""

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
    """0, -1 and ``none`` all mean that nothing is cut off."""
    return same_text(*("0" if text.strip().lower() in ("-1", "none", "off") else text for text in (one, other)))


def same_model(one: str, other: str) -> bool:
    """The last part of the path: each machine may keep its copy elsewhere."""
    return PurePath(one).name == PurePath(other).name


@dataclass(frozen=True)
class Fact:
    """One thing that an engine computes with.

    Attributes:
        name: as in ``EngineState.fingerprint`` or ``EngineState.flags``, and in the trainer's facts.
        means: what it is.
        why: what a difference does to the run; empty where it is what the flag says it does.
        fleet: all live engines must have the same.
        trainer: every engine must have what the trainer says.
        same: whether two texts of it mean the same.
    """

    name: str
    means: str
    why: str
    fleet: bool = True
    trainer: bool = False
    same: Callable[[str, str], bool] = same_text


_SAMPLING_WHY = "the trainer's logprobs are of another distribution than the one sampled from"

FACTS: tuple[Fact, ...] = (
    Fact("model", "the checkpoint that the engine was started with", "they may be different models",
         trainer=True, same=same_model),
    Fact("vllm_version", "version of vLLM", "other kernels and other defaults: logprobs of equal tokens differ"),
    Fact("model_runner", "which of vLLM's two model runners", "they have different samplers"),
    Fact("attention_backend", "kernels of attention", "other rounding: logprobs of equal tokens differ"),
    Fact("dtype", "that the forward computes in", "other rounding: the gap grows with the length of an answer",
         trainer=True),
    Fact("head_dtype", "that logits come in", "logprobs lose their last digits to rounding on one side alone",
         trainer=True),
    Fact("quantization", "of the weights", "the engines sample from other weights than are trained", trainer=True),
    Fact("kv_cache_dtype", "of cached keys and values", "other rounding: the gap grows with the length of a context"),
    *(Fact(flag.name, flag.summary, "") for flag in FLAGS),
    Fact("temperature", "that requests with logprobs were sampled at lately", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("top_p", "likewise: share of probability that is kept", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("top_k", "likewise: number of tokens that are kept", _SAMPLING_WHY, fleet=False, trainer=True,
         same=same_top_k),
    Fact("min_p", "likewise: least probability that is kept", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("repetition_penalty", "likewise", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("presence_penalty", "likewise", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("frequency_penalty", "likewise", _SAMPLING_WHY, fleet=False, trainer=True),
    Fact("default_sampling", "what requests get for parameters that they leave unset",
         "what such requests record is of another distribution than is trained"),
    Fact("sampling_path", "which sampler picks the tokens", "other rounding at the edge of top-p and top-k"),
    Fact("parallel", "how the model is split", "sums in another order: other rounding"),
    Fact("speculative", "drafting of tokens", "logprobs and timing differ"),
    Fact("enforce_eager", "no CUDA graphs, no compilation", "other kernels: other rounding"),
    Fact("device", "what it computes on", "other kernels: other rounding"),
    Fact("torch_version", "version of torch", "other kernels: other rounding"),
)  # fmt: skip

BY_NAME: dict[str, Fact] = {fact.name: fact for fact in FACTS}

NEUTRAL = {
    "temperature": "1", "top_p": "1", "top_k": "0", "min_p": "0", "repetition_penalty": "1", "presence_penalty": "0",
    "frequency_penalty": "0",
}  # fmt: skip
"""The value at which each sampling parameter leaves the model's distribution as it is."""

AND = "; "
"""Between things that are said of one fact."""

MIXED = ", "
"""Between the values of a fact that has several: requests may differ, and so may ranks."""


@dataclass(frozen=True)
class Difference:
    """One fact of one engine that does not agree.

    Attributes:
        fact: name of the fact.
        engine: whose.
        against: ``FLEET`` or ``TRAINER``.
        value: what the engine has.
        says: what the others have, or what is wrong, for a person.
    """

    fact: str
    engine: str
    against: str
    value: str
    says: str


def of_engine(engine: api.Engine | EngineState) -> dict[str, str]:
    """All facts of an engine: its fingerprint, and its flags as they stand now with their form."""
    flags = {name: shown(state.value, state.detail) for name, state in engine.flags.items() if state.value is not None}
    return {**engine.fingerprint, **flags}


def shown(value: str | None, detail: str = "") -> str:
    """A flag's value with its form: ``off (strict)``."""
    return f"{value or 'unknown'} ({detail})" if detail else value or "unknown"


def compare(engines: Mapping[str, Facts], trainer: Facts) -> list[Difference]:
    """What does not agree, in the order of the table. Pure.

    Args:
        engines: facts by engine id, of the engines that count.
        trainer: what the trainer says; empty if it said nothing.
    """
    found = []
    for fact in FACTS:
        values = {engine: facts[fact.name] for engine, facts in engines.items() if fact.name in facts}
        if fact.fleet:
            found += _within(fact, values)
        if fact.trainer and fact.name in trainer:
            found += _with_trainer(fact, values, trainer[fact.name])
    for engine, facts in engines.items():
        found += _raw_record(engine, facts, trainer) + _defaults(engine, facts, trainer)
    return found


def _within(fact: Fact, values: Facts) -> list[Difference]:
    """The engines that stand apart: all but the majority, or all where there is none."""
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
            continue  # the majority is not what is odd
        others = AND.join(has(whose, other) for other, whose in groups if whose is not engines)
        found += [Difference(fact.name, engine, FLEET, value, others) for engine in engines]
    return found


def _with_trainer(fact: Fact, values: Facts, word: str) -> list[Difference]:
    return [
        Difference(fact.name, engine, TRAINER, value, f"the trainer says {word}")
        for engine, value in values.items()
        if not any(fact.same(one, word) for one in value.split(MIXED))
    ]


def _raw_record(engine: str, facts: Facts, trainer: Facts) -> list[Difference]:
    """A raw record leaves out what shaped the distribution; only the trainer's or the requests' word can tell."""
    value = facts.get("logprobs_mode", "")
    if not value.startswith("raw"):
        return []
    used = {name: trainer.get(name, facts.get(name, idle)) for name, idle in NEUTRAL.items()}
    shaped = [
        f"{name} {value}"
        for name, value in used.items()
        if not any(_is(name, one, NEUTRAL[name]) for one in value.split(MIXED))
    ]
    says = f"a raw record leaves out {some(shaped)}, which makes every ratio wrong"
    return [Difference("logprobs_mode", engine, TRAINER, value, says)] if shaped else []


def _defaults(engine: str, facts: Facts, trainer: Facts) -> list[Difference]:
    """Sampling parameters that a model's ``generation_config`` fills in, where the trainer computes otherwise."""
    filled = defaults(facts)
    wrong = [
        f"{name} {value} where the trainer says {trainer[name]}"
        for name, value in filled.items()
        if name in trainer and not _is(name, value, trainer[name])
    ]
    if not wrong:
        return []
    says = f"requests that leave it unset get {some(wrong)}"
    return [Difference("default_sampling", engine, TRAINER, facts["default_sampling"], says)]


def defaults(facts: Facts) -> dict[str, str]:
    """The sampling parameters that an engine fills in where a request leaves them unset, by name."""
    pairs = (part.partition("=") for part in facts.get("default_sampling", "").split(MIXED))
    return {name: value for name, equals, value in pairs if equals}


def _is(name: str, one: str, other: str) -> bool:
    return BY_NAME[name].same(one, other) if name in BY_NAME else same_text(one, other)


def some(names: list[str], most: int = 4) -> str:
    """A list as people say it: ``e0, e1 and 6 more``."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def because(fact: str) -> str:
    """What a difference of this fact does to the run, to stand behind what differs."""
    why = BY_NAME[fact].why if fact in BY_NAME else ""
    return f"; {why}" if why else ""


def has(engines: list[str], value: str) -> str:
    """Who has what: ``e0, e1 have float32``."""
    return f"{some(engines)} {'has' if len(engines) == 1 else 'have'} {value}"


def by_engine(found: list[Difference]) -> dict[str, dict[str, str]]:
    """For each engine that differs: what is to be said of each fact."""
    said: dict[str, dict[str, str]] = {}
    for one in found:
        facts = said.setdefault(one.engine, {})
        facts[one.fact] = f"{facts[one.fact]}{AND}{one.says}" if one.fact in facts else one.says
    return said
