"""Commands on what the numbers are: ``rltop metrics`` prints the catalogue, ``rltop compute`` reckons a file."""

from __future__ import annotations

from pathlib import Path

import click

from rltop.tui.runs import as_json_option, print_json


@click.command()
@click.argument("name", required=False)
@as_json_option
def metrics(name: str | None, as_json: bool) -> None:
    """Print what a metric is: unit, formula, source, thresholds, names elsewhere. Without NAME: all of them."""
    from rltop.backend import metrics as catalogue
    from rltop.backend.metrics import document

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
    from rltop.backend.metrics import Family
    from rltop.backend.metrics.document import unit_of

    assert isinstance(family, Family)
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
    from rltop.backend import compute as computing
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


COMMANDS = (metrics, compute)
