"""The hub's core: what arrives goes in, frames and messages to send come out. Pure: no sockets, threads, files, clocks.

The picture that viewers have is changed by frames alone, here as there: ``frame`` makes the next one and applies it to
``snapshot``, so a snapshot with the frames after it is always what the hub has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from rltop.backend import api
from rltop.backend.alarms.monitor import AlarmWatch
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.commands import audit
from rltop.backend.commands.lifecycle import CommandLifecycle, DeliverCommand
from rltop.backend.commands.messages import describe
from rltop.backend.commands.transitions import HubClosure
from rltop.backend.commands.validation import RejectedError
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.effects.flag_epochs import EffectHistory
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.fleet.agreement import Fingerprints
from rltop.backend.fleet.engines import Engines, TrainerRanks
from rltop.backend.ingest.acknowledgement import Acknowledgements
from rltop.backend.ingest.sources import Arrival, ReceivedMark, Source, Sources, is_trainer
from rltop.backend.join.index import RolloutIndex
from rltop.backend.join.stats import JoinWatch
from rltop.backend.probes.inputs import InputChooser
from rltop.backend.probes.running import RunningProbes
from rltop.backend.steps.provenance import StoredSteps, uses
from rltop.backend.steps.steps import Steps
from rltop.backend.steps.unmeasured import Holes
from rltop.backend.store.aggregates import FrameAggregates, StoredAggregates
from rltop.backend.store.resume import Resumed
from rltop.backend.store.step_details import StepDetails
from rltop.collectors.contract import wire

MAX_SKEW = 2
"""Engines that differ by more policy versions than this are worth a warning: a rolling update passes through 1."""

RESUME_ENGINES_S = 3600.0
"""Engines that the last hub knew are shown as silent until they speak, unless it ended longer ago than this."""

LOSS_EVENT_PERIOD_S = 10.0
"""Losses of one source are told at most this often; the counters have them all."""


@dataclass(frozen=True, slots=True)
class SendControl:
    """Effect: a control message to the collector with this identity (``<source>#<epoch>``)."""

    to: str
    message: wire.Body


@dataclass(frozen=True, slots=True)
class Reply:
    """Effect: an answer to the viewer with this identity."""

    to: bytes
    answer: api.Answer


@dataclass(frozen=True, slots=True)
class AnswerFromStore:
    """Effect: answer a viewer from the store, or where that can't, with ``answer``: what is known without it."""

    to: bytes
    question: api.AskSamples | api.AskMismatch | api.AskPast
    answer: api.Answer


@dataclass(frozen=True, slots=True)
class Stop:
    """Effect: end the hub."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Effect: a line for the audit log. Stands before the effects that it is about."""

    line: audit.AuditLine


Effect = SendControl | Reply | AnswerFromStore | Stop | Audit


def identity(source: str, epoch: str) -> str:
    """Address of a collector on the control socket."""
    return f"{source}#{epoch}"


class HubState:
    """Everything a hub knows.

    Args:
        run: the run's name.
        epoch: id of this life of the hub.
        now: wall clock that never steps back, seconds; every method takes the present one.
        new_id: makes ids of commands.
        ready: whether rows can be measured without waiting.
        past, recalled: what is stored of the run, which this hub goes on from.
    """

    def __init__(
        self,
        run: str,
        epoch: str,
        now: float,
        new_id: Callable[[], str],
        ready: Callable[[], bool] = lambda: True,
        past: api.Snapshot | None = None,
        recalled: StoredAggregates | None = None,
    ) -> None:
        self.snapshot = api.Snapshot(run, epoch, 0, now, now)
        resumed = recalled.resumed if recalled is not None else Resumed()
        self._index = RolloutIndex()
        self._index.expect(uses(resumed.taken))
        self._steps = Steps(self._index, ready, StoredSteps({step: taken.lives for step, taken in resumed.taken}))
        self._sources = Sources(_of_the_living(resumed.marks, past), now)
        self._steps.behind = self._sources.behind(now)
        self._settling = Acknowledgements(self._index.needed, self._steps.is_open)
        self._engines = Engines()
        self._trainer = TrainerRanks()
        self._chooser = InputChooser(self._engines, lambda: self._steps.samples.answer(None, "sample"))
        self._commands = CommandLifecycle(new_id, self._engines, now, self._chooser.choose)
        self._fingerprints = Fingerprints()
        self._effects = EffectHistory(recalled.marks if recalled else {})
        self._joins = JoinWatch()
        self._probes = RunningProbes()
        self._measured: list[ProbeResult] = []
        self._new_steps: list[api.Step] = []
        self._events: list[api.Event] = []
        self._event_number = 0
        self._counters: dict[str, int] = {}
        self._last_step: int | None = None
        self._skewed = False
        self._losses: dict[str, tuple[float, int]] = {}  # per source: when last told, how many since
        self._audit_trouble = ""
        self._last_past = -1  # last step that the hub before measured
        self._holes = Holes()
        self._alarms = AlarmWatch(epoch, past.alarms.values() if past is not None else ())
        if past is not None:
            self._resume(past, now)
        if recalled is not None:
            self._effects.throughput.restore(recalled.samples)
            for step in recalled.steps:
                self._steps.cells.put(step.step, step.closed, step.cells)
            for number, parts in recalled.parts:
                self._steps.history.put_parts(number, parts)
            for stretch in recalled.course:
                self._steps.course.put(stretch.last, stretch.engines)

    def restore(self, lines: list[audit.AuditLine], bad: int, now: float) -> list[Effect]:
        """Take in the audit log that earlier hubs of this run wrote, of which ``bad`` lines can't be read."""
        self._commands.restore(lines, now)
        self._probes.restore(lines)
        if bad:
            self._event(now, "warn", "audit", f"{bad} lines of the audit log can't be read; a kill may tear one")
        return self._spoken([], now)

    def audit_written(self, trouble: str, waiting: int, now: float) -> None:
        """How the audit log took its lines: ``trouble`` says why it did not, and ``waiting`` lines are not on disk."""
        if trouble and not self._audit_trouble:
            self._event(now, "error", "audit", f"the audit log can't be written, {waiting} lines wait: {trouble}")
        elif self._audit_trouble and not trouble:
            self._event(now, "info", "audit", "the audit log is written again, nothing is missing")
        self._audit_trouble = trouble

    # --- what comes in ------------------------------------------------------------------------------------------

    def data(self, frames: list[bytes], now: float) -> list[Effect]:
        """A data message, as received. Malformed ones are counted and named, never fatal."""
        self.count("messages")
        self.count("bytes", sum(len(frame) for frame in frames))
        try:
            envelope, body, arrays = wire.decode_data(frames)
        except wire.WireError as error:
            self.invalid(str(error), now)
            return []
        passing = isinstance(body, wire.PASSING)
        message = envelope, wire.Passed() if passing else body, arrays
        arrival = self._sources.arrived(envelope, now, message, sum(array.nbytes for array in arrays.values()))
        effects = self._arrived(arrival, now)
        if passing:  # what is about the present is good at any time
            self._take_or_tell(envelope, body, arrays, now)
        for its_envelope, its_body, its_arrays in arrival.ready:
            self._take_or_tell(its_envelope, its_body, its_arrays, now)
            self._settling.took(its_envelope, its_body)
        return self._spoken(effects, now)

    def _take_or_tell(self, envelope: wire.Envelope, body: wire.DataBody, arrays: wire.Arrays, now: float) -> None:
        try:
            self._take(envelope, body, arrays, now)
        except wire.WireError as error:
            self.invalid(f"{envelope.source}: {error}", now)

    def control(self, sender: str, frame: bytes, now: float) -> list[Effect]:
        """A control message from the collector with identity ``sender``."""
        try:
            message = wire.decode_to_hub(frame)
        except wire.WireError as error:
            self.invalid(f"{sender}: {error}", now)
            return []
        source, _, epoch = sender.rpartition("#")
        if isinstance(message, wire.CommandUpdate):
            if message.engine != source:
                self.invalid(f"{sender} speaks for engine {message.engine}", now)
            else:
                self._commands.apply_update(message, now)
            return self._spoken([], now)
        if (message.source, message.epoch) != (source, epoch):
            self.invalid(f"{sender} speaks for {identity(message.source, message.epoch)}", now)
            return []
        if isinstance(message, wire.Register):
            return self._register(message, now)
        if lost := self._sources.goodbye(message, now):
            self._lost(message.source, lost)
        return self._spoken(self._farewells(now), now)

    def ask(self, client: bytes, frame: bytes, now: float) -> list[Effect]:
        """A question from a viewer."""
        try:
            question = api.decode_question(frame)
        except ValueError as error:
            self.invalid(f"a viewer: {error}", now)
            return []
        if isinstance(question, api.AskSnapshot):
            return [Reply(client, api.Answer(question.id, snapshot=self.snapshot))]
        if isinstance(question, api.AskEffect):
            return [Reply(client, self._effects.answer(question, self.snapshot.changes, self._steps.cells))]
        if isinstance(question, api.AskAttribution):
            return [Reply(client, api.Answer(question.id, attribution=self._steps.attribution(question.steps)))]
        if isinstance(question, api.AskStop):
            return [Reply(client, api.Answer(question.id)), Stop()]
        if isinstance(question, api.AskDiagnosis):
            verdict = self._alarms.verdict(now) if question.step is None else None
            known = None if verdict is None else api.Answer(question.id, diagnosis=verdict)
            return [Reply(client, known or self._detail(question))]
        if isinstance(question, api.AskPast):
            return [
                AnswerFromStore(client, question, api.Answer(question.id, error="only a store has engines of the past"))
            ]
        if isinstance(question, api.AskSamples | api.AskMismatch):
            answer = self._detail(question)
            return [
                AnswerFromStore(client, question, answer) if self._stored_alone(question) else Reply(client, answer)
            ]
        if isinstance(question, api.AskAlarm):
            return self._ask_alarm(client, question, now)
        try:
            command, orders = self._commands.request(question, now, self._last_step)
        except RejectedError as error:
            return [Reply(client, api.Answer(question.id, error=str(error)))]
        if isinstance(question, api.AskProbe) and command not in self.snapshot.probes:
            asked = [change.engine for change in self._commands.changes_of(command)]
            self._probes.start(command, question.probe, asked, self._chooser.take_chosen())
        reply = Reply(client, api.Answer(question.id, command=command))
        return self._spoken([reply, *self._orders(orders)], now)

    def _ask_alarm(self, client: bytes, question: api.AskAlarm, now: float) -> list[Effect]:
        try:
            alarm, note, line = self._alarms.answer(question, now, self._last_step)
        except ValueError as error:
            return [Reply(client, api.Answer(question.id, error=str(error)))]
        self._event(now, note.severity, "alarm", note.text)
        return [Audit(line), Reply(client, api.Answer(question.id, alarm=alarm))]

    def _detail(self, question: api.AskSamples | api.AskMismatch | api.AskDiagnosis) -> api.Answer:
        steps = self._steps
        try:
            if isinstance(question, api.AskDiagnosis):
                case = self.case()
                asked = case if question.step is None else case.up_to(question.step)
                return api.Answer(question.id, diagnosis=diagnose(asked))
            if isinstance(question, api.AskMismatch):
                return api.Answer(question.id, mismatch=steps.shapes.answer(question.first, question.last))
            found = steps.samples.answer(question.step, question.kind, question.engine, question.limit)
            return api.Answer(question.id, samples=found)
        except ValueError as error:
            return api.Answer(question.id, error=str(error))

    def _stored_alone(self, question: api.AskSamples | api.AskMismatch) -> bool:
        """Whether what is asked for is not in memory, but may be in the store: let go, or of the hub before."""
        if isinstance(question, api.AskSamples):
            kept = self._steps.samples
            return not kept if question.step is None else kept.of_step(question.step) is None
        reaches_back = self._last_past >= (question.first or 0)
        return reaches_back and not self._steps.shapes.is_full(question.first, question.last)

    def undelivered(self, receiver: str, frame: bytes, now: float) -> list[Effect]:
        """A control message could not be delivered."""
        message = wire.decode_to_collector(frame)
        if isinstance(message, wire.Command):
            self._commands.not_delivered(receiver.rpartition("#")[0], message.id, now)
        elif isinstance(message, wire.Resend) and (source := self._sources.get(receiver.rpartition("#")[0])):
            source.asked = -1  # its data came before its control socket was there: once more at the next tick
        return self._spoken([], now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: to be called several times a second, and again while ``unfinished``."""
        effects = self._farewells(now)
        effects += [effect for source in self._sources for effect in self._ask_again(source, now)]
        self._steps.behind = self._sources.behind(now)
        done = self._steps.tick(now, self._sources.heard(now))
        for place, step in enumerate(done):
            self._tell_holes(step.step, [*self._steps.open, *(other.step for other in done[place + 1 :])], now)
            self._closed(step, now)
        for source in self._sources.falling_silent(now):
            self._event(now, "warn", _kind(source), f"{source.name} is silent", engine=_engine(source))
            self._engines.set_health(source.name, "silent")
        self._commands.tick(now)
        self._tell_losses(now)
        self._watch_skew(now)
        self._compare_facts(now)
        self._trainer.set_health(self._sources.trainer_health())
        self._counters["evicted_rollouts"] = self._index.evicted
        self._counters["late_rows"] = self._steps.late_rows
        self._counters["settled_early"] = self._steps.settled_early
        return self._spoken([*self._finish_probes(now), *effects], now)

    @property
    def unfinished(self) -> bool:
        """Whether the last tick left rows that can be measured: tick again before any data."""
        return self._steps.unfinished

    def watch(self, now: float) -> None:
        """Look whether something is wrong with the run: to be called with every tick, and after it."""
        if note := self._alarms.diagnose_if_due(self.case, now):
            self._event(now, note.severity, "alarm", note.text, engine=note.engine)

    # --- what goes out ------------------------------------------------------------------------------------------

    def frame(self, now: float, *, heartbeat: bool = False) -> api.Frame | None:
        """The next frame, applied to ``snapshot``; None if nothing changed and no heartbeat is due."""
        shown = self.snapshot.counters
        frame = api.Frame(
            self.snapshot.epoch,
            self.snapshot.seq + 1,
            now,
            self._engines.take_changed(),
            self._trainer.take_changed(),
            self._new_steps,
            self._events,
            self._commands.take_changed(),
            {name: count for name, count in self._counters.items() if shown.get(name, 0) != count},
            self._measured,
            self._alarms.take_changed(),
        )
        self._new_steps, self._events, self._measured = [], [], []
        changed = frame.engines or frame.trainer or api.has_records(frame) or frame.counters
        if not (changed or frame.probes or heartbeat):
            return None
        self.snapshot.apply(frame)
        return frame

    def note(self, now: float, severity: str, kind: str, text: str) -> None:
        """An event that the hub's shell tells of."""
        self._event(now, severity, kind, text)

    def beside(self, steps: list[api.Step]) -> FrameAggregates:
        """What is to be stored beside the frame that was made last, which has ``steps``."""
        of = self._steps
        kept = [
            StepDetails(
                n, of.samples.of_step(n), of.shapes.of_step(n), of.history.of_step(n), of.cells.of_step(n),
                of.course.of_step(n), of.taken.pop(n, None),
            )
            for n in (step.step for step in steps)
        ]  # fmt: skip
        marks = self._settling.marks(self._sources, self.snapshot.time, step_done=bool(steps))
        return FrameAggregates(kept, self._effects.take_new_marks(), self._effects.throughput.take_finished(), marks)

    def beside_not_stored(self) -> None:
        """What was to be stored beside the frame that was made last, the disk does not take."""
        self._settling.not_stored()

    def stored(self) -> list[Effect]:
        """All that was to be stored, is: senders may forget what is settled by it."""
        return [SendControl(identity(name, word.epoch), word) for name, word in self._settling.acknowledged()]

    def case(self) -> DiagnosisInput:
        """What a diagnosis is made from, as of now: with the steps that go out with the next frame."""
        now = self.snapshot
        return DiagnosisInput(
            now.run,
            list((now.steps | {step.step: step for step in self._new_steps}).values()),
            dict(now.engines),
            now.trainer,
            list(now.events),
            list(now.changes.values()),
            self._steps.course.stretches(),
        )

    def waiting(self, frames: int) -> None:
        """How many frames the disk has not taken, for the next frame to say."""
        self._counters["unstored"] = frames

    def not_stored(self, frame: api.Frame, frames: int) -> None:
        """Say in ``frame``, which was made last, how many frames up to it the disk has not taken."""
        if self.snapshot.counters.get("unstored", 0) != frames:
            self._counters["unstored"] = self.snapshot.counters["unstored"] = frame.counters["unstored"] = frames

    # --- inside -------------------------------------------------------------------------------------------------

    def _resume(self, past: api.Snapshot, now: float) -> None:
        self.snapshot.steps, self.snapshot.events = past.steps, past.events
        self.snapshot.alarms = past.alarms
        # What was still open the audit log knows, and what became of it.
        self.snapshot.changes = {key: change for key, change in past.changes.items() if change.state in api.TERMINAL}
        if now - past.time < RESUME_ENGINES_S:
            silent = {e.id: msgspec.structs.replace(e, health="silent") for e in past.engines.values()}
            self.snapshot.engines = {
                e: past.engines[e] if past.engines[e].health == "gone" else silent[e] for e in silent
            }
        self._event_number = max((event.number for event in past.events), default=-1) + 1
        self._last_step = max(past.steps, default=None)
        self._holes = Holes(self._last_step)
        self._last_past = max(past.steps, default=-1)
        self._steps.resume(past.steps)
        self._event(now, "info", "hub", f"a new hub goes on from {len(past.steps)} stored steps")

    def _tell_holes(self, step: int, still_open: list[int], now: float) -> None:
        """Were there steps before this one, or before those that still wait, that nobody measured?"""
        for first, last, why in self._holes.closed(step, still_open):
            which = f"step {first} was" if first == last else f"steps {first} to {last} were"
            self.count("missing_steps", last - first + 1)
            self._event(now, "warn", "gap", f"{which} not measured: {why}")

    def _take(self, envelope: wire.Envelope, body: wire.DataBody, arrays: wire.Arrays, now: float) -> None:
        _check_speaker(envelope, body)
        if isinstance(body, wire.Rollouts):
            self._index.add(body, arrays, envelope.epoch, envelope.seq)
            self._chooser.recent.add(body, arrays)
            self._fingerprints.sampled.observe(body)
        elif isinstance(body, wire.EngineState):
            self._engines.set_state(envelope, body, now)
            self._effects.record_state(envelope, body, now)
            for update in body.commands:
                self._commands.apply_update(update, now)
        elif isinstance(body, wire.Sequences):
            self._steps.behind = self._sources.behind(now)
            self._trainer.rows(body)
            self._engines.set_trainer_version(self._trainer.version)
            self._steps.rows(envelope.epoch, body, arrays, now)
        elif isinstance(body, wire.StepClosed):
            self._trainer.closed(body)
            self._probes.weights.add_trainer_digests(body)
            self._engines.set_trainer_version(self._trainer.version)
            self._steps.closed(envelope.epoch, body, now)
        elif isinstance(body, wire.TrainerFacts):
            self._trainer.facts(body)
        elif isinstance(body, wire.ProbeReport):
            self._probes.add_report(body, arrays, envelope.epoch)
        elif isinstance(body, wire.Health):
            self._health(envelope, body, now)

    def _arrived(self, arrival: Arrival, now: float) -> list[Effect]:
        source, news = arrival.source, arrival.news
        if news:
            severity = "warn" if news == "restarted" else "info"
            self._event(now, severity, _kind(source), f"{source.name} {news}", engine=_engine(source))
        if arrival.twice:
            self.count("duplicates")
        if arrival.lost:
            self._lost(source.name, arrival.lost)
        if source.is_trainer and arrival.midway:
            self._steps.lost(source.name, 0)
        if not arrival.new_life:
            return self._ask_again(source, now)
        if news != "appeared" and not source.is_trainer:
            self._commands.engine_ended(source.name, HubClosure.RESTARTED, now)
        if source.is_trainer and news != "appeared":
            self._trainer.new_epoch()
            self._steps.new_epoch()
            self._holes.new_epoch()
        welcome = SendControl(identity(source.name, source.epoch), wire.Welcome(self.snapshot.epoch))
        return [welcome, *self._ask_again(source, now)]

    def _ask_again(self, source: Source, now: float) -> list[Effect]:
        """Have a sender send again what is missing, if it is to be asked for that now."""
        if (seq := source.lacks(now)) is None:
            return []
        self.count("resends")
        return [SendControl(identity(source.name, source.epoch), wire.Resend(source.epoch, seq))]

    def _register(self, message: wire.Register, now: float) -> list[Effect]:
        if message.proto != wire.PROTO:
            self.count("invalid")
            return []
        self._sources.registered(message, now)
        to = identity(message.source, message.epoch)
        return [
            SendControl(to, wire.Welcome(self.snapshot.epoch)),
            *self._orders(self._commands.unacknowledged(message.source)),
        ]

    def _orders(self, orders: list[DeliverCommand]) -> list[Effect]:
        effects: list[Effect] = []
        for order in orders:
            source = self._sources.get(order.engine)
            assert source is not None  # only engines that were heard of are live
            effects.append(SendControl(identity(source.name, source.epoch), order.command))
        return effects

    def _spoken(self, effects: list[Effect], now: float) -> list[Effect]:
        """``effects`` after the audit lines of pending command events: those are on disk before anything is sent."""
        lines: list[Effect] = []
        for event in self._commands.take_events():
            shown = describe(event)
            self._event(now, shown.severity, "flag", shown.text, engine=shown.engine)
            lines += [Audit(line) for line in audit.lines_of(event, now, self.snapshot.epoch)]
        return [*lines, *effects]

    def _finish_probes(self, now: float) -> list[Effect]:
        """Tell what probes found out that are over, and put it on record."""
        changes = {command: self._commands.changes_of(command) for command in self._probes.open}
        known = self.snapshot.probes.keys()
        lines: list[Effect] = []
        for result in self._probes.finish(changes, self.snapshot, now):
            self._measured.append(result)
            if result.command in changes and result.command not in known:  # not read from the log
                self._event(now, "info", "probe", f"{result.probe}: {result.verdict}. {result.text}")
                lines.append(Audit(audit.measured(result, now, self.snapshot.epoch)))
        return lines

    def _closed(self, step: api.Step, now: float) -> None:
        self._new_steps.append(step)
        self._last_step = step.step
        self._alarms.step_closed(step.step)
        self.count("unjoined_rows", sum(step.unjoined.values()))
        for engine, values in step.engines.items():
            self._engines.set_gap(engine, values["logp_abs_diff_mean"])
        for line in self._joins.notices(step):
            self._event(now, "warn", "join", line)
        if step.partial:
            what = f"{step.missing_rows} rows" if step.missing_rows else "ranks or rows"
            self._event(now, "warn", "step", f"step {step.step} is partial: {what} of it are missing")

    def _health(self, envelope: wire.Envelope, health: wire.Health, now: float) -> None:
        source = self._sources.get(envelope.source)
        assert source is not None
        for place, faults in health.faults.items():
            if faults > source.faults.get(place, 0):
                text = f"{source.name}: {faults} faults in {place} were contained; the run is not affected"
                self._event(now, "error", "fault", text, engine=_engine(source))
        source.faults = health.faults
        if source.is_trainer:
            if any(counts.dropped for counts in health.counts.values()):
                self._holes.lost()
            self._trainer.set_counters(source.name, health, now)
        else:
            self._engines.set_counters(source.name, health, now)

    def _farewells(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for source, missing in self._sources.leaving(now):
            if missing:
                self._lost(source.name, missing)
            self._engines.set_health(source.name, "gone")
            self._commands.engine_ended(source.name, HubClosure.DISCONNECTED, now)
            self._event(now, "info", _kind(source), f"{source.name} said goodbye", engine=_engine(source))
            if source.is_trainer and self._sources.trainer_health() == "gone":
                self._steps.trainer_gone(now)
            effects.append(SendControl(identity(source.name, source.epoch), wire.ByeAck(source.epoch)))
        return effects

    def _lost(self, source: str, lost: int) -> None:
        self.count("lost_messages", lost)
        self._steps.lost(source, lost)
        if is_trainer(source):
            self._holes.lost()
        told, untold = self._losses.get(source, (float("-inf"), 0))
        self._losses[source] = told, untold + lost

    def _tell_losses(self, now: float) -> None:
        for name, (told, untold) in self._losses.items():
            if untold and now - told >= LOSS_EVENT_PERIOD_S:
                self._losses[name] = now, 0
                self._event(now, "warn", "lost", f"{untold} messages of {name} were lost on the way")

    def _watch_skew(self, now: float) -> None:
        skew = self._engines.skew()
        if skew > MAX_SKEW and not self._skewed:
            self._event(now, "warn", "skew", f"live engines differ by {skew} policy versions")
        self._skewed = skew > MAX_SKEW

    def _compare_facts(self, now: float) -> None:
        if self._fingerprints.due(now):
            engines = self._engines.facts(self._fingerprints.sampled.facts)
            marks, news = self._fingerprints.compare(engines, self._trainer.stated, now)
            self._engines.set_differences(marks)
            for one in news:
                self._event(now, one.severity, "facts", one.text)

    def invalid(self, why: str, now: float) -> None:
        """A message that does not keep to the wire's rules."""
        self.count("invalid")
        if self._counters["invalid"] & (self._counters["invalid"] - 1) == 0:  # told at 1, 2, 4, 8, ...
            self._event(now, "warn", "invalid", f"invalid message ({self._counters['invalid']} so far): {why[:300]}")

    def count(self, name: str, by: int = 1) -> None:
        """Raise a counter of the hub."""
        self._counters[name] = self._counters.get(name, 0) + by

    def _event(self, now: float, severity: str, kind: str, text: str, *, engine: str | None = None) -> None:
        self._events.append(api.Event(self._event_number, now, severity, kind, text, self._last_step, engine))
        self._event_number += 1


def _check_speaker(envelope: wire.Envelope, body: wire.DataBody) -> None:
    """Raise ``WireError`` if the message is about another source than its own."""
    if isinstance(body, wire.Sequences | wire.StepClosed | wire.TrainerFacts):
        named = [f"trainer/{body.rank}"]
    elif isinstance(body, wire.EngineState):
        named = [body.engine, *(update.engine for update in body.commands)]
    else:
        named = [body.engine] if isinstance(body, wire.Rollouts | wire.ProbeReport) else []
    if others := set(named) - {envelope.source}:
        raise wire.WireError(f"it speaks for {', '.join(sorted(others))}")


def _of_the_living(marks: Mapping[str, ReceivedMark], past: api.Snapshot | None) -> dict[str, ReceivedMark]:
    """The marks of collectors that had not said goodbye: nobody else sends anything again."""
    known = {} if past is None else past.engines
    return {name: mark for name, mark in marks.items() if name not in known or known[name].health != "gone"}


def _kind(source: Source) -> str:
    return "trainer" if source.is_trainer else "engine"


def _engine(source: Source) -> str | None:
    return None if source.is_trainer else source.name
