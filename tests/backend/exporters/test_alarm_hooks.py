"""Alarm hooks: each notification once, with retries, and a hanging hook delays only itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rltop.backend.alarms.notified import NotificationHistory
from rltop.backend.api.alarm import CLEARED, RAISED, RENAMED, REOPENED, Alarm
from rltop.backend.exporters import alarm_hooks
from rltop.backend.exporters.alarm_hooks import GiveUpError, Hook, ShellCommand, TryLaterError, Webhook
from rltop.backend.exporters.forward import ForwardError
from tests.support import pictures, verdicts
from tests.support.receiver import wait_until

NOW = pictures.healthy().time


def notified(memory: NotificationHistory, *alarms: Alarm, now: float = NOW) -> list[str]:
    return [news.what for news in memory.new_changes(alarms, now)]


def test_each_change_of_an_alarm_is_notified_once() -> None:
    memory, alarm = NotificationHistory(), verdicts.alarm
    assert notified(memory) == []
    assert notified(memory, alarm()) == [RAISED]
    assert notified(memory, alarm()) == []
    assert notified(memory, alarm(cause="other")) == []
    assert notified(memory, alarm(layer="weights")) == [RENAMED]
    assert notified(memory, alarm(layer="weights", cleared=1.0)) == [CLEARED]
    assert notified(memory, alarm(layer="weights", cleared=1.0)) == []
    assert notified(memory, alarm(layer="weights", again=1)) == [REOPENED]
    assert notified(memory, alarm(layer="weights", again=1), alarm(id="a2")) == [RAISED]


def test_an_alarm_that_was_over_before_the_start_is_not_notified() -> None:
    memory = NotificationHistory()
    assert notified(memory, verdicts.alarm(cleared=1.0)) == []
    assert notified(memory, verdicts.alarm(again=1)) == [RAISED]


def test_the_same_alarm_id_of_another_history_is_another_alarm() -> None:
    memory = NotificationHistory()
    notified(memory, verdicts.alarm())
    assert notified(memory, verdicts.alarm(raised=5.0)) == [RAISED]


def test_silence_delays_and_acknowledging_ends_notifications() -> None:
    memory = NotificationHistory()
    assert notified(memory, verdicts.alarm(silenced_until=NOW + 5)) == []
    assert notified(memory, verdicts.alarm(silenced_until=NOW + 5), now=NOW + 6) == [RAISED]
    assert notified(memory, verdicts.alarm(acknowledged="kim", sure=False)) == []
    assert notified(memory, verdicts.alarm(acknowledged="kim", cleared=1.0)) == [CLEARED]  # its start was notified
    assert notified(NotificationHistory(), verdicts.alarm(acknowledged="kim")) == []


class Flaky:
    """Fails this many times, then accepts everything."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken: list[dict[str, object]] = []

    def __call__(self, content: bytes) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.taken.append(json.loads(content))


@contextmanager
def hook(deliver: alarm_hooks.Deliver, log: list[str], waits_s: tuple[float, ...] = (0.0, 0.0)) -> Iterator[Hook]:
    made = Hook(deliver, log.append, waits_s)
    try:
        yield made
    finally:
        made.close()


def test_a_message_has_the_cause_the_location_and_the_fix() -> None:
    taken = Flaky()
    with hook(taken, []) as made:
        made.show(verdicts.alarmed(), [])
        made.show(verdicts.alarmed(), [])
        made.show(verdicts.alarmed(cleared=2.0, cleared_step=30), [])
        wait_until(lambda: len(taken.taken) == 2)
    first, last = taken.taken
    assert (first["run"], first["what"], last["what"]) == ("sort", RAISED, CLEARED)
    assert str(first["text"]).startswith("rltop sort: alarm a1 raised: stale-prefix-cache (C1) on all engines")
    alarm = first["alarm"]
    assert isinstance(alarm, dict)
    assert alarm["command"] == verdicts.STALE.command and alarm["evidence"]


def test_a_failed_delivery_is_retried_and_dropped_after_the_last_wait() -> None:
    log: list[str] = []
    taken = Flaky(TryLaterError("busy"), TryLaterError("busy"))
    with hook(taken, log) as made:
        made.show(verdicts.alarmed(), [])
        wait_until(lambda: taken.taken)
    assert sum("retrying in" in line for line in log) == 2
    never = Flaky(*[TryLaterError("busy")] * 3)
    with hook(never, log) as made:
        made.show(verdicts.alarmed(), [])
        wait_until(lambda: any("dropped" in line for line in log))
        made.show(verdicts.alarmed(cleared=1.0), [])
        wait_until(lambda: never.taken)
    assert [one["what"] for one in never.taken] == [CLEARED]


def test_a_permanent_failure_is_not_retried() -> None:
    log: list[str] = []
    taken = Flaky(GiveUpError("gone"))
    with hook(taken, log) as made:
        made.show(verdicts.alarmed(), [])
        wait_until(lambda: "not delivered: gone" in log)
    assert not taken.taken


def test_a_hanging_hook_blocks_nothing_and_its_queue_is_bounded() -> None:
    free, taken = threading.Event(), []

    def hang(content: bytes) -> None:
        free.wait(30)
        taken.append(content)

    with hook(hang, []) as made:
        for number in range(3 * alarm_hooks.MAX_WAITING):
            made.show(verdicts.alarmed(id=f"a{number}"), [])
        assert len(made._waiting) <= alarm_hooks.MAX_WAITING
        free.set()
        wait_until(lambda: not made._waiting)
    assert json.loads(taken[-1])["alarm"]["id"] == f"a{3 * alarm_hooks.MAX_WAITING - 1}"


def test_a_command_receives_the_message_on_standard_input(tmp_path: Path) -> None:
    ShellCommand(f"cat > {tmp_path}/got")(b'{"what": "raised"}')
    assert (tmp_path / "got").read_text() == '{"what": "raised"}'
    ShellCommand("true")(b"x" * 1_000_000)  # the command does not read it
    with pytest.raises(TryLaterError, match="exit code 7"):
        ShellCommand("exit 7")(b"")


def test_a_hanging_command_is_killed_with_its_process_group(tmp_path: Path) -> None:
    with pytest.raises(TryLaterError, match=r"more than 0\.2 s and was killed"):
        ShellCommand(f"(sleep 1; touch {tmp_path}/late) & wait", 0.2)(b"")
    threading.Event().wait(1.5)
    assert not (tmp_path / "late").exists()


@contextmanager
def server(*statuses: int) -> Iterator[tuple[str, list[bytes]]]:
    """Answers with these statuses in turn."""
    left, got = list(statuses), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(left.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}/secret", got
    finally:
        made.shutdown()
        made.server_close()
        thread.join(5)


def test_a_webhook_posts_and_retries_only_retryable_errors() -> None:
    with server(204, 503, 429, 404) as (url, got):
        post = Webhook(url)
        post(b'{"what": "raised"}')
        assert got == [b'{"what": "raised"}']
        for _ in range(2):
            with pytest.raises(TryLaterError):
                post(b"{}")
        with pytest.raises(GiveUpError, match=r"127\.0\.0\.1 answered 404") as caught:
            post(b"{}")
        assert "secret" not in str(caught.value)
    with pytest.raises(TryLaterError):
        post(b"{}")  # the server has ended


@pytest.mark.parametrize("url", ["file:///etc/passwd", "example.org/hook", "http://", "ftp://host/x"])
def test_an_invalid_webhook_url_is_rejected(url: str) -> None:
    with pytest.raises(ForwardError, match="must begin with http"):
        Webhook(url)
