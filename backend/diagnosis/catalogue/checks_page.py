"""The tests as a page: ``python -m rltop.backend.diagnosis.catalogue.checks_page > docs/diagnosis.md``."""

from __future__ import annotations

import sys

from rltop.backend.diagnosis.catalogue.all_checks import ALPHA, TESTS, Check

_INTRO = f"""# The tests of a diagnosis

Made from the tables in [`backend/diagnosis/`](../backend/diagnosis/) (`table_*.py`):
`python -m rltop.backend.diagnosis.catalogue.checks_page > docs/diagnosis.md`.

`d = trainer - rollout` in nats, per token. Tests are asked of all sampled tokens, before any filter by reward or
length, at every step of a run; what a test says holds for the run so far and not for the step alone.

- **Error rate.** A test alarms where the evidence, an e-value, passes 1 / {ALPHA:g}. Evidence is a mean of bets (or of
  likelihood ratios) over sizes of the effect and over all steps at which it may have begun, with weights that sum to
  1 over an endless run. A healthy run ever gets there with probability {ALPHA:g} or less, however often one looks
  (Ville's inequality). Bets need no variance and no normal distribution; means are taken over whole sequences and need
  both.
- **From the start.** Nothing is held against the run's own first steps alone: a true record has a mean ratio of 1 and a
  surprisal of the trainer's entropy at any lag, and rounding has the size that the dtypes give it. Where the first
  steps rounded far finer than that, they are a second and lower bound: a gap that comes later is told by it, and one
  that was there from the start only makes it the higher one, so that the dtypes' holds. trend, `entropy`, `reward`,
  `gradient`, `clip` and part of `lag` look at the course of the run itself.
- **At once, or not yet.** A run's gap may be a thousand times that of its first steps and still below what its dtypes
  could make; then a few sequences tell. What is not known to be different is not called alike: `cache_gap`, `in_flight` and
  `fit` say how many more sequences it takes, or that it is too near to call.
- **Begin and end.** The first step of a fault is the one that the evidence is largest from. A fault is over when three
  steps or more are free of it and differ from what was before by odds of 1,000; an alarm ends with it.
- *Mild* outcomes are had by healthy runs too. They support a cause, and are no reason to wake anybody.
- Not computed: batch_load, since collectors do not take the size of the batch that sampled a token. calibration and logit_lattice do without
  several logprobs at a position: calibration takes the trainer's entropy to know where it is nearly sure, logit_lattice takes answers to
  one prompt, which begin in the same context.

## How often they err
`python -m bench.diagnosis_null` asks all tests at every step of simulated healthy runs with temperatures from 0.6 to
1.2, lags of 0 to 4, 1 to 4 engines, answers of 6 to 60 tokens, with and without old logprobs. Of
2,000 steps of 40 runs, 145,850 findings, none alarms. Nor does any in the eight recorded healthy runs of the demo that
bounds were chosen on (504 steps, at temperatures 1 and 0.7, GRPO and GSPO, 2 and 3 engines), with old logprobs or
without them and without facts.
"""


def _row(test: Check) -> str:
    said = "; ".join(
        f"*{word}*{' (mild)' if word in test.mild else ''}: {meaning}" for word, meaning in test.meaning.items()
    )
    which = "run and each engine" if test.by_engine else "run"
    cells = (f"`{test.name}`", test.title, said, which, test.on, test.formula, test.rate, test.source)
    return "| " + " | ".join(cell.replace("|", chr(92) + "|") for cell in cells) + " |"


def document() -> str:
    """``docs/diagnosis.md``."""
    head = ("test", "asks for", "answers if not healthy", "of", "computed on", "how", "how often it errs", "source")
    table = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *map(_row, TESTS)]
    return "\n".join([_INTRO, "## All tests", "", *table, ""])


if __name__ == "__main__":
    sys.stdout.write(document())
