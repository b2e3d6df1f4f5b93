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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import msgspec

from rltop.collectors.contract import wire
from rltop.collectors.contract.checked import ArgumentError
from rltop.collectors.contract.facts import checked_facts
from rltop.collectors.contract.launch import LaunchError, ensure_hub
from rltop.collectors.contract.rundir import RunDir, RunDirError, at, for_run, from_environment
from rltop.collectors.contract.weight_sketch import UnreadSketch, sketch
from rltop.collectors.trainer import packing, scalars
from rltop.collectors.trainer.arguments import Checked, check
from rltop.collectors.trainer.arrays import Copy, has_axis, inspect, is_tensor
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.sender import Message, Sender

LIMIT_BYTES = 256 << 20
"""Bound on the memory of copies waiting to be sent. A call that does not fit is dropped completely and counted."""

SEND_HWM = 16
"""Messages of up to 1 MiB that may wait inside ZeroMQ: memory stays below 256 MiB while a hub does not read."""

STEP_BYTES = 1024
DIGEST_BYTES = 128
SKETCH_BYTES = 512
"""Estimated size of a step record or of facts, of a weight's digest, and of its sketch."""

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
        replica: number of this rank among the ranks that hold the same rows, such as its context- or tensor-parallel
            rank. Rows count once: those that ranks other than replica 0 pass are checked and not sent. All ranks close
            their steps.
        version_unit: how many counts of the policy version are one update, for a framework that counts samples; lag is
            shown in updates. With 1, the hub uses another unit if the versions of the steps show one.
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
        replica: int = 0,
        version_unit: int = 1,
        hub: str | None = None,
        facts: Mapping[str, Any] | None = None,
        start_hub: bool = True,
    ) -> None:
        self._rank = scalars.count("rank", rank)
        self._world_size = scalars.count("world_size", world_size)
        if not self._rank < self._world_size:
            raise ArgumentError(f"rank: {rank} of world_size {world_size}; expected 0 <= rank < world_size")
        self._replica = scalars.count("replica", replica)
        self._version_unit = scalars.count("version_unit", version_unit, 1)
        self._facts: dict[str, str] = {}
        self._met: tuple[str, str] | None = None  # sender epoch and hub epoch of the last ``Welcome``
        self._open: dict[int, _OpenStep] = {}
        self._update_facts(dict(scalars.items("facts", facts)))
        self.rundir = _run_directory(run, hub)
        self._guard = ErrorBoundary()
        if scalars.flag("start_hub", start_hub) and self._rank == 0:
            self._guard.run("start_hub", _try_hub, self.rundir, raises=(RunDirError,))
        self._sender = Sender(
            self.rundir,
            f"trainer/{self._rank}",
            "trainer",
            _encode,
            on_message=self._on_message,
            vital=frozenset({"step", "facts"}),
            limit_bytes=LIMIT_BYTES,
            send_hwm=SEND_HWM,
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
        temperature: Any = None,
        clip_low: float | None = None,
        clip_high: float | None = None,
        ratio_base: Literal["rollout", "old", "current"] = "rollout",
        objective: Literal["ppo", "gspo"] = "ppo",
        clipped: Any = None,
        weights: Any = None,
        cu_seqlens: Any = None,
        shifted: bool = False,
        request_ids: Any = None,
        environments: Iterable[str | None] | None = None,
    ) -> None:
        """Record rows that this rank trains on. Call it any number of times per step: micro-batches, epochs.

        Arrays are torch tensors (any device, any float dtype, with or without grad) or numpy arrays. *Per token* arrays
        all have the same form: ``[batch, time]``; or packed ``[tokens]`` or ``[1, tokens]`` with ``cu_seqlens``; or a
        list of ``[time]`` arrays. Column t of each belongs to ``token_ids[:, t]``: a logprob is that of the token in
        its own column, not of the next one, unless ``shifted``. Logprobs and entropy are in nats. Values that are not
        finite are sent unchanged. If several ranks hold the same rows, exactly one of them passes them, or each states
        its ``replica``.

        Args:
            step: number of the step, from 0. A step is a batch of rollouts with all optimizer updates on it, which
                ``update`` numbers. A trainer that counts each update as a step passes ``update`` too: the figures of a
                step without update 0 are those of its first update.
            token_ids: per token, integers: the completion, or prompt and completion, with any padding.
            rollout_logprobs: per token, as the engine returned them when it sampled.
            trainer_logprobs: per token, under the weights that are being updated.
            mask: per token, bool or 0 and 1. Tokens where it is not 0 are trained on. Other tokens are used only as
                context, to find the rollout of a row.
            prompt_ids: integers: the prompts, if the rows don't contain them: a list of 1-D arrays, or [batch, P].
                Padding in [batch, P] is not removed; pass a list if prompts differ in length.
            old_logprobs: per token, recomputed by the trainer under ``old_version``; NaN where not computed.
            advantages: [batch] or per token.
            rewards: [batch], or per token: then a row's reward is their sum over all its tokens. Pass a reward that is
                repeated at each token as [batch].
            entropy: per token, of the trainer's distribution.
            policy_version: version of the weights that are being updated, an integer from 0, in counts of
                ``version_unit``.
            rollout_versions: version of the weights that sampled: a single number, [batch], or per token. NaN or
                negative where unknown.
            old_version: version of the weights of ``old_logprobs``, in the same forms.
            update: number of the optimizer update on the same rollouts, from 0. Counts, rewards and the headline gap
                use the first update that is passed for a step, clip rates use all.
            temperature: temperature at which ``trainer_logprobs`` are computed: a single number, [batch], or per token.
            clip_low: lower bound of the ratio itself, such as 0.8; from 0 to 1.
            clip_high: upper bound of the ratio itself, such as 1.28; at least 1.
            ratio_base: denominator of the ratio: ``rollout`` or ``old`` logprobs; or ``current``, the trainer's own
                logprobs without gradient, so that nothing is clipped. ``old`` without old logprobs is ``current`` in
                update 0.
            objective: ``ppo`` (clips tokens) or ``gspo`` (clips sequences).
            clipped: per token, bool or 0 and 1: the tokens that the trainer clipped, instead of computing them from
                the bounds.
            weights: per token or [batch]: factors that multiply the loss, such as importance-sampling weights or masks.
                A token with weight 0 is trained on, but not in the loss: clip rates leave it out, the gap does not.
            cu_seqlens: [rows + 1], integers rising from 0 to the number of tokens, for packed arrays.
            shifted: per-token arrays may have one entry less than ``token_ids`` in the last axis, ``[batch, time - 1]``
                or packed ``[tokens - 1]``: entry t belongs to token t + 1. Arrays as long as ``token_ids`` keep their
                own columns. The first token of a row has no logprob, and is not trained on.
            request_ids: [batch] of strings of at most 256 characters, or None: the request id that vLLM, or its caller,
                gave each row. Rows are joined with their rollouts without ids; an id helps if prompts were changed.
            environments: [batch] of strings of at most 256 characters, or None: the environment or task of each row.

        Raises:
            ValueError: an argument has the wrong shape, dtype or value; the message names it, the actual and the
                expected one.
        """

        def record() -> bool:
            per_token_temperature = has_axis("temperature", temperature)
            head = wire.Sequences(
                step=scalars.count("step", step),
                update=scalars.count("update", update),
                rank=self._rank,
                rows=0,
                arrays=[],
                policy_version=scalars.version(policy_version),
                temperature=None if per_token_temperature else scalars.number("temperature", temperature),
                clip_low=scalars.bound("clip_low", clip_low, 0.0, 1.0),
                clip_high=scalars.bound("clip_high", clip_high, 1.0, math.inf),
                ratio_base=scalars.choice("ratio_base", ratio_base, ("rollout", "old", "current")),
                objective=scalars.choice("objective", objective, ("ppo", "gspo")),
                version_unit=self._version_unit,
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
                "weights": weights,
                "temperature": temperature if per_token_temperature else None,
            }
            checked = check(
                head,
                token_ids,
                mask,
                prompt_ids,
                rewards,
                cu_seqlens,
                columns,
                request_ids,
                environments,
                scalars.flag("shifted", shifted),
            )
            return self._replica != 0 or self._offer(checked, self._opened(head, checked.rows))

        self._record("sequences", record)

    def _record(self, kind: str, record: Callable[[], bool]) -> None:
        """Record one call of the trainer: raises only ``ArgumentError``, and counts a call that is not queued."""
        self._sender.loop_count += 1
        if not self._guard.run(kind, record, raises=(ArgumentError,)):
            self._sender.count_dropped(kind, 1)

    def _opened(self, head: wire.Sequences, rows: int) -> int:
        """Count the rows of a step. Returns the first update that was passed for it."""
        before = self._open.get(head.step, _OpenStep(0, head.update))
        after = self._open[head.step] = _OpenStep(before.rows + rows, min(before.first_update, head.update))
        if len(self._open) > MAX_OPEN:
            del self._open[next(iter(self._open))]
        return after.first_update

    def _offer(self, checked: Checked, first_update: int) -> bool:
        """Copy and queue a call. False if there is no room: else it would be copied and then dropped."""
        checked = replace(checked, head=msgspec.structs.replace(checked.head, first_update=first_update))
        nbytes = checked.nbytes
        if not self._sender.has_room("sequences", nbytes):
            return False
        self._sender.offer("sequences", nbytes, checked.copy())
        return True

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
            ValueError: a metric that is not a single number, or whose name is not a string; an invalid digest, step or
                version.
        """

        def record() -> bool:
            checked = {
                key: scalars.metric(f"metrics[{key!r}]", value) for key, value in scalars.items("metrics", metrics)
            }
            digests = {
                key: scalars.digest(f"weight_digests[{key!r}]", value)
                for key, value in scalars.items("weight_digests", weight_digests)
            }
            number, version = scalars.count("step", step), scalars.version(policy_version)
            closed = wire.StepClosed(
                number, self._rank, self._world_size, version, time=time.time(), weight_digests=digests,
                rows=self._open.pop(number, _OpenStep()).rows, version_unit=self._version_unit,
            )  # fmt: skip
            copied = _ClosedStep(closed, {name: value.copy() for name, value in checked.items()})
            self._sender.offer("step", STEP_BYTES + DIGEST_BYTES * len(digests), copied)
            return True

        self._record("step", record)

    def weights(self, policy_version: int, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """State the weights of a version, for the refit guard: engines are compared with them after each update.

        Reads some columns of every tensor on its own device, without waiting for it: call it after each optimizer step,
        or before each update of the engines, on one rank.

        Args:
            policy_version: version of these weights, an integer from 0.
            tensors: ``model.state_dict()`` or ``model.named_parameters()``: complete torch tensors (not one rank's
                shard) under the names of the checkpoint. Sharded (``DTensor``), sparse and empty ones are left out.

        Raises:
            ValueError: an invalid version, or something else than torch tensors by name.
        """

        def record() -> bool:
            number = scalars.count("policy_version", policy_version)
            items = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
            for name, tensor in items:
                if not is_tensor(tensor):
                    raise ArgumentError(f"tensors[{name!r}]: {type(tensor).__name__}; expected a torch tensor")
            stated = _stated_weights(self._rank, number, items)
            if stated is not None:
                self._sender.offer("weights", STEP_BYTES + SKETCH_BYTES * len(items), stated)
            return True

        self._record("weights", record)

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

        def record() -> bool:
            if self._update_facts(facts) and self._met is not None:
                self._sender.offer("facts", STEP_BYTES, wire.TrainerFacts(self._rank, self._facts))
            return True

        self._guard.run("facts", record, raises=(ArgumentError,))

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

        Waits at most ``timeout`` seconds, and about two if no hub is connected. Later calls are ignored and counted.
        """
        return self._sender.close(scalars.seconds("timeout", timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _OpenStep(NamedTuple):
    """What was passed for a step so far: its rows, over all updates, and the first update."""

    rows: int = 0
    first_update: int = 0


@dataclass(frozen=True)
class _ClosedStep:
    """A closed step whose metrics may not have been copied from their device yet."""

    head: wire.StepClosed
    metrics: dict[str, Copy]

    def message(self) -> wire.StepClosed:
        metrics = {name: float(value.read()[0]) for name, value in self.metrics.items()}
        return msgspec.structs.replace(self.head, metrics=metrics)


@dataclass(frozen=True)
class _StatedWeights:
    """Stated weights whose sketches may not have been copied from their device yet."""

    rank: int
    version: int
    names: list[tuple[str, str, int]]
    hashes: Copy
    sums: Copy

    def message(self) -> wire.TrainerWeights:
        size = len(self.names)
        read = (self.hashes.read().reshape(size, -1), self.sums.read().reshape(size, -1))
        sketches = UnreadSketch(self.names, *read).read()
        return wire.TrainerWeights(self.rank, self.version, [wire.WeightSketch(*one) for one in sketches])


def _stated_weights(rank: int, version: int, tensors: list[tuple[str, Any]]) -> _StatedWeights | None:
    found = sketch(tensors, rounded=True)
    if found is None:
        return None
    hashes, sums = (inspect("weights", one).copy() for one in (found.hashes, found.sums))
    return _StatedWeights(rank, version, found.names, hashes, sums)


Item = packing.CopiedCall | _ClosedStep | wire.TrainerFacts | _StatedWeights
"""Items of the send queue, by kind: ``sequences``, ``step``, ``facts``, ``weights``."""


def _encode(_kind: str, items: list[Item]) -> Iterator[Message]:
    """Encode queued items. On the sender's thread."""
    for item in items:
        if isinstance(item, _ClosedStep | _StatedWeights):
            yield item.message(), {}
        elif isinstance(item, wire.TrainerFacts):
            yield item, {}
        else:
            yield from packing.pack(item)


def _run_directory(run: str | None, hub: str | None) -> RunDir:
    if run is not None and hub is not None:
        raise RunDirError(f"run={run!r} and hub={hub!r}: name one of them")
    if hub is not None:
        return at(scalars.path("hub", hub))
    rundir = for_run(scalars.path("run", run)) if run is not None else from_environment()
    if rundir is None:
        raise RunDirError("no run is named: pass run=, or set RLTOP_RUN or RLTOP_HUB")
    return rundir


def _try_hub(rundir: RunDir) -> None:
    try:
        ensure_hub(rundir)
    except LaunchError as error:
        log.warning("rltop: training continues without a hub: %s", error)
