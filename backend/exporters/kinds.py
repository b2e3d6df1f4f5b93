"""What of a run can be exported, by name: for the command line, which loads nothing heavy to know it."""

from __future__ import annotations

from collections.abc import Mapping

SUMMARIES: Mapping[str, str] = {
    "steps": "every metric of every step, and the trainer's scalars",
    "engine-steps": "the metrics of each engine's part of every step",
    "engines": "the state of every engine over time",
    "sequences": "the sequences and tokens that were kept of each step",
    "events": "what happened",
    "changes": "the stages of every command",
}
