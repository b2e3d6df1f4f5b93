"""The status report: documented keys, strict JSON, and text."""

from __future__ import annotations

import json
import math
import re

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api, metrics
from rltop.backend.text import status
from rltop.collectors.contract.wire import FlagState, Timer

STEP_KEYS = {
    "step", "policy_version", "tokens", "joined_fraction", "reward_mean", "logp_diff_mean", "logp_abs_diff_mean",
    "ratio_mean", "kl_k1", "kl_k3", "clip_frac_low", "clip_frac_high", "entropy", "ess", "lag_mean", "prefix_hit_rate",
    "backend_abs_diff_mean", "backend_k3", "backend_tokens", "lag0_abs_diff_mean", "lag0_k3", "lag0_tokens",
    "lag_inferred_frac", "weight_cut_frac",
}  # fmt: skip
REPORT_KEYS = {"run", "alarm", "trainer", "engines", "steps", "flag_changes", "events", "counters"}
ENGINE_KEYS = {
    "id", "health", "vllm_version", "policy_version", "version_source", "lag", "tokens", "tokens_per_s", "running",
    "waiting", "kv_usage", "prefix_hit_rate", "gap", "flags", "paused", "timers", "differs", "preemptions",
    "ttft", "itl", "refit",
}  # fmt: skip
CHANGE_KEYS = {
    "flag", "engine", "from", "to", "outcome", "engine_step", "policy_version", "in_flight", "lost_requests",
    "milliseconds", "command", "verb", "detail", "reason", "who", "host", "why", "requested", "closed", "flag_epoch",
    "reverts_at", "reverts", "kept_by", "probe", "claimed",
}  # fmt: skip

values = st.dictionaries(st.sampled_from(sorted(metrics.BY_NAME)), st.none() | st.floats())


def picture(steps: list[dict[str, float | None]]) -> api.Snapshot:
    engine = api.Engine(
        "e0", "live", 1.0, "h", 1, "0.32.0", 5, 3, "engine", 1, 1234, 55.5, 1, 0, 0.5, None, 0.01,
        {"prefix_caching": FlagState("on", True), "async_scheduling": FlagState(None, False, "started without")}, 0, {},
    )  # fmt: skip
    change = api.Change(
        "c1", "e0", "prefix_caching", "off", "applied", 1.0, old="on", new="off", engine_step=9, policy_version=3,
        in_flight=4, lost_requests=0, milliseconds=1.25, reason="as asked",
    )  # fmt: skip
    return api.Snapshot(
        "sort", "h1", 1, 0.0, 1.0,
        engines={"e0": engine},
        steps={n: api.Step(n, 1.0, n + 1, False, found) for n, found in enumerate(steps)},
        events=[api.Event(0, 1.0, "warn", "lost", "3 messages of e0 were lost on the way")],
        changes={api.change_key(change): change},
    )  # fmt: skip


@given(st.lists(values, max_size=5))
def test_the_report_has_the_promised_keys_and_is_strict_json(steps: list[dict[str, float | None]]) -> None:
    made = json.loads(json.dumps(status.as_json(picture(steps)), allow_nan=False))
    assert set(made) == REPORT_KEYS
    assert all(set(step) == STEP_KEYS for step in made["steps"])
    assert all(set(engine) == ENGINE_KEYS for engine in made["engines"])
    assert all(set(change) == CHANGE_KEYS for change in made["flag_changes"])
    assert set(made["engines"][0]["flags"]["async_scheduling"]) == {"value", "switchable", "reason", "detail"}
    for given_values, step in zip(steps, made["steps"], strict=True):
        for name in status.STEP_METRICS:
            value = given_values.get(name)
            expected = value if value is not None and math.isfinite(value) else None
            assert step[name] == (int(expected) if name.endswith("tokens") and expected is not None else expected)


def test_the_report_has_the_outcome_of_a_flag_change() -> None:
    (change,) = status.as_json(picture([]))["flag_changes"]
    expected = {
        "flag": "prefix_caching", "engine": "e0", "from": "on", "to": "off", "outcome": "applied", "engine_step": 9,
        "policy_version": 3, "in_flight": 4, "lost_requests": 0, "milliseconds": 1.25, "command": "c1", "verb": "set",
        "reason": "as asked", "requested": 1.0,
    }  # fmt: skip
    assert change == dict.fromkeys(CHANGE_KEYS) | expected


def test_the_json_report_has_the_engines_and_events_of_the_text() -> None:
    made = status.as_json(picture([]))
    assert made["trainer"] == {"health": "absent", "step": None, "policy_version": None}
    (engine,), (event,) = made["engines"], made["events"]
    assert (engine["health"], engine["lag"], engine["tokens_per_s"], engine["running"]) == ("live", 1, 55.5, 1)
    assert event == {
        "time": 1.0, "severity": "warn", "kind": "lost", "engine": None, "step": None,
        "text": "3 messages of e0 were lost on the way",
    }  # fmt: skip


def test_the_text_leaves_out_unknown_join_statistics() -> None:
    shown = picture([{"joined_fraction": 1.0}])
    assert "join of step" not in status.as_text(shown)
    shown.steps[0] = msgspec.structs.replace(shown.steps[0], unjoined={"unknown_prompt": 2})
    assert "0 of 2 sequences found" in status.as_text(shown)


def test_the_text_counts_timers_down_and_names_a_paused_engine() -> None:
    shown = picture([])
    timers = [Timer("c9", "pause", "", "running", 61.0), Timer("c1", "set", "prefix_caching", "on", 601.0)]
    shown.engines["e0"] = msgspec.structs.replace(shown.engines["e0"], timers=timers, paused=True)
    text = status.as_text(shown)
    assert "e0: prefix_caching auto-reverts to on in 10m (`rltop keep c1` keeps the current value)" in text
    assert "e0: generation auto-reverts to running in 1m (c9)" in text
    assert re.search(r"e0 +paused ", text)
    assert status.as_json(shown)["engines"][0]["timers"][1] == {
        "command": "c1", "verb": "set", "flag": "prefix_caching", "back_to": "on", "at": 601.0,
    }  # fmt: skip


def test_the_text_has_engines_steps_changes_and_events() -> None:
    text = status.as_text(picture([{"kl_k3": 1.5e-3, "joined_fraction": 0.995}]))
    for part in ("run sort", "0.32.0", "prefix_caching=on", "async_scheduling=none", "0.0015", "99.5%",
                 "e0: prefix_caching on → off, applied, at engine step 9", "3 messages of e0"):  # fmt: skip
        assert part in text
    assert "none yet" in status.as_text(api.Snapshot("r", "h", 0, 0.0, 0.0))


def test_an_engine_that_is_updating_weights_is_not_shown_as_paused() -> None:
    shown = picture([])
    shown.engines["e0"] = msgspec.structs.replace(shown.engines["e0"], paused=True, update_open=True)
    assert re.search(r"e0 +updating ", status.as_text(shown))
