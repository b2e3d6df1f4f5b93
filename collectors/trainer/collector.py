"""``TrainerCollector``: sends what each trainer rank trained on to the run's hub, without delaying training.

```python
trainer = TrainerCollector(run="sort", facts={"temperature": 1.0, "top_p": 1.0, "dtype": torch.bfloat16})
for step in range(steps):
    ...
    trainer.sequences(step, token_ids=ids, rollout_logprobs=rollout, trainer_logprobs=new, mask=mask, prompt_ids=prompt)
    trainer.step(step, policy_version=step + 1, metrics={"grad_norm": norm})
trainer.close()
```
"""

from __future__ import annotations

import logging
import math
import operator
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from rltop.collectors.contract import wire
from rltop.collectors.contract.facts import checked_facts
from rltop.collectors.contract.launch import LaunchError, ensure_hub
from rltop.collectors.contract.rundir import RunDir, RunDirError, at, for_run, from_environment
from rltop.collectors.trainer import packing
from rltop.collectors.trainer.arguments import check
from rltop.collectors.trainer.arrays import Argument, Copy, inspect
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.sender import Message, Sender

LIMIT_BYTES = 256 << 20
"""Bound on the memory of copies waiting to be sent. A call that does not fit is dropped completely and counted."""

STEP_BYTES = 1024
DIGEST_BYTES = 128
"""Estimated size of a step record or of facts, and of a weight's digest."""

MAX_OPEN = 64
"""Steps whose rows are counted at the same time; beyond it the oldest are forgotten."""

log = logging.getLogger("rltop")


class TrainerCollector:
    """Sends one trainer rank's sequences and steps to the run's hub.

    Calls validate shapes, copy the arrays and return; a daemon thread sends them. Calls never wait for a CUDA device or
    a hub. They raise only ``ValueError``, for wrong arguments, before anything is copied. Without a hub, with a slow
    hub, or after ``close``, data that can't be sent is dropped in whole calls and counted. Call it from one thread at a
    time.

    Args:
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        rank: rank of this process among those that call ``step``, from 0.
        world_size: number of these ranks.
        hub: path of a run directory, instead of ``run``.
        facts: configuration that this rank computes with; see ``facts``.
        start_hub: if the run has no hub, rank 0 starts one on this machine, in this constructor. If that fails, one
            warning is logged and training continues without a hub.

    Raises:
        ValueError: no run is named, or both ``run`` and ``hub``; an invalid name, rank or fact; or a run directory that
            can't be used (``RunDirError``).
    """

    def __init__(
        self,
        run: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        hub: str | None = None,
        facts: Mapping[str, Any] | None = None,
        start_hub: bool = True,
    ) -> None:
        self._rank = _count("rank", rank)
        self._world_size = _count("world_size", world_size)
        if not self._rank < self._world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}; expected 0 <= rank < world_size")
        self._facts: dict[str, str] = {}
        self._met: tuple[str, str] | None = None  # sender epoch and hub epoch of the last ``Welcome``
        self._rows: dict[int, int] = {}  # passed so far, by step
        self._update_facts(facts or {})
        self.rundir = _run_directory(run, hub)
        if start_hub and self._rank == 0:
            _try_hub(self.rundir)
        self._guard = ErrorBoundary()
        self._sender = Sender(
            self.rundir,
            f"trainer/{self._rank}",
            "trainer",
            _encode,
            on_message=self._on_message,
            vital=frozenset({"step", "facts"}),
            limit_bytes=LIMIT_BYTES,
            guard=self._guard,
        )
        self._sender.start()

    def sequences(
        self,
        step: int,
        *,
        token_ids: Any,
        rollout_logprobs: Any,
        trainer_logprobs: Any,
        mask: Any,
        prompt_ids: Any = None,
        old_logprobs: Any = None,
        advantages: Any = None,
        rewards: Any = None,
        entropy: Any = None,
        policy_version: int | None = None,
        rollout_versions: Any = None,
        old_version: Any = None,
        update: int = 0,
        temperature: float | None = None,
        clip_low: float | None = None,
        clip_high: float | None = None,
        ratio_base: Literal["rollout", "old"] = "rollout",
        objective: Literal["ppo", "gspo"] = "ppo",
        clipped: Any = None,
        cu_seqlens: Any = None,
        request_ids: Any = None,
    ) -> None:
        """Record rows that this rank trains on. Call it any number of times per step: micro-batches, epochs.

        Arrays are torch tensors (any device, any float dtype, with or without grad) or numpy arrays. *Per token* arrays
        all have the same form: ``[batch, time]``; or packed ``[tokens]`` with ``cu_seqlens``; or a list of ``[time]``
        arrays. Column t of each belongs to ``token_ids[:, t]``: a logprob is that of the token in its own column, not
        of the next one. Logprobs and entropy are in nats. Values that are not finite are sent unchanged. If several
        ranks hold the same rows, exactly one of them passes them.

        Args:
            step: the trainer's step, from 0.
            token_ids: per token, integers: the completion, or prompt and completion, with any padding.
            rollout_logprobs: per token, as the engine returned them when it sampled.
            trainer_logprobs: per token, under the weights that are being updated.
            mask: per token, bool or 0 and 1. Tokens where it is not 0 are trained on. Other tokens are used only as
                context, to find the rollout of a row.
            prompt_ids: integers: the prompts, if the rows don't contain them: a list of 1-D arrays, or [batch, P].
                Padding in [batch, P] is not removed; pass a list if prompts differ in length.
            old_logprobs: per token, recomputed by the trainer under ``old_version``; NaN where not computed.
            advantages: [batch] or per token.
            rewards: [batch].
            entropy: per token, of the trainer's distribution.
            policy_version: version of the weights that are being updated, an integer from 0.
            rollout_versions: version of the weights that sampled: a single number, [batch], or per token. NaN or
                negative where unknown.
            old_version: version of the weights of ``old_logprobs``, in the same forms.
            update: number of the optimizer update on the same rollouts, from 0. Counts, rewards and the headline gap
                use update 0, clip rates use all updates.
            temperature: temperature at which ``trainer_logprobs`` are computed.
            clip_low: lower bound of the ratio itself, such as 0.8; from 0 to 1.
            clip_high: upper bound of the ratio itself, such as 1.28; at least 1.
            ratio_base: denominator of the ratio: ``rollout`` or ``old`` logprobs.
            objective: ``ppo`` (clips tokens) or ``gspo`` (clips sequences).
            clipped: per token, bool or 0 and 1: the tokens that the trainer clipped, instead of computing them from
                the bounds.
            cu_seqlens: [rows + 1], integers rising from 0 to the number of tokens, for packed arrays.
            request_ids: [batch] of strings of at most 256 characters, or None: the request id that vLLM, or its caller,
                gave each row. Rows are joined with their rollouts without ids; an id helps if prompts were changed.

        Raises:
            ValueError: an argument has the wrong shape, dtype or value; the message names it, the actual and the
                expected one.
        """
        head = wire.Sequences(
            step=_count("step", step),
            update=_count("update", update),
            rank=self._rank,
            rows=0,
            arrays=[],
            policy_version=_version(policy_version),
            temperature=_number("temperature", temperature),
            clip_low=_bound("clip_low", clip_low, 0.0, 1.0),
            clip_high=_bound("clip_high", clip_high, 1.0, math.inf),
            ratio_base=_choice("ratio_base", ratio_base, ("rollout", "old")),
            objective=_choice("objective", objective, ("ppo", "gspo")),
        )
        columns = {
            "rollout_logprobs": rollout_logprobs,
            "trainer_logprobs": trainer_logprobs,
            "old_logprobs": old_logprobs,
            "entropy": entropy,
            "advantages": advantages,
            "rollout_versions": rollout_versions,
            "old_version": old_version,
            "clipped": clipped,
        }
        checked = check(head, token_ids, mask, prompt_ids, rewards, cu_seqlens, columns, request_ids)
        self._sender.loop_count += 1
        self._rows[head.step] = self._rows.get(head.step, 0) + checked.rows
        if len(self._rows) > MAX_OPEN:
            del self._rows[next(iter(self._rows))]
        nbytes = checked.nbytes
        room = self._sender.has_room("sequences", nbytes)  # else it would be copied and then dropped
        copied = self._guard.run("sequences", checked.copy) if room else None
        if copied is None:
            self._sender.count_dropped("sequences", 1)
        else:
            self._sender.offer("sequences", nbytes, copied)

    def step(
        self,
        step: int,
        policy_version: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        weight_digests: Mapping[str, str] | None = None,
    ) -> None:
        """Close ``step`` for this rank. The hub measures a step when all ranks have closed it.

        Args:
            step: as in ``sequences``.
            policy_version: version of the weights after the step, an integer from 0.
            metrics: scalars to show with the step: numbers, or tensors of one element (on any device).
            weight_digests: digests of the weights after the step, from
                ``rltop.collectors.contract.digests.weight_digests``. `rltop probe weight-digest` compares them with
                those of engines of that version. Computing them is expensive: not in every step.

        Raises:
            ValueError: a metric that is not a single number, or whose name is not a string; an invalid digest.
        """
        checked = {name: _metric(name, value) for name, value in (metrics or {}).items()}
        closed = wire.StepClosed(
            _count("step", step), self._rank, self._world_size, _version(policy_version), time=time.time(),
            weight_digests={name: _digest(name, digest) for name, digest in (weight_digests or {}).items()},
            rows=self._rows.pop(step, 0),
        )  # fmt: skip
        self._sender.loop_count += 1
        copied = self._guard.run("step", lambda: {name: value.copy() for name, value in checked.items()})
        if copied is None:
            self._sender.count_dropped("step", 1)
        else:
            nbytes = STEP_BYTES + DIGEST_BYTES * len(closed.weight_digests)
            self._sender.offer("step", nbytes, _ClosedStep(closed, copied))

    def facts(self, **facts: Any) -> None:
        """Set or change facts: the configuration that this rank computes with. The hub compares it with the engines'.

        Use the engines' names (``rltop fingerprint`` lists them): ``temperature``, ``top_p``, ``top_k``, ``min_p`` and
        the penalties under which ``trainer_logprobs`` are computed; ``dtype`` of the forward pass, ``head_dtype`` of
        the projection to the vocabulary; ``model``, ``quantization``. Other names are shown too.

        Args:
            facts: numbers, dtypes, bools or strings. None removes a fact.

        Raises:
            ValueError: more than 64 facts, or a value that is not finite, empty or longer than 200 characters.
        """
        if self._update_facts(facts) and self._met is not None:
            self._sender.offer("facts", STEP_BYTES, wire.TrainerFacts(self._rank, self._facts))

    def _update_facts(self, facts: Mapping[str, Any]) -> bool:
        """Merge ``facts`` into a new mapping (the sender may be encoding the old one). True if any changed."""
        new: dict[str, str | None] = {**self._facts, **checked_facts(facts)}
        before, self._facts = self._facts, {name: text for name, text in new.items() if text is not None}
        return before != self._facts

    def _on_message(self, message: wire.ControlToCollector) -> None:
        """On the sender's thread: send the facts to a hub that meets this process for the first time."""
        if isinstance(message, wire.Welcome) and self._met != (met := (self._sender.epoch, message.hub_epoch)):
            self._met = met
            if self._facts:
                self._sender.offer("facts", STEP_BYTES, wire.TrainerFacts(self._rank, self._facts))

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued and disconnect. Returns True if the hub confirmed that it has everything.

        Waits at most ``timeout`` seconds, and about two if no hub answers. Later calls are ignored and counted.
        """
        return self._sender.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _ClosedStep:
    """A closed step whose metrics may not have been copied from their device yet."""

    head: wire.StepClosed
    metrics: dict[str, Copy]

    def message(self) -> wire.StepClosed:
        metrics = {name: float(value.read()[0]) for name, value in self.metrics.items()}
        return msgspec.structs.replace(self.head, metrics=metrics)


Item = packing.CopiedCall | _ClosedStep | wire.TrainerFacts
"""Items of the send queue, by kind: ``sequences``, ``step``, ``facts``."""


def _encode(_kind: str, items: list[Item]) -> Iterator[Message]:
    """Encode queued items. On the sender's thread."""
    for item in items:
        if isinstance(item, _ClosedStep):
            yield item.message(), {}
        elif isinstance(item, wire.TrainerFacts):
            yield item, {}
        else:
            yield from packing.pack(item)


def _run_directory(run: str | None, hub: str | None) -> RunDir:
    if run is not None and hub is not None:
        raise RunDirError(f"run={run!r} and hub={hub!r}: name one of them")
    if hub is not None:
        return at(hub)
    rundir = for_run(run) if run is not None else from_environment()
    if rundir is None:
        raise RunDirError("no run is named: pass run=, or set RLTOP_RUN or RLTOP_HUB")
    return rundir


def _try_hub(rundir: RunDir) -> None:
    try:
        ensure_hub(rundir)
    except LaunchError as error:
        log.warning("rltop: training continues without a hub: %s", error)


def _count(name: str, value: Any) -> int:
    """Check a non-negative integer; raises ``ValueError``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{name}: {value!r}; expected a whole number from 0")
    return number


def _version(value: Any) -> int | None:
    return None if value is None else _count("policy_version", value)


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {value!r}; expected a number") from None


def _bound(name: str, value: Any, low: float, high: float) -> float | None:
    number = _number(name, value)
    if number is not None and not low <= number <= high:
        raise ValueError(f"{name}: {value!r}; expected a bound of the ratio itself, from {low:g} to {high:g}")
    return number


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: {value!r}; expected one of {', '.join(choices)}")
    return value


_DIGEST = re.compile(r"\w+(:[0-9a-f]{16}){1,2}")


def _digest(name: Any, digest: Any) -> str:
    """Check the digest of one weight; raises ``ValueError``."""
    if not isinstance(name, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"weight_digests[{name!r}]: {digest!r}; expected a digest from digests.weight_digests")
    return digest


def _metric(name: Any, value: Any) -> Argument:
    """Check a scalar; raises ``ValueError``."""
    if not isinstance(name, str):
        raise ValueError(f"metrics: name {name!r}; expected a string")
    scalar = inspect(f"metrics[{name!r}]", value)
    if scalar.ragged or math.prod(scalar.shape) != 1:
        raise ValueError(f"metrics[{name!r}]: {scalar.describe()}; expected a single number")
    return scalar
