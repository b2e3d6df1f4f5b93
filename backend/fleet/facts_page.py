"""The table of facts for people: ``python -m rltop.backend.fleet.facts_page > docs/facts.md``."""

from __future__ import annotations

from rltop.backend.fleet.facts import FACTS, FLAG_NAMES, Fact

HEAD = """\
# Facts that must agree

Made from the table in [`backend/fleet/facts.py`](../backend/fleet/facts.py):
`python -m rltop.backend.fleet.facts_page > docs/facts.md`.

`rltop fingerprint` prints what each engine computes with, read from its live objects, beside what the trainer states
(`TrainerCollector(facts=...)`, `.facts(...)`). What does not agree is marked with an unequal sign there, in
`rltop status` and in the dashboard; it is an event once it has stood for three seconds, and once more when it ends.

- Of several engines the odd ones are marked; where none has a majority, all.
- Dtypes agree by any of their names (`torch.float32`, `fp32`), numbers as numbers, `top_k` 0 as -1, models by the last
  part of their path. What an engine or the trainer does not state is not compared.
- `logprobs_mode` raw is also held against temperature, top-p, top-k and penalties of trainer and requests: a raw record
  leaves them out.
- `default_sampling` is what a model's `generation_config.json` fills in where a request leaves a parameter unset; it is
  held against the trainer's parameters too.

| fact | what it is | same on all engines | same as the trainer's | why |
| --- | --- | --- | --- | --- |
"""

TAIL = "| every flag | its value and form now | yes | | what the flag does: `rltop set --help` |\n"


def document() -> str:
    """The page."""
    return HEAD + "".join(_row(fact) for fact in FACTS if fact.name not in FLAG_NAMES) + TAIL


def _row(fact: Fact) -> str:
    fleet, trainer = ("yes" if wanted else "" for wanted in (fact.fleet, fact.trainer))
    return f"| `{fact.name}` | {fact.means} | {fleet} | {trainer} | {fact.why} |\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/facts.md
