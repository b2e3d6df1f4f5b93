"""Client of a live hub, for the dashboard, the command line and the demo. One thread; only named calls wait.

It subscribes to frames, asks for a snapshot on the first one, drops the frames that the snapshot contains and applies
the rest. A missed frame or a new hub (another epoch) repeats this; meanwhile the last view stays.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Self

import zmq

from rltop.backend import api
from rltop.backend.api.alarm import Alarm
from rltop.backend.api.attribution import Attribution
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.samples import Samples
from rltop.backend.api.verdict import Verdict
from rltop.backend.commands.lifecycle import GRACE_S
from rltop.collectors.contract.keys import RunKeyError, control_key
from rltop.collectors.contract.launch import find_hub, is_stopped
from rltop.collectors.contract.rundir import RunDir

LOST_S = 3.0
"""The hub sends a frame at least once a second; it counts as lost after this long without one."""

RETRY_S = 2.0
"""How long a snapshot request may be unanswered before it is repeated."""

ANSWER_S = 5.0
"""How long the blocking calls wait for an answer."""

BUSY_S = 25.0
"""How long they wait in addition while the hub's process runs: with all cores busy it answers late."""

RESULT_S = 10.0
"""How long a probe's result may take once its command has ended."""

MAX_BUFFERED = 1_000
MAX_ANSWERS = 256

Watch = Callable[[list[api.Change]], None]
"""Called with a command's changes, one per engine."""


class HubUnreachable(RuntimeError):  # noqa: N818 - the name is a state
    """No hub answers for this run; the message contains the command that starts one."""


class CommandError(ValueError):
    """The hub rejected a question: invalid flag, value, engine or step."""


class Client:
    """Follows the hub of ``rundir``. Not safe for several threads.

    Args:
        rundir: of the run.
        control: requests that need the control key are sent with its proof; otherwise they are not sent.

    Attributes:
        view: the current snapshot; None before the first, stale while the hub is lost.
        answers: to questions sent with ``ask``, by id.

    Raises:
        RunDirError: another user could act as the hub.
    """

    def __init__(self, rundir: RunDir, *, control: bool = True) -> None:
        with contextlib.suppress(OSError):  # there is none yet
            rundir.check()
        self.rundir = rundir
        self.view: api.Snapshot | None = None
        self.answers: dict[str, api.Answer] = {}
        self._heard: float | None = None
        self._buffer: list[api.Frame] = []
        self._snapshot_asked: tuple[str, float] | None = None
        self._control = control
        self._challenged: dict[str, api.AskControl] = {}  # by id of the question for their challenge
        self._context = zmq.Context()
        self._frames = self._connect(zmq.SUB, rundir.view)
        self._frames.subscribe(b"")
        self._questions = self._connect(zmq.DEALER, rundir.query)
        self._poller = zmq.Poller()
        self._poller.register(self._frames, zmq.POLLIN)
        self._poller.register(self._questions, zmq.POLLIN)

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        connected = self._context.socket(kind)
        connected.linger = 0
        connected.setsockopt(zmq.RECONNECT_IVL, 100)
        connected.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        connected.setsockopt(zmq.IMMEDIATE, 1)  # a question to a dead hub must not reach the next one
        connected.connect(endpoint)
        return connected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def age_s(self) -> float:
        """Seconds since the last frame; infinite before the first."""
        return float("inf") if self._heard is None else time.monotonic() - self._heard

    @property
    def state(self) -> str:
        """``connecting`` before the first snapshot, ``live``, or ``lost``."""
        if self.view is None:
            return "connecting"
        return "live" if self.age_s <= LOST_S else "lost"

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Process what has arrived; wait at most ``timeout_s`` if nothing has. True if ``view`` changed."""
        changed = False
        ready = dict(self._poller.poll(int(max(timeout_s, 0.0) * 1000)))
        if self._frames in ready:
            for raw in _drain(self._frames):
                changed |= self._take_frame(api.decode_frame(raw))
        if self._questions in ready:
            for raw in _drain(self._questions):
                changed |= self._take_answer(api.decode_answer(raw))
        self._request_snapshot()
        return changed

    def wait(self, until: Callable[[Client], bool], timeout_s: float) -> bool:
        """Poll until ``until(self)`` is true, at most ``timeout_s``. Returns whether it was."""
        deadline = time.monotonic() + timeout_s
        while not until(self):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.poll(min(left, 0.25))
        return True

    def ask(self, question: api.Question) -> None:
        """Send a question. Its answer appears in ``answers``; immediately, as an error, if no hub is connected."""
        if isinstance(question, api.AskControl):
            error = self._ask_control(question)
        else:
            error = "" if self._send(api.encode(question)) else advice(self.rundir)
        if error:
            self._keep(api.Answer(question.id, error=error))

    def _ask_control(self, question: api.AskControl) -> str:
        """Ask for a challenge, with which the question is sent; returns the error."""
        if not self._control and not isinstance(question, api.AskAcknowledge | api.AskSilence):
            return "this client is read-only"  # an alarm is answered without a change of the run
        challenge = api.AskChallenge(api.new_id())
        if not self._send(api.encode(challenge)):
            return advice(self.rundir)
        self._challenged[challenge.id] = question
        while len(self._challenged) > MAX_ANSWERS:
            del self._challenged[next(iter(self._challenged))]
        return ""

    def _send_proven(self, question: api.AskControl, challenge: str) -> None:
        """Send a request with the proof that this client has the control key."""
        frame = api.encode(question)
        try:
            proof = control_key(self.rundir).proof(*api.proven(challenge, frame))
        except RunKeyError as error:
            self._keep(api.Answer(question.id, error=str(error)))
            return
        if not self._send(frame, api.encode_proof(challenge, proof)):
            self._keep(api.Answer(question.id, error=advice(self.rundir)))

    def command(self, question: api.AskCommand, watch: Watch | None = None) -> list[api.Change]:
        """Send a command and wait until every engine has closed it, a little over ``question.timeout_s`` at most.

        ``watch`` is called whenever a change has changed.

        Raises:
            CommandError: the hub rejected the request, or was lost before the command ended.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(question)
        if answer.command is None:
            raise CommandError(answer.error or "the hub returned no command")
        # The changes come in a frame after the answer; from then on each stays in the view until it is closed.
        seen: list[api.Change] = []

        def ended(client: Client) -> bool:
            nonlocal seen
            changes = client._changes(answer.command)
            if watch is not None and changes != seen:
                watch(changes)
            seen = changes
            return changes != [] and all(change.state in api.TERMINAL for change in changes)

        if not self.wait(ended, question.timeout_s + GRACE_S + 2.0):
            raise CommandError(
                f"command {answer.command} was sent, but the hub was lost before it ended; `rltop audit` "
                "shows the outcome once a hub has received it"
            )
        return seen

    def probe(self, question: api.AskProbe, watch: Watch | None = None) -> ProbeResult:
        """Run a probe (``collectors.contract.probes``) and return its result. Otherwise as ``command``."""
        command = self.command(question, watch)[0].command
        return self.probe_result(command, RESULT_S)

    def probe_result(self, command: str, timeout_s: float = 0.0) -> ProbeResult:
        """The result of the probe ``command`` (its id or a prefix), waiting for it if necessary.

        Raises:
            CommandError: no such probe, or it has not ended.
            HubUnreachable: no hub answers.
        """
        self.snapshot()

        def matches(client: Client) -> list[ProbeResult]:
            known = client.view.probes.items() if client.view else ()
            return [result for name, result in known if name.startswith(command)]

        if not self.wait(lambda client: bool(matches(client)), timeout_s) or len(matches(self)) > 1:
            known = list(self.view.probes) if self.view else []
            raise CommandError(
                f"no single finished probe matches {command!r}; the last ones: {', '.join(known[-5:]) or 'none'}"
            )
        return matches(self)[0]

    def effect(self, command: str = "") -> api.Effect:
        """The effect of a command, named by its id or a prefix; empty: the last one that changed a flag.

        Raises:
            CommandError: no such command, or it changed nothing.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskEffect(api.new_id(), command))
        if answer.effect is None:
            raise CommandError(answer.error or "the hub returned no effect")
        return answer.effect

    def snapshot(self, timeout_s: float = 5.0) -> api.Snapshot:
        """The current snapshot, waiting for the hub if necessary.

        Raises:
            HubUnreachable: no hub answers within ``timeout_s``, and ``BUSY_S`` more if its process runs.
        """
        if not self._wait_for_hub(lambda c: c.state == "live", timeout_s):
            raise HubUnreachable(advice(self.rundir))
        assert self.view is not None
        return self.view

    def attribution(self, steps: int = 20) -> Attribution:
        """The gap of the last ``steps`` steps, broken down by source.

        Raises:
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskAttribution(api.new_id(), steps))
        if answer.attribution is None:
            raise HubUnreachable(answer.error or "the hub is of another version")
        return answer.attribution

    def diagnosis(self, step: int | None = None) -> Verdict:
        """The diagnosis of the run as of ``step`` (None: the last).

        Raises:
            CommandError: there is no such step.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(api.AskDiagnosis(api.new_id(), step))
        if answer.diagnosis is None:
            raise CommandError(answer.error or "the hub returned no diagnosis")
        return answer.diagnosis

    def change_alarm(self, question: api.AskAlarm) -> Alarm:
        """Acknowledge or silence an alarm.

        Raises:
            CommandError: no such open alarm.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(question)
        if answer.alarm is None:
            raise CommandError(answer.error or "the hub returned no alarm")
        return answer.alarm

    def samples(self, question: api.AskSamples) -> Samples:
        """Sequences or tokens of a step.

        Raises:
            CommandError: there are none; the message lists the steps that have some.
            HubUnreachable: no hub answers.
        """
        self.snapshot()
        answer = self._answer(question)
        if answer.samples is None:
            raise CommandError(answer.error or "the hub returned no samples")
        return answer.samples

    def stop_hub(self) -> None:
        """Stop the hub and wait until it has ended; the run continues. Raises ``HubUnreachable``."""
        self.snapshot()
        hub = find_hub(self.rundir)
        question = api.AskStop(api.new_id())
        self.ask(question)

        def refusal(client: Client) -> str | None:
            answer = client.answers.get(question.id)
            return None if answer is None else answer.error

        # Its answer may be lost: the hub has ended when the run is no longer registered to it.
        ended = self._wait_for_hub(lambda c: find_hub(c.rundir) != hub or bool(refusal(c)))
        if error := refusal(self):
            raise HubUnreachable(error)
        if not ended:
            raise HubUnreachable(f"the hub of run {self.rundir.run!r} does not end")

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        if not self._context.closed:
            self._frames.close()
            self._questions.close()
            self._context.term()

    def _answer(self, question: api.Question) -> api.Answer:
        self.ask(question)
        if not self._wait_for_hub(lambda c: question.id in c.answers):
            raise HubUnreachable(advice(self.rundir))
        return self.answers.pop(question.id)

    def _wait_for_hub(self, until: Callable[[Client], bool], timeout_s: float = ANSWER_S) -> bool:
        """Wait for an answer, longer while the hub's process runs."""
        return self.wait(until, timeout_s) or (_is_running(self.rundir) and self.wait(until, BUSY_S))

    def _changes(self, command: str | None) -> list[api.Change]:
        return [c for c in self.view.changes.values() if c.command == command] if self.view else []

    def _send(self, *frames: bytes) -> bool:
        try:
            self._questions.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _request_snapshot(self) -> None:
        """Ask for a snapshot if buffered frames need one and no request is pending."""
        now = time.monotonic()
        if not self._buffer or (self._snapshot_asked and now - self._snapshot_asked[1] < RETRY_S):
            return
        question = api.AskSnapshot(api.new_id())
        if self._send(api.encode(question)):
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
        if answer.challenge is not None and (question := self._challenged.pop(answer.id, None)) is not None:
            self._send_proven(question, answer.challenge)
            return False
        if answer.snapshot is None:
            self._keep(answer)
            return False
        if self._snapshot_asked is None or answer.id != self._snapshot_asked[0]:
            self._keep(answer)  # the caller asked for it, or it is too late
            return False
        self._snapshot_asked = None
        self._heard = time.monotonic()
        waiting, self._buffer = self._buffer, []
        return self._resync(answer.snapshot, waiting)

    def _resync(self, picture: api.Snapshot, waiting: list[api.Frame]) -> bool:
        """Apply frames that arrived meanwhile to a snapshot; those after a missing one wait for the next snapshot."""
        epoch = waiting[-1].epoch if waiting else picture.epoch
        waiting = [frame for frame in waiting if frame.epoch == epoch]
        if epoch != picture.epoch:  # from a hub that has been replaced since
            self._buffer = waiting
            return False
        for i, frame in enumerate(waiting):
            if frame.seq > picture.seq + 1:
                self._buffer = waiting[i:]
                break
            if frame.seq > picture.seq:
                picture.apply(frame)
        self.view = picture
        return True

    def _keep(self, answer: api.Answer) -> None:
        self.answers[answer.id] = answer
        while len(self.answers) > MAX_ANSWERS:
            del self.answers[next(iter(self.answers))]


def _is_running(run: RunDir) -> bool:
    """Whether the hub of a run has a process that is not stopped."""
    hub = find_hub(run)
    return hub is not None and not is_stopped(hub.pid)


def advice(run: RunDir) -> str:
    """Why the hub of a run does not answer, and what to do."""
    if (hub := find_hub(run)) is None:
        return f"no hub answers for run {run.run!r} in {run.path.parent}; `rltop hub {run.argument}` starts one"
    problem = f"the hub of run {run.run!r}, process {hub.pid}, does not answer"
    if is_stopped(hub.pid):
        return f"{problem}: it is stopped; `kill -CONT {hub.pid}` continues it"
    return f"{problem}; {run.log} is its log, and `kill {hub.pid}` ends it"


def _drain(source: zmq.Socket[bytes]) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(source.recv(zmq.NOBLOCK))
        except zmq.Again:
            return frames


def _follows(picture: api.Snapshot, frame: api.Frame) -> bool:
    return frame.epoch == picture.epoch and frame.seq == picture.seq + 1
