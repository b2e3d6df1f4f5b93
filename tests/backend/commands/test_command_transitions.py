"""The table of command states agrees with the protocol page, and every transition of the hub follows it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api import TERMINAL
from rltop.backend.commands.transitions import CLOSED_BY_ENGINE, CLOSED_BY_HUB, NEW, TRANSITIONS, HubClosure, Next
from rltop.collectors.contract import wire
from tests.backend.commands.test_lifecycle import ask_set, fleet, update

PAGE = Path(__file__).parents[3] / "docs" / "protocols" / "command.md"


def documented() -> dict[str, Next]:
    """The page's table of allowed transitions."""
    _, _, section = PAGE.read_text().partition("### Allowed transitions")
    rows = [line.split("|")[1:-1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return {state.strip(" `"): Next(hub=_states(hub), engine=_states(engine)) for state, engine, hub in rows[2:]}


def _states(cell: str) -> frozenset[str]:
    return frozenset(word for word in cell.replace("`", "").replace(",", " ").split() if word != "-")


def test_the_page_has_the_table_of_the_code() -> None:
    assert documented() == dict(TRANSITIONS)


def test_the_page_names_every_state() -> None:
    states = {state for after in TRANSITIONS.values() for state in after.hub | after.engine}
    assert states == set(TRANSITIONS) - {NEW, CLOSED_BY_HUB, CLOSED_BY_ENGINE} | TERMINAL
    _, _, section = PAGE.read_text().partition("| state | meaning |")
    named = [line.split("`")[1] for line in section.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    assert set(named) == states


def test_the_hub_closes_only_with_states_of_the_table() -> None:
    allowed = {state for name, after in TRANSITIONS.items() if name != NEW for state in after.hub}
    assert {closure.state for closure in HubClosure} == allowed


STEPS = st.lists(
    st.sampled_from(["accepted", "draining", "running", *sorted(TERMINAL), "bye", "time", "undelivered", "weird"]),
    max_size=12,
)


@given(STEPS)
def test_every_transition_of_a_change_is_in_the_table(steps: list[str]) -> None:
    hub = fleet("e0")
    answer, orders = hub.ask(ask_set(timeout_s=5.0))
    command, state, by_hub = answer.command or "", "requested", False
    for step in steps:
        if step == "time":
            hub.later(8.0)
        elif step == "bye":
            hub.say("e0", wire.Bye("e0", "life-1", 1))
        elif step == "undelivered":
            hub.undelivered(orders[0])
        else:
            hub.say("e0", update(command, step))
        hub.later()
        after = hub.change.state
        row = (
            TRANSITIONS[state] if state not in TERMINAL else TRANSITIONS[CLOSED_BY_HUB if by_hub else CLOSED_BY_ENGINE]
        )
        mine = step in ("time", "bye", "undelivered")
        if after != state:
            assert after in (row.hub if mine else row.engine)
            by_hub = mine
        elif step in row.engine:
            by_hub = False  # the engine confirms the state that the hub had set
        state = after
