"""Commands on the numbers: ``metrics`` is their catalogue, ``compute`` reckons a file, ``attribution`` says whence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, client_or_replay, print_json

if TYPE_CHECKING:
    from rltop.backend.api.attribution import Attribution, Stratum


@click.command()
@click.argument("name", required=False)
@as_json_option
def metrics(name: str | None, as_json: bool) -> None:
    """Print what the metric NAME is, or list all of them.

    With its unit, formula, source, thresholds, and what other frameworks call it.
    """
    from rltop.backend import metrics as catalogue
    from rltop.backend.metrics import document
    from rltop.backend.metrics.absent import ABSENT

    if absent := next((a for a in ABSENT if a.name == name), None):
        raise click.ClickException(f"{name} is not computed ({absent.why}); instead: {absent.instead}")
    if name is not None and name not in catalogue.BY_NAME:
        raise click.ClickException(f"no metric {name!r}{_near(name)}; `rltop metrics` lists them")
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


def _near(name: str) -> str:
    """The metrics that the wrong name may have meant, by their own names or other frameworks'."""
    from difflib import get_close_matches

    from rltop.backend.metrics import BY_NAME, METRICS

    near = get_close_matches(name, BY_NAME, 3, 0.6)
    near += [metric.name for metric in METRICS if any(name in alias for alias in metric.aliases)]
    return f"; perhaps {', '.join(dict.fromkeys(near))}" if near else ""


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.npz")
@as_json_option
def compute(file: Path, as_json: bool) -> None:
    """Compute all metrics of arrays in a numpy .npz file.

    Names and shapes are those of TrainerCollector.sequences(): trainer_logprobs, rollout_logprobs and mask are
    required. What can't be computed from what is there is null.
    """
    from rltop.backend.measure import arrays as computing
    from rltop.backend.metrics import FAMILIES
    from rltop.backend.metrics.document import unit_of

    try:
        arrays = computing.read(file)
        found = computing.values(arrays)
    except computing.ComputeError as error:
        raise click.ClickException(str(error)) from error
    if unused := sorted(set(arrays) - computing.NAMES):
        click.echo(f"not used: {', '.join(unused)}", err=True)
    if as_json:
        print_json(found)
        return
    for family in FAMILIES:
        known = [metric for metric in family.metrics if found[metric.name] is not None]
        if known:
            click.echo(family.title)
        for metric in known:
            click.echo(f"  {metric.name:<28} {found[metric.name]:<14.6g} {unit_of(metric)}")


@click.command()
@click.argument("run", required=False)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="How many of the last steps.")
@as_json_option
def attribution(run: str | None, steps: int, as_json: bool) -> None:
    """Tell where the gap of RUN comes from.

    By engine, lag, position, probability, prefix cache, update, length, prompt, flag epoch and more; each stratum with
    its tokens, its sequences and 95 % intervals that take whole sequences as independent. RUN may be over, or a file of
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


_PROMPTS = 8
_MATCHED = {"old": "old - rollout, old logprobs under the version that sampled", "lag0": "estimate: tokens of lag 0"}


def _lines(found: Attribution) -> Iterator[str]:
    from rltop.backend.text.attribution_text import line_text

    if not found.steps:
        yield "no step is measured yet since this hub started; of steps before it is not kept what the gap is made of"
        return
    yield f"steps {found.steps[0]} to {found.steps[-1]}, d = trainer - rollout, nats, 95 % intervals"
    yield from (f"{line.engine or 'all engines'}: {line_text(line)}" for line in found.lines)
    yield from _table(found.strata)
    if found.matched_by:
        yield f"version-matched ({_MATCHED[found.matched_by]})"
        yield from _table(found.matched)


def _table(strata: list[Stratum]) -> Iterator[str]:
    """Dimensions of more than one stratum, and of prompts the first few; JSON has them all."""
    from rltop.backend.text.attribution_text import estimate

    groups: dict[tuple[str, bool], list[Stratum]] = {}
    for stratum in strata:
        groups.setdefault((stratum.dimension, stratum.engine is not None), []).append(stratum)
    for (dimension, _), members in groups.items():
        if len(members) == 1 and dimension != "all":
            continue
        last = f"{'ratio':<26} |d|/(1-p)" if dimension == "probability" else "ratio"
        yield f"{dimension:<20} {'tokens':>9} {'seqs':>7}  {'|d|':<33} {'k3':<33} {last}"
        for stratum in members[: _PROMPTS if dimension == "prompt" else None]:
            label = f"  {stratum.engine} {stratum.label}" if stratum.engine else f"  {stratum.label}"
            ratio = estimate(stratum.ratio, ".4f")  # decimals: it is 1 that it is held against
            figures = f"{estimate(stratum.abs_diff):<33} {estimate(stratum.k3):<33} {ratio}"
            if stratum.abs_diff_per_1_minus_p is not None:
                figures = f"{figures:<94} {stratum.abs_diff_per_1_minus_p:.3g}"
            yield f"{label:<20} {stratum.tokens:>9} {stratum.sequences:>7}  {figures}"


COMMANDS = (metrics, compute, attribution)
