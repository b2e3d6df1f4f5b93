"""``rltop effect`` on a real hub: text, JSON, and its messages when there is no effect to print."""

from __future__ import annotations

from pathlib import Path

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError
from rltop.backend.effects.estimate import FIGURES
from tests.support.harness import wait_for
from tests.tui.cli.test_cli import Engine, answer, home, rltop, start_hub, wait_for_engine

__all__ = ["home"]


def _effect(client: Client) -> api.Effect | None:
    try:
        return client.effect()
    except CommandError:
        return None


@pytest.mark.usefixtures("home")
def test_an_effect_is_printed_as_text_and_as_json() -> None:
    rundir = start_hub("measured")
    with Engine(rundir):
        wait_for_engine(rundir)
        no_switch = rltop("effect")
        assert no_switch.exit_code == 1
        assert "no command has switched anything yet" in no_switch.output
        assert rltop("set", "prefix_caching", "off").exit_code == 0
        with Client(rundir) as client:  # engines repeat closed commands in their next state
            wait_for(lambda: _effect(client), "the engine's state")
        found = answer("effect", "--json", "--run", "measured")
        assert (found["flag"], found["old"], found["new"], found["engines"]) == ("prefix_caching", "on", "off", ["e0"])
        assert [row["figure"] for row in found["rows"]] == [figure.name for figure in FIGURES]
        assert {row["verdict"] for row in found["rows"]} <= {"unknown", "not_yet"}
        text = rltop("effect", found["command"][:6])
        assert text.exit_code == 0
        assert f"command {found['command']}: prefix_caching on → off on e0" in text.output
        assert "not measured: no observations before the switch" in text.output
        unknown = rltop("effect", "zzz")
        assert unknown.exit_code == 1
        assert "no command 'zzz'; `rltop audit` lists the commands" in unknown.output


def test_without_a_hub_the_message_says_how_to_start_one(home: Path) -> None:
    (home / "quiet").mkdir(mode=0o700)
    result = rltop("effect", "--run", "quiet")
    assert result.exit_code == 1
    assert "`rltop hub quiet` starts one" in result.output
