"""A snapshot of a run as JSON and as plain text, with the facts that the dashboard shows. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from rltop.backend import api
from rltop.backend.api import refit
from rltop.backend.api.alarm import summary_line
from rltop.backend.commands.messages import title
from rltop.backend.join import stats
from rltop.backend.text import fingerprint_text
from rltop.backend.util.durations import span, time_of_day
from rltop.collectors.contract.wire import FlagState, Timer

STEP_METRICS = (
    "tokens",
    "weight_cut_frac",
    "joined_fraction",
    "reward_mean",
    "logp_diff_mean",
    "logp_abs_diff_mean",
    "ratio_mean",
    "kl_k1",
    "kl_k3",
    "clip_frac_low",
    "clip_frac_high",
    "entropy",
    "ess",
    "lag_mean",
    "lag_inferred_frac",
    "backend_abs_diff_mean",
    "backend_k3",
    "backend_tokens",
    "lag0_abs_diff_mean",
    "lag0_k3",
    "lag0_tokens",
    "prefix_hit_rate",
)
"""Metrics of a step in the report."""

_COUNTS = frozenset({"tokens", "backend_tokens", "lag0_tokens"})
_LAST_STEPS, _LAST_CHANGES, _LAST_EVENTS = 10, 10, 10


def as_json(snapshot: api.Snapshot, *, joins: bool = False) -> dict[str, Any]:
    """The output of ``rltop status --json`` (with ``joins``: join statistics) and ``rltop demo --json``.

    Logprobs, gaps and entropy in nats; ess, shares and rates in [0, 1]; lag in updates; times in seconds since 1970;
    ttft and itl in seconds. Unknown values are None, never NaN.
    """
    steps = sorted(snapshot.steps.values(), key=lambda step: step.step)
    trainer = snapshot.trainer
    return {
        "run": snapshot.run,
        "alarm": None if snapshot.alarm is None else msgspec.to_builtins(snapshot.alarm),
        "trainer": {"health": trainer.health, "step": trainer.step, "policy_version": trainer.policy_version},
        "engines": [_engine_json(engine) for _, engine in sorted(snapshot.engines.items())],
        "steps": [_step_json(step) | ({"join": stats.as_json(step)} if joins else {}) for step in steps],
        "flag_changes": [change_json(change) for change in snapshot.changes.values()],
        "events": [_event_json(event) for event in snapshot.events],
        "counters": snapshot.counters,
    }


def _event_json(event: api.Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("time", "severity", "kind", "engine", "step", "text")}


def _engine_json(engine: api.Engine) -> dict[str, Any]:
    flags = {
        name: {
            "value": flag.value,
            "switchable": flag.switchable,
            "reason": flag.reason or None,
            "detail": flag.detail or None,
        }
        for name, flag in engine.flags.items()
    }
    return {
        "id": engine.id,
        "health": engine.health,
        "vllm_version": engine.vllm_version or None,
        "policy_version": engine.policy_version,
        "version_source": engine.version_source,
        "lag": engine.lag,
        "tokens": engine.tokens,
        "tokens_per_s": _finite(engine.tokens_per_s),
        "running": engine.running,
        "waiting": engine.waiting,
        "kv_usage": _finite(engine.kv_usage),
        "prefix_hit_rate": _finite(engine.prefix_hit_rate),
        "gap": _finite(engine.gap),
        "flags": flags,
        "paused": engine.paused,
        "timers": [_timer_json(timer) for timer in engine.timers],
        "differs": engine.differs,
        "preemptions": engine.preemptions,
        "ttft": _finite(engine.ttft),
        "itl": _finite(engine.itl),
        "refit": refit.as_json(engine.refit),
    }


def _timer_json(timer: Timer) -> dict[str, Any]:
    """A command that auto-reverts at wall clock ``at``, in seconds."""
    return {name: getattr(timer, name) for name in ("command", "verb", "flag", "back_to", "at")}


def _step_json(step: api.Step) -> dict[str, Any]:
    values = {name: _finite(step.values.get(name)) for name in STEP_METRICS}
    counts = {name: int(value) for name in _COUNTS if (value := values[name]) is not None}
    return {"step": step.step, "policy_version": step.policy_version, **values, **counts}


def change_json(change: api.Change) -> dict[str, Any]:
    """One command on one engine; ``outcome`` is its state, ``to`` the requested value."""
    return {
        "flag": change.flag,
        "engine": change.engine,
        "from": change.old,
        "to": change.wanted or change.new,
        "outcome": change.state,
        "engine_step": change.engine_step,
        "policy_version": change.policy_version,
        "in_flight": change.in_flight,
        "lost_requests": change.lost_requests,
        "milliseconds": _finite(change.milliseconds),
        "command": change.command,
        "verb": change.verb,
        "detail": change.detail or None,
        "reason": change.reason or None,
        "who": change.who or None,
        "host": change.host or None,
        "claimed": change.author.claimed or None if change.author else None,
        "why": change.why or None,
        "requested": change.requested,
        "closed": _finite(change.closed),
        "flag_epoch": change.flag_epoch,
        "probe": change.probe or None,
        "reverts_at": _finite(change.reverts_at),
        "reverts": change.reverts or None,
        "kept_by": change.kept_by or None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def change_text(change: api.Change) -> str:
    """One line: a command, its state on one engine, and details."""
    state = change.state.replace("_", " ")
    words = [f"{change.engine}: {title(change)}", f"{state} ({change.detail})" if change.detail else state]
    if change.engine_step is not None:
        words.append(f"at engine step {change.engine_step}")
    if change.policy_version is not None:
        words.append(f"policy version {change.policy_version}")
    if change.in_flight is not None:
        lost = "" if change.lost_requests is None else f", {change.lost_requests} lost"  # None: not counted
        words.append(f"{change.in_flight} requests in flight{lost}")
    if change.milliseconds is not None:
        words.append(f"{change.milliseconds:.1f} ms")
    line = ", ".join(words)
    return f"{line} ({change.reason})" if change.reason else line


def timer_texts(snapshot: api.Snapshot) -> list[str]:
    """One line per running timer, soonest first."""
    timers = [(timer, engine.id) for engine in snapshot.engines.values() for timer in engine.timers]
    timers.sort(key=lambda pair: pair[0].at)
    return [
        f"{engine}: {timer.flag or 'generation'} auto-reverts to {timer.back_to} in {span(timer.at - snapshot.time)} "
        + (f"(`rltop keep {timer.command}` keeps the current value)" if timer.verb == "set" else f"({timer.command})")
        for timer, engine in timers
    ]


def as_text(snapshot: api.Snapshot) -> str:
    """The snapshot as text: engines, last steps, timers, mismatched facts, join, commands and events."""
    trainer = snapshot.trainer
    blocks = [
        f"run {snapshot.run}: trainer {api.health_text(trainer.health)}, step {_whole(trainer.step)}, "
        f"policy version {_whole(trainer.policy_version)}",
        *([] if snapshot.alarm is None else [f"alarm {snapshot.alarm.id}: {summary_line(snapshot.alarm)}"]),
        "engines\n" + _table(_ENGINE_HEADS, [_engine_row(e) for _, e in sorted(snapshot.engines.items())]),
        "steps\n"
        + _table(
            _STEP_HEADS, [_step_row(s) for s in sorted(snapshot.steps.values(), key=lambda s: s.step)][-_LAST_STEPS:]
        ),
    ]
    if refits := refit_lines(snapshot):
        blocks.append("weights after the last update\n" + "\n".join(f"  {line}" for line in refits))
    if later := _attached_later(snapshot):
        blocks.append("requests before the attach\n" + "\n".join(f"  {line}" for line in later))
    if timers := timer_texts(snapshot):
        blocks.append("timers\n" + "\n".join("  " + text for text in timers))
    if differences := fingerprint_text.difference_lines(snapshot):
        blocks.append("mismatched facts (`rltop fingerprint`)\n" + "\n".join(f"  {d}" for d in differences))
    if (last := max(snapshot.steps.values(), key=lambda s: s.step, default=None)) is not None and (
        last.joins or last.unjoined
    ):
        blocks.append(f"join of step {last.step}\n" + "\n".join("  " + line for line in stats.as_text(last)))
    if snapshot.changes:
        changes = list(snapshot.changes.values())[-_LAST_CHANGES:]
        blocks.append("flag changes\n" + "\n".join("  " + change_text(change) for change in changes))
    if snapshot.events:
        lines = [_event_text(event) for event in snapshot.events[-_LAST_EVENTS:]]
        blocks.append("events\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def refit_lines(snapshot: api.Snapshot) -> list[str]:
    """What the refit guard found, a line for each engine that it has an answer about."""
    found = ((name, engine.refit) for name, engine in sorted(snapshot.engines.items()))
    return [refit.as_line(name, check) for name, check in found if check is not None]


def _attached_later(snapshot: api.Snapshot) -> list[str]:
    """One line for each engine that had requests in flight when it was attached."""
    engines = sorted(snapshot.engines.items())
    return [f"{name}: {fact}" for name, engine in engines if (fact := engine.fingerprint.get("requests before attach"))]


def _event_text(event: api.Event) -> str:
    at = time_of_day(event.time)
    return f"  {at} {event.severity:<5} {event.kind:<8} {event.engine or '':<4} {event.text}"


_ENGINE_HEADS = (
    "engine", "health", "vLLM", "version", "lag", "tok/s", "running", "waiting", "KV", "hits", "preempted", "TTFT",
    "ITL", "gap", "flags",
)  # fmt: skip
_STEP_HEADS = (
    "step",
    "reward",
    "gap",
    "ratio",
    "k1",
    "k3",
    "clip low",
    "high",
    "entropy",
    "ESS",
    "lag",
    "hits",
    "joined",
    "tokens",
)


def _engine_row(engine: api.Engine) -> tuple[str, ...]:
    flags = " ".join(f"{name}={_flag_text(flag)}" for name, flag in engine.flags.items())
    health = api.health_text(engine.health)
    if health == "live" and (engine.paused or engine.update_open):
        health = "updating" if engine.update_open else "paused"
    return (
        engine.id, health, engine.vllm_version or "-",
        _mark(_whole(engine.policy_version), inferred=engine.is_inferred),
        _mark(_whole(engine.lag), inferred=engine.is_inferred and engine.lag is not None),
        _number(engine.tokens_per_s), str(engine.running), str(engine.waiting), _percent(engine.kv_usage),
        _percent(engine.prefix_hit_rate), _whole(engine.preemptions), duration(engine.ttft), duration(engine.itl),
        _number(engine.gap), flags,
    )  # fmt: skip


def _flag_text(flag: FlagState) -> str:
    if flag.value is None and flag.detail:
        return flag.detail
    value = flag.value or "none"
    return f"{value}({flag.detail})" if flag.detail else value


def _step_row(step: api.Step) -> tuple[str, ...]:
    values = step.values.get
    head = [_number(values(name)) for name in ("reward_mean", "logp_abs_diff_mean")]
    ratio = "-" if (mean := values("ratio_mean")) is None else f"{mean:.4f}"
    plain = [*head, ratio, *(_number(values(name)) for name in ("kl_k1", "kl_k3"))]
    clip = [_percent(values(name)) for name in ("clip_frac_low", "clip_frac_high")]
    rest = [_number(values(name)) for name in ("entropy", "ess")]
    rest.append(_mark(_number(values("lag_mean")), inferred=bool(values("lag_inferred_frac"))))
    shares = [_percent(values(name)) for name in ("prefix_hit_rate", "joined_fraction")]
    return (f"{step.step}{'*' if step.partial else ''}", *plain, *clip, *rest, *shares, _whole(values("tokens")))


def _mark(figure: str, *, inferred: bool) -> str:
    """Mark a figure that comes from an engine's count of updates."""
    return figure + "?" * inferred


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A latency with three digits.

    >>> duration(None), duration(0.0123), duration(1.5)
    ('-', '12.3ms', '1.5s')
    """
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g}ms" if seconds < 1 else f"{seconds:.3g}s"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "  none yet"
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows))
    return "\n".join("  " + line.rstrip() for line in lines)
