"""``metrics`` describes metrics, ``compute`` evaluates a file, ``attribution`` breaks the gap down by source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, client_or_replay, run_argument

if TYPE_CHECKING:
    from rltop.backend.api.attribution import Attribution, Stratum


@click.command(short_help="Describe a metric, or a key of a framework; or list all metrics.")
@click.argument("name", required=False)
@as_json_option
def metrics(name: str | None, as_json: bool) -> None:
    """Describe the metric NAME, or list all metrics.

    Prints unit, formula, source, thresholds and the names in other frameworks. NAME may be the key under which a
    framework logs a figure, such as actor/ppo_kl: then prints which metric it is, and how the two differ.
    """
    from rltop.backend import metrics as catalogue
    from rltop.backend.metrics import document, elsewhere
    from rltop.backend.metrics.absent import ABSENT

    if absent := next((metric for metric in ABSENT if metric.name == name), None):
        raise click.ClickException(f"{name} is not computed ({absent.why}); use instead: {absent.instead}")
    keys = elsewhere.find(name) if name and name not in catalogue.BY_NAME else []
    if name and name not in catalogue.BY_NAME and not keys:
        raise click.ClickException(
            f"no metric {name!r}, and no key of a framework{_suggestions(name)}; `rltop metrics` lists all metrics"
        )
    names = list(dict.fromkeys(key.metric for _, key in keys)) or ([name] if name else list(catalogue.BY_NAME))
    if as_json:
        found = {"metrics": [document.as_json(catalogue.BY_NAME[metric]) for metric in names]}
        print_json(found | ({"keys": [elsewhere.as_json(entry) for entry in keys]} if keys else {}))
    elif name is None:
        echo("\n\n".join(_family(family) for family in catalogue.FAMILIES))
    else:
        for entry in keys:
            _echo_entry(f"{entry[1].key}, {entry[0].framework}", elsewhere.explain(entry))
        for metric in names:
            _echo_entry(metric, document.explain(catalogue.BY_NAME[metric]))


def _echo_entry(title: str, lines: Iterable[tuple[str, str]]) -> None:
    echo(title)
    for label, text in lines:
        echo(f"  {label:<12} {text}")


def _family(family: object) -> str:
    from rltop.backend.metrics import MetricFamily
    from rltop.backend.metrics.document import unit_of

    assert isinstance(family, MetricFamily)
    return "\n".join([family.title, *(f"  {m.name:<28} {unit_of(m):<18} {m.formula}" for m in family.metrics)])


def _suggestions(name: str) -> str:
    """The metric or key with a similar name as a question, and those that contain it."""
    from rltop.backend.metrics import BY_NAME
    from rltop.backend.metrics.elsewhere import ENTRIES
    from rltop.backend.util.near import did_you_mean

    known = [*BY_NAME, *dict.fromkeys(key.key for _, key in ENTRIES)]
    longer = [one for one in known if name in one][:8]
    return did_you_mean(name, known) + (f"; similar: {', '.join(longer)}" if longer else "")


@click.command(short_help="Compute all metrics from arrays in a .npz file.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.npz")
@as_json_option
def compute(file: Path, as_json: bool) -> None:
    """Compute all metrics from arrays in a numpy .npz file.

    Array names and shapes are those of TrainerCollector.sequences(): trainer_logprobs, rollout_logprobs and mask are
    required. Metrics whose arrays are missing are null. With environments, an array of one string per row, also the
    gap by environment. A single number shifted=1 says that per-token arrays belong to the next tokens.
    """
    import msgspec

    from rltop.backend.gaps.attribute import of_environments
    from rltop.backend.measure import arrays as npz
    from rltop.backend.metrics import FAMILIES
    from rltop.backend.metrics import values as values_of
    from rltop.backend.metrics.document import unit_of

    try:
        arrays = npz.read(file)
        summary = npz.summary(arrays)
    except npz.ComputeError as error:
        raise click.ClickException(str(error)) from error
    values, strata = values_of(summary), list(of_environments([summary.environments]))
    if unused := sorted(set(arrays) - npz.NAMES):
        echo(f"not used: {', '.join(unused)}", err=True)
    if as_json:
        print_json(values | ({"environments": msgspec.to_builtins(strata)} if strata else {}))
        return
    for family in FAMILIES:
        known = [metric for metric in family.metrics if values[metric.name] is not None]
        if known:
            echo(family.title)
        for metric in known:
            echo(f"  {metric.name:<28} {values[metric.name]:<14.6g} {unit_of(metric)}")
    for line in _table(strata):
        echo(line)


@click.command(short_help="Break the gap down by source.")
@run_argument()
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Number of last steps to use.")
@as_json_option
def attribution(run: str | None, steps: int, as_json: bool) -> None:
    """Break the gap of RUN down by source: first in a sentence, then the sources ranked, then all figures.

    Sources are engine, lag, position, probability, prefix cache, update, length, prompt, flag epoch and more. Each
    stratum has its tokens, sequences and 95 % intervals over sequences. RUN may be over, or a file written by
    `rltop record`.
    """
    import msgspec

    from rltop.backend.client.live import HubUnreachable
    from rltop.backend.text import attribution_text

    try:
        with client_or_replay(run) as source:
            found = source.attribution(steps)
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        sources = [asdict(source) for source in attribution_text.ranking(found.matched or found.strata)]
        print_json(msgspec.to_builtins(found) | {"summary": attribution_text.summary(found), "ranking": sources})
    else:
        echo("\n".join(_lines(found)))


_MAX_PROMPTS = 8
_MATCHED = {"old": "old_logprobs under the sampling version - rollout", "lag0": "estimate from tokens of lag 0"}


def _lines(found: Attribution) -> Iterator[str]:
    from rltop.backend.text.attribution_text import line_text, summary

    if not found.steps:
        yield "waiting for the first training step since this hub started; earlier steps keep no attribution data"
        return
    yield summary(found)
    yield from _ranked(found)
    yield ""
    yield f"steps {found.steps[0]} to {found.steps[-1]}, d = trainer - rollout, nats, 95 % intervals"
    yield from (f"{line.engine or 'all engines'}: {line_text(line)}" for line in found.lines)
    yield from _table(found.strata)
    if found.matched_by:
        yield f"version-matched ({_MATCHED[found.matched_by]})"
        yield from _table(found.matched)


def _ranked(found: Attribution) -> Iterator[str]:
    """The sources with more of the gap than of the tokens, largest first."""
    from rltop.backend.text.attribution_text import ranking

    sources = ranking(found.matched or found.strata)
    if sources:
        matched = " of version-matched tokens" if found.matched else ""
        yield f"\nsources with more of the gap{matched} than of the tokens"
        yield f"{'source':<32} {'of |d|':>7} {'of tokens':>10}"
    for source in sources:
        note = "" if source.certain else "within its interval"
        yield f"  {source.dimension + ' ' + source.label:<30} {source.of_gap:>7.0%} {source.of_tokens:>10.0%}   {note}"


def _table(strata: list[Stratum]) -> Iterator[str]:
    """Dimensions with more than one stratum, and the first few prompts; JSON has all."""
    from rltop.backend.text.attribution_text import estimate

    groups: dict[tuple[str, bool], list[Stratum]] = {}
    for stratum in strata:
        groups.setdefault((stratum.dimension, stratum.engine is not None), []).append(stratum)
    for (dimension, _), members in groups.items():
        if len(members) == 1 and dimension != "all":
            continue
        last = f"{'ratio':<26} |d|/(1-p)" if dimension == "probability" else "ratio"
        yield f"{dimension:<20} {'tokens':>9} {'seqs':>7}  {'|d|':<33} {'k3':<33} {last}"
        for stratum in members[: _MAX_PROMPTS if dimension == "prompt" else None]:
            label = f"  {stratum.engine} {stratum.label}" if stratum.engine else f"  {stratum.label}"
            ratio = estimate(stratum.ratio, ".4f")  # fixed decimals: the reference is 1
            figures = f"{estimate(stratum.abs_diff):<33} {estimate(stratum.k3):<33} {ratio}"
            if stratum.abs_diff_per_1_minus_p is not None:
                figures = f"{figures:<94} {stratum.abs_diff_per_1_minus_p:.3g}"
            yield f"{label:<20} {stratum.tokens:>9} {stratum.sequences:>7}  {figures}"


COMMANDS = (metrics, compute, attribution)
