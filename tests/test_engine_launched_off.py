"""A real engine started without prefix caching and without async scheduling: refused, and nothing changed."""

from __future__ import annotations

import pytest

from rltop.collectors.flags import BY_NAME
from tests.harness import HubStandIn, wait_for
from tests.live_engine import ENVIRONMENT, ON_CPU, LiveEngine
from tests.switchboard import ENGINE, check_equal, fresh, prompt

pytestmark = [pytest.mark.engine if ON_CPU else pytest.mark.gpu, pytest.mark.timeout(300)]

REQUESTS = 32


def test_what_an_engine_was_started_without_is_refused_with_the_launch_option_and_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with HubStandIn() as hub:
        monkeypatch.setenv("RLTOP_HUB", str(hub.rundir.path))
        monkeypatch.setenv("RLTOP_ENGINE", ENGINE)
        engine = LiveEngine(enable_prefix_caching=False, async_scheduling=False)
        try:
            names = [f"plain{i}" for i in range(REQUESTS)]
            running = [engine.generate(name, prompt(1, 100), 80, seed=i) for i, name in enumerate(names)]
            engine.wait_running(names)
            before = fresh(hub)
            for flag, reason in (
                ("prefix_caching", "started with prefix caching off"),
                ("async_scheduling", "started"),
            ):
                for number, (value, strict) in enumerate((("on", False), ("off", False), ("off", True))):
                    hub.command(ENGINE, flag, value, f"{flag}{number}", strict=strict and bool(BY_NAME[flag].strict))
                    update = hub.closed(f"{flag}{number}")
                    assert (update.state, reason in update.reason) == ("refused", True), update
                    assert BY_NAME[flag].launch in update.reason
            after = fresh(hub)
            assert (after.flags, after.flag_epoch) == (before.flags, before.flag_epoch)
            shown = {name: (state.value, state.switchable, state.detail) for name, state in after.flags.items()}
            assert shown["prefix_caching"] == shown["async_scheduling"] == ("off", False, "")
            assert shown["logprobs_mode"] == ("raw", True, "")
            for name, work in zip(names, running, strict=True):
                assert check_equal(hub, name, work.result(60)).size == 80
        finally:
            engine.close()
        wait_for(lambda: hub.byes, "the collector says goodbye")
        assert hub.health()[-1].faults == {}
