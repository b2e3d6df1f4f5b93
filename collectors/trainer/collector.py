"""The trainer's side of a run: what each rank trained on, handed to the hub without getting in the way.

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
from rltop.collectors.contract.facts import stated
from rltop.collectors.contract.launch import LaunchError, ensure_hub
from rltop.collectors.contract.rundir import RunDir, RunDirError, at, for_run, from_environment
from rltop.collectors.trainer import packing
from rltop.collectors.trainer.arguments import check
from rltop.collectors.trainer.arrays import Copy, Given, given
from rltop.collectors.transport.error_boundary import Guard
from rltop.collectors.transport.sender import Sender

LIMIT_BYTES = 256 << 20
"""Bound on copies that wait for the hub. A batch that does not fit is dropped whole and counted."""

STEP_BYTES = 1024
DIGEST_BYTES = 128
"""What one step record, or one statement of facts, is taken to need, and a weight's digest."""

MAX_OPEN = 64
"""Steps whose rows are counted at a time; of more, the first go uncounted."""

log = logging.getLogger("rltop")


class TrainerCollector:
    """Passes one trainer rank's sequences and steps to the run's hub.

    Calls check shapes, copy, and return; a daemon thread does the rest. They never wait for a device or a hub, and
    never raise anything but ``ValueError`` for wrong arguments, on the caller's line, before anything was copied. With
    no hub, a slow hub, or after ``close`` they go on: what can't be passed on is dropped whole and counted. From one
    thread at a time.

    Args:
        run: name of the run. None: what ``RLTOP_HUB`` or ``RLTOP_RUN`` name.
        rank: of this process among the ranks that call ``step``.
        world_size: how many such ranks there are.
        hub: a run directory, instead of ``run``.
        facts: what this rank computes with; see ``facts``.
        start_hub: rank 0 starts a hub on this machine if the run has none, once, here. If that fails there is one
            warning, and training goes on without.

    Raises:
        ValueError: no run is named, two are, a name, rank or fact is wrong, or the directory can't hold sockets.
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
        self._welcomed: tuple[str, str] | None = None
        self._rows: dict[int, int] = {}  # passed so far, by step
        self._state(facts or {})
        self.rundir = _run_directory(run, hub)
        if start_hub and self._rank == 0:
            _try_hub(self.rundir)
        self._guard = Guard()
        self._sender = Sender(
            self.rundir,
            f"trainer/{self._rank}",
            "trainer",
            _encode,
            on_message=self._hear,
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
        """Pass on rows that this rank trains on. Any number of calls a step: micro-batches, epochs.

        Arrays are torch tensors (any device, any float dtype, with or without grad) or numpy. *Per token* means, for
        all of them in the same form: ``[batch, time]``; or packed ``[tokens]`` with ``cu_seqlens``; or a list of
        ``[time]`` arrays. Column t of every one belongs to ``token_ids[:, t]``: a logprob is that of the token in its
        own column, not of the next. Log-probabilities and entropy are in nats. Values that are not finite travel as
        they are. Ranks that hold the same rows pass them once.

        Args:
            step: the trainer's step, from 0.
            token_ids: per token, integers. The completion, or prompt and completion, padded in any way.
            rollout_logprobs: per token, as the engine recorded them while sampling.
            trainer_logprobs: per token, under the weights that are being updated.
            mask: per token, bool or 0 and 1; where not 0, the token is trained on. What the mask leaves out is used
                only as context, to find the rollout that a row came from.
            prompt_ids: the prompts, where the rows don't hold them: a list of 1-D arrays, or [batch, P]. Padding in
                [batch, P] is not stripped; pass a list if prompts differ in length.
            old_logprobs: per token, recomputed by the trainer under ``old_version``; NaN where not computed.
            advantages: [batch] or per token.
            rewards: [batch].
            entropy: per token, of the trainer's distribution.
            policy_version: version of the weights that are being updated.
            rollout_versions: version of the weights that sampled: one for all, [batch], or per token. NaN or
                negative where not known.
            old_version: version of the weights of ``old_logprobs``: likewise.
            update: number of the optimizer update on the same rollouts, from 0. Counts, reward and the headline gap
                use update 0, clip rates use all.
            temperature: that ``trainer_logprobs`` are computed at.
            clip_low: lower bound of the ratio, such as 0.8.
            clip_high: upper bound of the ratio, such as 1.28.
            ratio_base: the ratio's denominator: ``rollout`` or ``old`` logprobs.
            objective: ``ppo``, where tokens are clipped, or ``gspo``, where sequences are.
            clipped: per token, bool or 0 and 1: what the trainer clipped, instead of reckoning it from the bounds.
            cu_seqlens: [rows + 1], integers from 0 to the number of tokens, for packed arrays.
            request_ids: [batch] of text, None where not kept: what vLLM, or its caller, named each row's request by.
                Rows find their rollouts without; an id finds them where prompts were changed on the way.

        Raises:
            ValueError: an argument of a wrong shape or kind, named with what was seen and expected.
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
        room = self._sender.has_room("sequences", nbytes)  # what would be dropped is not copied first
        copied = self._guard.run("sequences", checked.copy) if room else None
        if copied is None:
            self._sender.count_lost("sequences", 1)
        else:
            self._sender.offer("sequences", nbytes, copied)

    def step(
        self,
        step: int,
        policy_version: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        weight_digests: Mapping[str, str] | None = None,
    ) -> None:
        """Close ``step`` for this rank: it has passed all it had. The hub measures when every rank has said so.

        Args:
            step: as in ``sequences``.
            policy_version: version of the weights after the step.
            metrics: scalars to show beside the step: numbers, or tensors of one element (on any device).
            weight_digests: of the weights after the step, made by
                ``rltop.collectors.contract.digests.weight_digests``; `rltop probe weight-digest` compares engines of
                that version with them. Worth it now and then, not in every step.

        Raises:
            ValueError: a metric that is no number, or whose name is no string; a digest that is none.
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
            self._sender.count_lost("step", 1)
        else:
            nbytes = STEP_BYTES + DIGEST_BYTES * len(closed.weight_digests)
            self._sender.offer("step", nbytes, _Closed(closed, copied))

    def facts(self, **facts: Any) -> None:
        """State what this rank computes with, to be held against what the engines do; say it again when it changes.

        Use the engines' own names (``rltop fingerprint`` lists them): ``temperature``, ``top_p``, ``top_k``, ``min_p``
        and the penalties that ``trainer_logprobs`` are computed under; ``dtype`` that the forward computes in,
        ``head_dtype`` of the projection to the vocabulary; ``model``, ``quantization``. Any other name is shown too.

        Args:
            facts: numbers, dtypes, truth values or text. None takes a fact back.

        Raises:
            ValueError: too many facts, or a value that is no fact.
        """
        if self._state(facts) and self._welcomed is not None:
            self._sender.offer("facts", STEP_BYTES, wire.TrainerFacts(self._rank, self._facts))

    def _state(self, facts: Mapping[str, Any]) -> bool:
        """Take in facts; whether that changed any. A new mapping each time: another thread may be sending the last."""
        new: dict[str, str | None] = {**self._facts, **stated(facts)}
        before, self._facts = self._facts, {name: text for name, text in new.items() if text is not None}
        return before != self._facts

    def _hear(self, message: wire.ControlToCollector) -> None:
        """The sender's thread: a hub that hears of this process for the first time is told the facts."""
        if isinstance(message, wire.Welcome) and self._welcomed != (met := (self._sender.epoch, message.hub_epoch)):
            self._welcomed = met
            if self._facts:
                self._sender.offer("facts", STEP_BYTES, wire.TrainerFacts(self._rank, self._facts))

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued and say goodbye. True if the hub confirmed that it has everything.

        Waits at most ``timeout`` seconds, and about two where no hub answers. Calls after it are ignored and counted.
        """
        return self._sender.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Closed:
    """A closed step whose metrics may still be on their way from a device."""

    head: wire.StepClosed
    metrics: dict[str, Copy]

    def message(self) -> wire.StepClosed:
        metrics = {name: float(value.read()[0]) for name, value in self.metrics.items()}
        return msgspec.structs.replace(self.head, metrics=metrics)


def _encode(kind: str, items: list[Any]) -> Iterator[tuple[wire.DataBody, wire.Arrays]]:
    """The sender's thread: messages of what the calls queued."""
    for item in items:
        if kind == "step":
            yield item.message(), {}
        elif kind == "facts":
            yield item, {}
        else:
            yield from packing.pack(item)


def _run_directory(run: str | None, hub: str | None) -> RunDir:
    if run is not None and hub is not None:
        raise RunDirError(f"run={run!r} and hub={hub!r}: name one of them")
    if hub is not None:
        return at(hub)
    found = for_run(run) if run is not None else from_environment()
    if found is None:
        raise RunDirError("no run is named: pass run=, or set RLTOP_RUN or RLTOP_HUB")
    return found


def _try_hub(rundir: RunDir) -> None:
    try:
        ensure_hub(rundir)
    except LaunchError as error:
        log.warning("rltop: training goes on without a hub: %s", error)


def _count(name: str, value: Any) -> int:
    """A whole number from 0; raises ``ValueError``."""
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
    """A weight's digest as text; raises ``ValueError``."""
    if not isinstance(name, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"weight_digests[{name!r}]: {digest!r}; expected what digests.weight_digests makes")
    return digest


def _metric(name: Any, value: Any) -> Given:
    """A scalar to show; raises ``ValueError``."""
    if not isinstance(name, str):
        raise ValueError(f"metrics: name {name!r}; expected a string")
    scalar = given(f"metrics[{name!r}]", value)
    if scalar.ragged or math.prod(scalar.shape) != 1:
        raise ValueError(f"metrics[{name!r}]: {scalar.describe()}; expected a single number")
    return scalar
