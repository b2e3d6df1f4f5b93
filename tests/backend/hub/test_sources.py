"""Who is there, what was lost, and what viewers are told of it, in the pure core."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.fleet.engines import SILENT_S
from rltop.backend.hub.event_log import LOSS_EVENT_PERIOD_S
from rltop.backend.ingest.sources import BYE_PATIENCE_S
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub, sent
from tests.support.hub_messages import Source, Trained, Written, engine_state, rollouts, sequences


def health(faults: dict[str, int] | None = None, **counts: wire.Counts) -> wire.Health:
    return wire.Health(counts, 0, 1000, faults=faults or {})


def test_engines_connect_fall_silent_come_back_restart_and_disconnect() -> None:
    hub = Hub()
    assert sent(hub.engine("e0"), wire.Welcome) == [wire.Welcome("hub-1")]
    hub.later(SILENT_S)
    assert hub.picture.engines["e0"].health == "live"
    hub.later(0.1)
    assert hub.picture.engines["e0"].health == "silent"
    hub.engine("e0")
    hub.later()
    assert hub.picture.engines["e0"].health == "live"
    hub.sources["e0"] = Source("e0", "life-2")
    hub.engine("e0")
    assert sent(hub.say("e0", wire.Bye("e0", "life-2", 1)), wire.ByeAck) == [wire.ByeAck("life-2")]
    hub.later()
    assert hub.picture.engines["e0"].health == "gone"
    assert hub.texts == ["e0 connected", "e0 is silent", "e0 is back", "e0 restarted", "e0 disconnected"]
    hub.later(SILENT_S + 1)
    assert hub.picture.engines["e0"].health == "gone"
    hub.sources["e0"] = Source("e0", "life-3")
    hub.engine("e0")
    hub.later()
    assert hub.texts[-1] == "e0 returned"
    assert hub.picture.engines["e0"].health == "live"


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_every_lost_message_is_counted(arrives: list[bool]) -> None:
    hub = Hub()
    source = hub.source("e0")
    first = arrives.index(True) if any(arrives) else len(arrives)
    for through in arrives:
        frames = source.frames(engine_state("e0"), sent=hub.now)
        if through:
            hub.state.data(frames, hub.now)
    hub.say("e0", wire.Bye("e0", "life-1", len(arrives)))
    hub.later(BYE_PATIENCE_S)
    lost = arrives[first:].count(False)  # what came before the hub first heard of it may have gone to another hub
    assert hub.counters.get("lost_messages", 0) == lost
    assert any("lost" in text for text in hub.texts) == (lost > 0)


def test_a_bye_is_confirmed_once_earlier_messages_arrived_or_are_overdue() -> None:
    hub = Hub()
    hub.engine("e0")
    late = hub.source("e0").frames(engine_state("e0"))
    assert not sent(hub.say("e0", wire.Bye("e0", "life-1", 2)), wire.ByeAck)
    hub.state.data(late, hub.now)
    assert sent(hub.later(), wire.ByeAck)
    assert not hub.counters.get("lost_messages")
    hub.engine("e1")
    hub.say("e1", wire.Bye("e1", "life-1", 5))
    assert not sent(hub.later(BYE_PATIENCE_S / 2), wire.ByeAck)
    assert sent(hub.later(BYE_PATIENCE_S), wire.ByeAck)
    hub.later()
    assert hub.counters["lost_messages"] == 4


def test_a_registration_is_a_sign_of_life() -> None:
    hub = Hub()
    hub.engine("e0")
    for _ in range(4):
        hub.later(SILENT_S - 1)
        hub.say("e0", wire.Register(wire.PROTO, "e0", "life-1", "engine"))
    hub.say("e0", wire.Register(wire.PROTO, "e0", "life-0", "engine"))  # another life's word is not its own
    assert hub.picture.engines["e0"].health == "live"
    hub.later(SILENT_S + 1)
    hub.later()
    assert hub.picture.engines["e0"].health == "silent"


def test_messages_about_another_source_are_refused() -> None:
    hub = Hub()
    hub.engine("e0")
    told = wire.CommandUpdate("c", "e0", "prefix_caching", "applied", new="off")
    for source, body in (
        ("e1", engine_state("e2")),
        ("e1", engine_state("e1", commands=[told])),
        ("e1", rollouts([Written([1], [5], [-1.0])])[0]),
        ("e1", wire.StepClosed(0, 0, 1)),
        ("trainer/1", wire.StepClosed(0, 0, 1)),
    ):
        hub.send(source, body, rollouts([Written([1], [5], [-1.0])])[1] if isinstance(body, wire.Rollouts) else {})
    hub.later()
    assert hub.counters["invalid"] == 5
    assert set(hub.picture.engines) == {"e0"}
    assert not hub.steps
    assert not hub.picture.changes
    answer, _ = hub.ask(api.AskSet("q", "prefix_caching", "off"))
    assert answer.error is None


NEAR_POWERS = st.builds(
    lambda power, off, sign: sign * (2**power + off), st.integers(30, 63), st.integers(-2, 2), st.sampled_from([1, -1])
)
"""Where sums pass a type: floats count to 2^53, versions to 2^62, arrays to 2^63."""


@given(st.integers(-(2**63), 2**64 - 1) | NEAR_POWERS, st.integers(-(2**63), 2**64 - 1) | NEAR_POWERS)
@example(2**40, 2**40 + 1)
@example(0, 2**63)
@example(2**62, -(2**62))
@example(2**62, 2**62 - 1)
@example(1 - 2**62, 2**62 - 1)
@example(-(2**62), 2**62)
def test_versions_beyond_their_range_are_refused(sampled: int, policy: int) -> None:
    hub = Hub()
    hub.send("e0", *rollouts([Written([1], [5], [-1.0], [sampled])]))
    hub.send("trainer/0", *sequences([Trained([1, 5], [0, 1], [-1.0], [-1.0])], policy_version=policy))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, policy))
    hub.engine("e0", policy_version=sampled)
    hub.settle()
    if "invalid" not in hub.counters and sampled != wire.UNKNOWN_VERSION:
        assert hub.steps[0].values["lag_mean"] == float(policy - sampled)
        assert hub.picture.engines["e0"].lag == policy - sampled
    api.encode(hub.ask(api.AskSnapshot("s"))[0])


def test_a_deeply_nested_question_is_refused() -> None:
    hub = Hub()
    deep = b"\x83\xa4type\xa8snapshot\xa2id\xa1x\xa1z" + b"\x91" * 100_000 + b"\xc0"
    assert hub.state.ask(b"viewer", deep, hub.now) == []
    hub.later()
    assert hub.counters["invalid"] == 1


def test_rates_use_the_last_seconds_of_the_engines_clock() -> None:
    hub = Hub()
    for second in range(20):
        hub.engine("e0", generated_tokens=100 * second, prompt_tokens=10 * second, cached_tokens=5 * second)
        hub.later(1.0)
    engine = hub.picture.engines["e0"]
    assert engine.tokens_per_s == pytest.approx(100)
    assert engine.prefix_hit_rate == pytest.approx(0.5)
    hub.sources["e0"] = Source("e0", "life-2")
    hub.engine("e0", generated_tokens=3)
    hub.later(0.001)
    hub.engine("e0", generated_tokens=11)  # both had waited for a hub: a step of tokens in no time
    hub.later()
    assert hub.picture.engines["e0"].tokens_per_s is None


def test_lag_is_relative_to_the_trainers_version() -> None:
    hub = Hub()
    hub.engine("e0", policy_version=3)
    hub.engine("e1", policy_version=None)

    def lags() -> dict[str, int | None]:
        hub.later()
        return {name: engine.lag for name, engine in hub.picture.engines.items()}

    assert lags() == {"e0": None, "e1": None}
    hub.send("trainer/0", *sequences([], policy_version=4))
    assert lags() == {"e0": 1, "e1": None}
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, 5))
    hub.send("trainer/0", *sequences([], step=1, policy_version=4))  # of before the close: the version stays
    assert lags() == {"e0": 2, "e1": None}
    assert hub.picture.trainer.policy_version == 5


def test_faults_losses_and_version_skew_are_reported_once() -> None:
    hub = Hub()
    hub.engine("e0", policy_version=1)
    hub.engine("e1", policy_version=9)
    for _ in range(3):
        hub.send("e0", health({"tap": 2}, rollouts=wire.Counts(5, 4, 1, 0)))
        hub.later()
    assert hub.texts == [
        "e0 connected",
        "e1 connected",
        "e0: 2 faults in tap were contained; the run is not affected",
        "1 records of e0 were dropped: its queue was full",
        "live engines differ by 8 policy versions",
    ]
    hub.engine("e0")
    hub.later()
    assert hub.picture.engines["e0"].counts == {"rollouts": wire.Counts(5, 4, 1, 0)}
    assert hub.picture.engines["e0"].faults == {"tap": 2}


def test_the_trainers_counts_are_summed_over_its_ranks() -> None:
    hub = Hub()
    for rank in (0, 1):
        hub.send(f"trainer/{rank}", health(sequences=wire.Counts(3, 2, 1, 0)))
    hub.later()
    assert hub.picture.trainer.counts == {"sequences": wire.Counts(6, 4, 2, 0)}
    assert set(hub.picture.trainer.ranks) == {"0", "1"}
    assert hub.picture.trainer.health == "live"


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_malformed_input_is_counted_and_the_hub_continues(frames: list[bytes]) -> None:
    hub = Hub()
    hub.state.data(frames, hub.now)
    hub.state.control("e0#x", b"".join(frames), hub.now)
    hub.state.ask(b"viewer", b"".join(frames), hub.now)
    hub.later()
    assert hub.counters["invalid"] >= 1
    hub.engine("e0")
    hub.later()
    assert "e0" in hub.picture.engines


@given(st.integers(-(2**63), -1) | st.integers(2**53 + 1, 2**64 - 1))
def test_a_request_with_a_number_out_of_bounds_is_answered_with_the_reason(step: int) -> None:
    hub = Hub()
    answer, sent = hub.ask(api.AskPast("q", step))
    assert (answer.id, sent) == ("q", [])
    assert answer.error is not None and "invalid request" in answer.error
    hub.later()
    assert hub.counters["invalid"] == 1


@given(st.lists(st.sampled_from(["engine", "step", "flag", "ack", "beat", "silence"]), max_size=30), st.data())
def test_a_snapshot_and_the_frames_after_it_equal_the_hubs_snapshot(acts: list[str], data: st.DataObject) -> None:
    hub = Hub()
    snapshots = [api.encode(hub.ask(api.AskSnapshot("s"))[0])]
    for number, act in enumerate(acts):
        if act == "engine":
            hub.engine(f"e{number % 3}", generated_tokens=number)
        elif act == "step":
            hub.send("trainer/0", wire.StepClosed(number, 0, 1, number))
        elif act == "flag":
            hub.ask(api.AskSet(f"q{number}", "prefix_caching", "off"))
        elif act == "ack":
            for change in hub.picture.changes.values():
                hub.say(change.engine, wire.CommandUpdate(change.command, change.engine, change.flag, "applied"))
        hub.later(SILENT_S + 1 if act == "silence" else 0.2)
        snapshots.append(api.encode(hub.ask(api.AskSnapshot("s"))[0]))
    cut = data.draw(st.integers(0, len(snapshots) - 1))
    picture = api.decode_answer(snapshots[cut]).snapshot
    assert picture is not None
    for frame in hub.frames:
        if frame.seq > picture.seq:
            picture.apply(api.decode_frame(api.encode(frame)))
    assert picture == hub.picture


def test_dropped_records_are_an_event_with_their_number_once_per_period() -> None:
    hub = Hub()
    for dropped in (0, 29, 29, 31):
        hub.send("trainer/0", health(sequences=wire.Counts(40, 2, dropped, 0)))
        hub.later(1.0)
    hub.later(LOSS_EVENT_PERIOD_S)
    found = [text for text in hub.texts if "dropped" in text]
    assert found == [f"{n} records of trainer/0 were dropped: its queue was full" for n in (29, 2)]
