"""The exportable tables of a run; apart from ``tables`` so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping

SUMMARIES: Mapping[str, str] = {
    "steps": "every metric of every step, and the trainer's scalars",
    "engine-steps": "the metrics of each engine's part of every step",
    "engines": "the state of every engine over time",
    "sequences": "the stored sequences and tokens of each step",
    "events": "the event log",
    "changes": "the states of every command",
}
