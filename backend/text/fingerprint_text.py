"""Fingerprints as JSON and text, and the launch options that reproduce an engine's current flags. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rltop.backend import api
from rltop.backend.fleet import facts
from rltop.collectors.contract.flags import FLAGS

MARK = "≠"
"""Marks every mismatched fact."""

_WIDEST = 40
"""Width limit of cells of matching facts; mismatched ones and JSON are never truncated."""


def as_json(snapshot: api.Snapshot) -> dict[str, Any]:
    """The output of ``rltop fingerprint --json``; ``differs`` explains each mismatched fact."""
    return {
        "run": snapshot.run,
        "agree": not any(engine.differs for engine in snapshot.engines.values()),
        "engines": [
            {
                "id": engine.id,
                "health": engine.health,
                "facts": facts.of_engine(engine),
                "default_sampling": facts.defaults(engine.fingerprint),
                "differs": engine.differs,
            }
            for _, engine in sorted(snapshot.engines.items())
        ],
        "trainer": {"health": snapshot.trainer.health, "facts": snapshot.trainer.facts},
    }


def as_text(snapshot: api.Snapshot) -> str:
    """A table of facts by engine and trainer, and an explanation of each mismatch."""
    if not snapshot.engines:
        return f"run {snapshot.run}: no engine has reported yet"
    columns = _columns(snapshot.engines.values())
    trainer = snapshot.trainer.facts
    heads = ("", "fact", *(title for title, _ in columns), "trainer")
    engines = [engine for _, engine in columns]
    rows = [_row(name, engines, trainer) for name in names(engines, trainer)]
    hint = "" if trainer else " The trainer stated no facts: see TrainerCollector(facts=...)."
    blocks = [f"run {snapshot.run}: {verdict(snapshot)}{hint}", _table([heads, *rows])]
    lines = [*difference_lines(snapshot), *_filled(snapshot.engines.values())]
    return "\n\n".join([*blocks, *(["\n".join(lines)] if lines else [])])


def verdict(snapshot: api.Snapshot) -> str:
    """One sentence on whether engines and trainer match."""
    differing = sorted({fact for engine in snapshot.engines.values() for fact in engine.differs})
    count = len(snapshot.engines)
    who = f"{count} engine{'s' * (count != 1)}"
    if not differing:
        if snapshot.trainer.facts:
            return f"{who} and the trainer's facts match."
        return f"{who}, nothing to compare with." if count == 1 else f"{who}, which match."
    return f"{who}; {facts.some(differing, 6)} {'differ' if len(differing) > 1 else 'differs'}."


def difference_lines(snapshot: api.Snapshot) -> list[str]:
    """One line per mismatched fact: the values, the mismatch, and its consequence."""
    engines = [engine for _, engine in sorted(snapshot.engines.items())]
    lines = []
    for fact in dict.fromkeys(fact for engine in engines for fact in engine.differs):
        values: dict[str, list[str]] = {}
        mismatches: dict[str, None] = {}
        for engine in engines:
            if fact in engine.differs:
                values.setdefault(facts.of_engine(engine).get(fact, "unknown"), []).append(engine.id)
                mismatches |= dict.fromkeys(engine.differs[fact].split(facts.AND))
        each = dict.fromkeys(facts.has(ids, value) for value, ids in values.items())
        lines.append(f"{MARK} {fact}: {facts.AND.join(each | mismatches)}{facts.because(fact)}")
    return lines


def names(engines: Iterable[api.Engine], trainer: facts.Facts) -> list[str]:
    """Every stated fact: the compared ones first, in the order of their table."""
    stated = dict.fromkeys(name for engine in engines for name in facts.of_engine(engine)) | dict.fromkeys(trainer)
    return [name for name in facts.BY_NAME if name in stated] + [name for name in stated if name not in facts.BY_NAME]


def _columns(engines: Iterable[api.Engine]) -> list[tuple[str, api.Engine]]:
    """The columns, each with its title and one engine; identical engines share a column."""
    identical: dict[tuple[Any, ...], list[api.Engine]] = {}
    for engine in sorted(engines, key=lambda engine: engine.id):
        known = tuple(sorted(facts.of_engine(engine).items())), tuple(sorted(engine.differs.items()))
        identical.setdefault((known, engine.health), []).append(engine)
    columns = []
    for first, *rest in identical.values():
        health = "" if first.health == "live" else f" ({api.health_text(first.health)})"
        columns.append((facts.some([engine.id for engine in (first, *rest)], 3) + health, first))
    return columns


def _row(name: str, engines: list[api.Engine], trainer: facts.Facts) -> tuple[str, ...]:
    differs = [name in engine.differs for engine in engines]
    values = [facts.of_engine(engine).get(name, "-") for engine in engines]
    cells = [f"{value} {MARK}" if marked else value for value, marked in zip(values, differs, strict=True)]
    cells.append(trainer.get(name, "-"))
    if not any(differs):
        cells = [cell if len(cell) <= _WIDEST else cell[: _WIDEST - 1] + "…" for cell in cells]
    return (MARK if any(differs) else "", name, *cells)


def _filled(engines: Iterable[api.Engine]) -> list[str]:
    """The sampling defaults that a model's ``generation_config`` sets."""
    by_defaults: dict[tuple[str, str], list[str]] = {}
    for engine in sorted(engines, key=lambda engine: engine.id):
        if filled := facts.defaults(engine.fingerprint):
            values = ", ".join(f"{name} {value}" for name, value in filled.items())
            source = engine.fingerprint.get("default_sampling_from", "unknown source")
            by_defaults.setdefault((values, source), []).append(engine.id)
    return [
        f"· {facts.some(ids)}: requests that leave them unset get {values} (from {source})"
        for (values, source), ids in by_defaults.items()
    ]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def launch_args(engine: api.Engine) -> tuple[str, list[str]]:
    """The options that start vLLM with this engine's current flags.

    Returns:
        The options as one shell line, and remarks on flags that have no option.
    """
    options, remarks = [], []
    if engine.health != "live":
        remarks.append(f"engine {engine.id}: {api.health_text(engine.health)}; these are its last reported flags")
    for flag in FLAGS:
        state = engine.flags.get(flag.name)
        if state is None or state.value is None:
            remarks.append(f"{flag.name}: this engine reports no such flag")
        elif state.value not in flag.launch_args:
            command = f"`rltop set {flag.name} {state.value} --engine {engine.id}` sets it once the engine is up"
            known = state.value in flag.values
            remarks.append(
                f"{flag.name} {state.value} has no launch option; {command}"
                if known
                else f"{flag.name} reads {state.value}, which no launch option reproduces"
            )
        else:
            options += [flag.launch_args[state.value]] * bool(flag.launch_args[state.value])
            if state.detail and state.detail != "strict":
                shown = facts.shown(state.value, state.detail)
                remarks.append(f"{flag.name} is {shown}; the launch option sets {state.value} in full")
    return " ".join(options), remarks
