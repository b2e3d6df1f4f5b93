"""``metrics`` describes metrics, ``compute`` evaluates a file, ``attribution`` breaks the gap down by source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, client_or_replay, print_json

if TYPE_CHECKING:
    from rltop.backend.api.attribution import Attribution, Stratum


@click.command(short_help="Describe a metric, or list all metrics.")
@click.argument("name", required=False)
@as_json_option
def metrics(name: str | None, as_json: bool) -> None:
    """Describe the metric NAME, or list all metrics.

    Prints unit, formula, source, thresholds and the names in other frameworks.
    """
    from rltop.backend import metrics as catalogue
    from rltop.backend.metrics import document
    from rltop.backend.metrics.absent import ABSENT

    if absent := next((metric for metric in ABSENT if metric.name == name), None):
        raise click.ClickException(f"{name} is not computed ({absent.why}); use instead: {absent.instead}")
    if name is not None and name not in catalogue.BY_NAME:
        raise click.ClickException(f"no metric {name!r}{_suggestions(name)}; `rltop metrics` lists all")
    if as_json:
        chosen = [catalogue.BY_NAME[name]] if name else catalogue.METRICS
        print_json({"metrics": [document.as_json(metric) for metric in chosen]})
    elif name is not None:
        click.echo(name)
        for label, text in document.explain(catalogue.BY_NAME[name]):
            click.echo(f"  {label:<12} {text}")
    else:
        click.echo("\n\n".join(_family(family) for family in catalogue.FAMILIES))


def _family(family: object) -> str:
    from rltop.backend.metrics import MetricFamily
    from rltop.backend.metrics.document import unit_of

    assert isinstance(family, MetricFamily)
    return "\n".join([family.title, *(f"  {m.name:<28} {unit_of(m):<18} {m.formula}" for m in family.metrics)])


def _suggestions(name: str) -> str:
    """Metrics with a similar name, here or in another framework."""
    from difflib import get_close_matches

    from rltop.backend.metrics import BY_NAME, METRICS

    near = get_close_matches(name, BY_NAME, 3, 0.6)
    near += [metric.name for metric in METRICS if any(name in alias for alias in metric.aliases)]
    return f"; similar: {', '.join(dict.fromkeys(near))}" if near else ""


@click.command(short_help="Compute all metrics from arrays in a .npz file.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.npz")
@as_json_option
def compute(file: Path, as_json: bool) -> None:
    """Compute all metrics from arrays in a numpy .npz file.

    Array names and shapes are those of TrainerCollector.sequences(): trainer_logprobs, rollout_logprobs and mask are
    required. Metrics whose arrays are missing are null.
    """
    from rltop.backend.measure import arrays as npz
    from rltop.backend.metrics import FAMILIES
    from rltop.backend.metrics.document import unit_of

    try:
        arrays = npz.read(file)
        values = npz.values(arrays)
    except npz.ComputeError as error:
        raise click.ClickException(str(error)) from error
    if unused := sorted(set(arrays) - npz.NAMES):
        click.echo(f"not used: {', '.join(unused)}", err=True)
    if as_json:
        print_json(values)
        return
    for family in FAMILIES:
        known = [metric for metric in family.metrics if values[metric.name] is not None]
        if known:
            click.echo(family.title)
        for metric in known:
            click.echo(f"  {metric.name:<28} {values[metric.name]:<14.6g} {unit_of(metric)}")


@click.command(short_help="Break the gap down by source.")
@click.argument("run", required=False)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Number of last steps to use.")
@as_json_option
def attribution(run: str | None, steps: int, as_json: bool) -> None:
    """Break the gap of RUN down by source.

    Sources are engine, lag, position, probability, prefix cache, update, length, prompt, flag epoch and more. Each
    stratum has its tokens, sequences and 95 % intervals over sequences. RUN may be over, or a file written by
    `rltop record`.
    """
    import msgspec

    from rltop.backend.client.live import HubUnreachable

    try:
        with client_or_replay(run) as source:
            found = source.attribution(steps)
    except (HubUnreachable, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        click.echo("\n".join(_lines(found)))


_MAX_PROMPTS = 8
_MATCHED = {"old": "old_logprobs under the sampling version - rollout", "lag0": "estimate from tokens of lag 0"}


def _lines(found: Attribution) -> Iterator[str]:
    from rltop.backend.text.attribution_text import line_text

    if not found.steps:
        yield "waiting for the first training step since this hub started; earlier steps keep no attribution data"
        return
    yield f"steps {found.steps[0]} to {found.steps[-1]}, d = trainer - rollout, nats, 95 % intervals"
    yield from (f"{line.engine or 'all engines'}: {line_text(line)}" for line in found.lines)
    yield from _table(found.strata)
    if found.matched_by:
        yield f"version-matched ({_MATCHED[found.matched_by]})"
        yield from _table(found.matched)


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
