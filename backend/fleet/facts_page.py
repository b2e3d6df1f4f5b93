"""The table of facts as a page: ``python -m rltop.backend.fleet.facts_page > docs/facts.md``."""

from __future__ import annotations

from rltop.backend.fleet.facts import FACTS, FLAG_NAMES, Fact

HEAD = """\
# Facts that must match

Generated from the table in [`backend/fleet/facts.py`](../backend/fleet/facts.py):
`python -m rltop.backend.fleet.facts_page > docs/facts.md`.

`rltop fingerprint` prints the configuration of each engine, read from its live objects, and the facts that the trainer
states (`TrainerCollector(facts=...)`, `.facts(...)`). Mismatches are marked with an unequal sign there, in
`rltop status` and in the dashboard. A mismatch is an event once it has lasted three seconds, and another when it ends.

- Among engines, those outside the majority are marked; without a majority, all.
- Dtypes match under any of their names (`torch.float32`, `fp32`), numbers by value, `top_k` 0 matches -1, and models
  match by the last part of their path. A fact that is not stated is not compared.
- `logprobs_mode` raw is also compared with temperature, top-p, top-k and penalties of trainer and requests, since raw
  logprobs leave them out.
- `default_sampling` are the values from a model's `generation_config.json` for parameters that requests leave unset.
  They are compared with the trainer's parameters too.

| fact | description | same on all engines | same as the trainer's | effect of a mismatch |
| --- | --- | --- | --- | --- |
"""

TAIL = "| every flag | its current value | yes | | see `rltop set --help` |\n"


def document() -> str:
    """The page."""
    return HEAD + "".join(_row(fact) for fact in FACTS if fact.name not in FLAG_NAMES) + TAIL


def _row(fact: Fact) -> str:
    fleet, trainer = ("yes" if wanted else "" for wanted in (fact.fleet, fact.trainer))
    return f"| `{fact.name}` | {fact.means} | {fleet} | {trainer} | {fact.why} |\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/facts.md
