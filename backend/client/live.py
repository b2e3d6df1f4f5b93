"""The one client of a hub, for the dashboard, the command line and the demo. One thread, never waits unasked.

Subscribe, see a first frame, ask for a snapshot, drop the frames it contains, apply the rest. A missed frame or
another hub (a new epoch) starts this over, while the picture so far stays.
"""

from __future__ import annotations

import getpass
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Self

import msgspec
import zmq

from rltop.backend import api
from rltop.backend.api.alarm import Alarm
from rltop.backend.api.attribution import Attribution
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.samples import Samples
from rltop.backend.api.verdict import Verdict
from rltop.backend.commands.lifecycle import GRACE_S
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir

LOST_S = 3.0
"""The hub sends a frame at least once a second; after this long without one it is lost."""

RETRY_S = 2.0
"""How long an unanswered request for a snapshot stands before it is asked again."""

ANSWER_S = 5.0
"""How long the blocking calls wait for an answer."""

RESULT_S = 10.0
"""How long a probe's result may take once its command has ended."""

MAX_BUFFERED = 1_000
MAX_ANSWERS = 256


Watch = Callable[[list[api.Change]], None]
"""Called with a command's changes, one per engine."""


class HubUnreachable(RuntimeError):  # noqa: N818 - says what it is
    """No hub answers for this run; the message says what to do."""


class CommandError(ValueError):
    """The hub refused a question as such: no such flag, value, engine or step."""


class Client:
    """Follows the hub of ``rundir``. Not safe for several threads.

    Attributes:
        view: the picture so far; None before the first, kept (stale) while the hub is away.
        answers: to questions asked with ``ask``, by id.
    """

    def __init__(self, rundir: RunDir) -> None:
        self.rundir = rundir
        self.view: api.Snapshot | None = None
        self.answers: dict[str, api.Answer] = {}
        self._heard: float | None = None
        self._buffer: list[api.Frame] = []
        self._snapshot_asked: tuple[str, float] | None = None
        self._context = zmq.Context()
        self._frames = self._connect(zmq.SUB, rundir.view)
        self._frames.subscribe(b"")
        self._questions = self._connect(zmq.DEALER, rundir.query)
        self._poller = zmq.Poller()
        self._poller.register(self._frames, zmq.POLLIN)
        self._poller.register(self._questions, zmq.POLLIN)

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.linger = 0
        made.setsockopt(zmq.RECONNECT_IVL, 100)
        made.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        made.setsockopt(zmq.IMMEDIATE, 1)  # a question asked of a dead hub must not reach the next one
        made.connect(endpoint)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def age_s(self) -> float:
        """Seconds since the hub was last heard of; infinite before."""
        return float("inf") if self._heard is None else time.monotonic() - self._heard

    @property
    def state(self) -> str:
        """``connecting`` before the first picture, ``live``, or ``lost``."""
        if self.view is None:
            return "connecting"
        return "live" if self.age_s <= LOST_S else "lost"

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Take in what is there, waiting at most ``timeout_s`` for the first of it. True if the picture changed."""
        changed = False
        ready = dict(self._poller.poll(int(max(timeout_s, 0.0) * 1000)))
        if self._frames in ready:
            for raw in _drain(self._frames):
                changed |= self._take_frame(api.decode_frame(raw))
        if self._questions in ready:
            for raw in _drain(self._questions):
                changed |= self._take_answer(api.decode_answer(raw))
        self._chase_snapshot()
        return changed

    def wait(self, until: Callable[[Client], bool], timeout_s: float) -> bool:
        """Poll until ``until(self)`` holds, at most ``timeout_s``. Whether it did."""
        deadline = time.monotonic() + timeout_s
        while not until(self):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.poll(min(left, 0.25))
        return True

    def ask(self, question: api.Question) -> None:
        """Send a question; its answer shows up in ``answers``, at once with an error if no hub is connected."""
        if not self._send(question):
            self._keep(api.Answer(question.id, error=self._advice()))

    def set_flag(
        self,
        flag: str,
        value: str,
        *,
        engines: Sequence[str] | None = None,
        who: str | None = None,
        host: str | None = None,
        why: str = "",
        timeout_s: float = 30.0,
        strict: bool = False,
        revert_s: float | None = None,
        fraction: float | None = None,
        watch: Watch | None = None,
    ) -> list[api.Change]:
        """Switch a flag and follow it to its end on every engine; waits at most a little over ``timeout_s``.

        ``engines`` None means all live ones, or the ``fraction`` of them; ``who`` and ``host`` default to this user and
        machine; ``strict`` and ``revert_s`` as in ``view.AskSet``. ``watch`` is called with the changes whenever one
        has moved on.

        Raises:
            CommandError: the hub refused it as such, or was lost before the command ended.
            HubUnreachable: no hub answers.
        """
        return self.command(
            api.AskSet(
                uuid.uuid4().hex, flag, value, _listed(engines), who or "", host or "", why, timeout_s,
                strict, revert_s, fraction,
            ),
            watch,
        )  # fmt: skip

    def act(
        self,
        verb: str,
        *,
        engines: Sequence[str] | None = None,
        revert_s: float | None = None,
        who: str | None = None,
        host: str | None = None,
        why: str = "",
        timeout_s: float = 30.0,
        watch: Watch | None = None,
    ) -> list[api.Change]:
        """Have engines do ``verb`` (``collectors.actions``), and follow it to its end. Otherwise as ``set_flag``."""
        return self.command(
            api.AskAct(uuid.uuid4().hex, verb, _listed(engines), revert_s, who or "", host or "", why, timeout_s),
            watch,
        )

    def keep(
        self,
        command: str,
        *,
        who: str | None = None,
        host: str | None = None,
        why: str = "",
        timeout_s: float = 30.0,
        watch: Watch | None = None,
    ) -> list[api.Change]:
        """Stop the timers of ``command``, on every engine that holds one. Otherwise as ``set_flag``."""
        return self.command(api.AskKeep(uuid.uuid4().hex, command, who or "", host or "", why, timeout_s), watch)

    def undo(
        self,
        command: str,
        *,
        who: str | None = None,
        host: str | None = None,
        why: str = "",
        timeout_s: float = 30.0,
        watch: Watch | None = None,
    ) -> list[api.Change]:
        """Bring the engines that ``command`` changed back to what they had before. Otherwise as ``set_flag``."""
        return self.command(api.AskUndo(uuid.uuid4().hex, command, who or "", host or "", why, timeout_s), watch)

    def probe(
        self,
        probe: str,
        *,
        engines: Sequence[str] | None = None,
        who: str | None = None,
        host: str | None = None,
        why: str = "",
        timeout_s: float = 120.0,
        watch: Watch | None = None,
    ) -> ProbeResult:
        """Start a probe (``collectors.probes``), follow it to its end, and say what it found out.

        Raises as ``set_flag``.
        """
        question = api.AskProbe(uuid.uuid4().hex, probe, _listed(engines), who or "", host or "", why, timeout_s)
        command = self.command(question, watch)[0].command
        return self.measured(command, RESULT_S)

    def measured(self, command: str, timeout_s: float = 0.0) -> ProbeResult:
        """What the probe of ``command`` (its id or the start of it) found out, waiting for it if need be.

        Raises:
            CommandError: no such probe, or it has not ended.
            HubUnreachable: no hub answers.
        """
        self.snapshot()

        def found(client: Client) -> list[ProbeResult]:
            known = client.view.probes.items() if client.view else ()
            return [result for name, result in known if name == command or name.startswith(command)]

        if not self.wait(lambda client: bool(found(client)), timeout_s) or len(found(self)) > 1:
            known = list(self.view.probes) if self.view else []
            raise CommandError(
                f"no one probe {command!r} has ended here; the last ones: {', '.join(known[-5:]) or 'none'}"
            )
        return found(self)[0]

    def command(self, question: api.AskCommand, watch: Watch | None = None) -> list[api.Change]:
        """Ask for a command and follow it to its end on every engine; see ``set_flag``."""
        self.snapshot()
        question = msgspec.structs.replace(
            question, who=question.who or getpass.getuser(), host=question.host or socket.gethostname()
        )
        answer = self._answer(question)
        if answer.command is None:
            raise CommandError(answer.error or "the hub gave no command")
        # The command and its changes come in one frame after the answer; each engine's change then lives to its end.
        seen: list[api.Change] = []

        def ended(client: Client) -> bool:
            nonlocal seen
            found = client._changes(answer.command)
            if watch is not None and found != seen:
                watch(found)
            seen = found
            return found != [] and _closed(found)

        if not self.wait(ended, question.timeout_s + GRACE_S + 2.0):
            raise CommandError(
                f"command {answer.command} was sent, but the hub was lost before it ended; `rltop audit` "
                "tells what became of it, once a hub has heard of it"
            )
        return seen

    def effect(self, command: str = "") -> api.Effect:
        """What a command did; its id or the start of it, empty for the last that switched anything.

        Raises:
            CommandError: no such command, or it switched nothing.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskEffect(uuid.uuid4().hex, command))
        if answer.effect is None:
            raise CommandError(answer.error or "the hub gave no effect")
        return answer.effect

    def snapshot(self, timeout_s: float = 5.0) -> api.Snapshot:
        """The present picture, waiting for the hub if need be.

        Raises:
            HubUnreachable: no hub answers within ``timeout_s``.
        """
        if not self.wait(lambda c: c.state == "live", timeout_s):
            raise HubUnreachable(self._advice())
        assert self.view is not None
        return self.view

    def attribution(self, steps: int = 20) -> Attribution:
        """Where the gap of the last ``steps`` steps comes from.

        Raises:
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskAttribution(uuid.uuid4().hex, steps))
        if answer.attribution is None:
            raise HubUnreachable(answer.error or "the hub is of another version")
        return answer.attribution

    def diagnosis(self, step: int | None = None) -> Verdict:
        """What is wrong with the run, as of ``step`` (None: the last).

        Raises:
            CommandError: there is no such step.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskDiagnosis(uuid.uuid4().hex, step))
        if answer.diagnosis is None:
            raise CommandError(answer.error or "the hub gave no diagnosis")
        return answer.diagnosis

    def acknowledge(self, alarm: str, *, why: str = "") -> Alarm:
        """Take note of an alarm, as this user. Raises ``CommandError``, ``HubUnreachable``."""
        return self._ask_alarm(
            api.AskAcknowledge(uuid.uuid4().hex, alarm, getpass.getuser(), socket.gethostname(), why)
        )

    def silence(self, alarm: str, seconds: float, *, why: str = "") -> Alarm:
        """Have nothing told of an alarm for ``seconds``; 0 ends that. Otherwise as ``acknowledge``."""
        who, host = getpass.getuser(), socket.gethostname()
        return self._ask_alarm(api.AskSilence(uuid.uuid4().hex, alarm, seconds, who, host, why))

    def _ask_alarm(self, question: api.AskAlarm) -> Alarm:
        self.snapshot()
        answer = self._answer(question)
        if answer.alarm is None:
            raise CommandError(answer.error or "the hub gave no alarm")
        return answer.alarm

    def samples(
        self, step: int | None = None, kind: str = "sample", engine: str | None = None, limit: int = 32
    ) -> Samples:
        """Sequences or tokens of a step; see ``view.AskSamples``.

        Raises:
            CommandError: there are none; the text says what there is.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskSamples(uuid.uuid4().hex, step, kind, engine, limit))
        if answer.samples is None:
            raise CommandError(answer.error or "the hub gave no samples")
        return answer.samples

    def stop_hub(self) -> None:
        """Tell the hub to end, and wait until it has; the run goes on. Raises ``HubUnreachable``."""
        self.snapshot()
        hub = find_hub(self.rundir)
        self.ask(api.AskStop(uuid.uuid4().hex))
        # Its answer may be lost with its end: what counts is that it let go of the run.
        if not self.wait(lambda c: find_hub(c.rundir) is None or find_hub(c.rundir) != hub, ANSWER_S):
            raise HubUnreachable(f"the hub of run {self.rundir.run!r} did not end within {ANSWER_S:.0f} s")

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        if not self._context.closed:
            self._frames.close()
            self._questions.close()
            self._context.term()

    def _answer(self, question: api.Question) -> api.Answer:
        self.ask(question)
        if not self.wait(lambda c: question.id in c.answers, ANSWER_S):
            raise HubUnreachable(self._advice())
        return self.answers.pop(question.id)

    def _advice(self) -> str:
        run = self.rundir
        return f"no hub answers for run {run.run!r} in {run.path.parent}; `rltop hub {run.argument}` starts one"

    def _changes(self, command: str | None) -> list[api.Change]:
        return [c for c in self.view.changes.values() if c.command == command] if self.view else []

    def _send(self, question: api.Question) -> bool:
        try:
            self._questions.send(api.encode(question), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _chase_snapshot(self) -> None:
        """Ask for a snapshot if frames wait for one and no request is on its way."""
        now = time.monotonic()
        if not self._buffer or (self._snapshot_asked and now - self._snapshot_asked[1] < RETRY_S):
            return
        question = api.AskSnapshot(uuid.uuid4().hex)
        if self._send(question):
            self._snapshot_asked = question.id, now

    def _take_frame(self, frame: api.Frame) -> bool:
        self._heard = time.monotonic()
        if self.view is not None and not self._buffer and _follows(self.view, frame):
            self.view.apply(frame)
            return True
        self._buffer.append(frame)
        del self._buffer[:-MAX_BUFFERED]
        return False

    def _take_answer(self, answer: api.Answer) -> bool:
        if answer.snapshot is None:
            self._keep(answer)
            return False
        if self._snapshot_asked is None or answer.id != self._snapshot_asked[0]:
            self._keep(answer)  # asked for by the caller, or too late to be of use
            return False
        self._snapshot_asked = None
        self._heard = time.monotonic()
        waiting, self._buffer = self._buffer, []
        return self._start_over(answer.snapshot, waiting)

    def _start_over(self, picture: api.Snapshot, waiting: list[api.Frame]) -> bool:
        """Take a snapshot and the frames that came while it was on its way; what does not fit waits for another."""
        epoch = waiting[-1].epoch if waiting else picture.epoch
        waiting = [frame for frame in waiting if frame.epoch == epoch]
        if epoch != picture.epoch:  # the answer of a hub that has since been replaced
            self._buffer = waiting
            return False
        for place, frame in enumerate(waiting):
            if frame.seq > picture.seq + 1:
                self._buffer = waiting[place:]
                break
            if frame.seq > picture.seq:
                picture.apply(frame)
        self.view = picture
        return True

    def _keep(self, answer: api.Answer) -> None:
        self.answers[answer.id] = answer
        while len(self.answers) > MAX_ANSWERS:
            del self.answers[next(iter(self.answers))]


def _drain(source: zmq.Socket[bytes]) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(source.recv(zmq.NOBLOCK))
        except zmq.Again:
            return frames


def _follows(picture: api.Snapshot, frame: api.Frame) -> bool:
    return frame.epoch == picture.epoch and frame.seq == picture.seq + 1


def _listed(engines: Sequence[str] | None) -> list[str] | None:
    return None if engines is None else list(engines)


def _closed(changes: list[api.Change]) -> bool:
    return all(change.state in api.TERMINAL for change in changes)
