"""The commands that look back: replay, record, export, parity."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.exporters.kinds import SUMMARIES
from rltop.collectors.contract import rundir as rundirs
from rltop.tui.cli.run_options import choose_run, existing_run, on_terminal

if TYPE_CHECKING:
    from rltop.tui.model.reference import Reference

_FILE = click.Path(dir_okay=False, path_type=Path)


def stored(name: str | None) -> Path:
    """The run directory or file that ``name`` means; None is the only live run.

    Raises:
        click.ClickException: there is no such thing.
    """
    if name is None:
        return choose_run(None).path
    found = Path(name) if "/" in name or Path(name).is_file() else rundirs.for_run(name).path
    if not found.exists():
        raise click.ClickException(f"no run or file {name!r}; `rltop runs` lists the runs")
    return found


def reference_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--reference`` of the commands that show a run."""
    option = click.option(
        "--reference", "references", multiple=True, metavar="RUN",
        help="Draw this stored run too, and mark where they part (several: the noise of repeated runs).",
    )  # fmt: skip
    return option(command)


def read_references(names: tuple[str, ...]) -> Reference | None:
    """The stored runs of ``--reference``.

    Raises:
        click.ClickException: one can't be read.
    """
    if not names:
        return None
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError
    from rltop.tui.model.reference import Reference

    found = []
    for name in names:
        try:
            with Reader(stored(name)) as reader:
                found.append(reader.snapshot().steps)
        except StoreError as error:
            raise click.ClickException(str(error)) from error
    return Reference(found)


@click.command()
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--sample", is_flag=True, help="The recorded demo that comes with rltop.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), metavar="N",
              help="Seconds of the run per second (default: 1; 30 for the sample); inf shows its end.")  # fmt: skip
@click.option("--from", "from_step", type=click.IntRange(0), metavar="STEP", help="Begin with this step.")
@reference_option
@click.option("--fps", type=click.FloatRange(0.5, 10), default=4.0, show_default=True, help="Repaints per second.")
@click.option("--json", "as_json", is_flag=True, help="Print the end of it, as `rltop status --json` does.")
def replay(
    run: str | None,
    sample: bool,
    speed: float | None,
    from_step: int | None,
    references: tuple[str, ...],
    fps: float,
    as_json: bool,
) -> None:
    """Show a stored run as if it were live.

    RUN may be live, over, or a copy; FILE is one that `rltop record` made. Without a terminal, or with --json, the
    last picture is printed.
    """
    from rltop.backend.client.replay import SAMPLE, SAMPLE_SPEED, Replay
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError
    from rltop.backend.text import status

    if sample == (run is not None):
        raise click.UsageError("name a run or a file, or say --sample")
    try:
        reader = Reader(SAMPLE if sample else stored(run))
        if as_json or not on_terminal():
            with reader:
                picture = reader.snapshot()
            click.echo(json.dumps(status.as_json(picture), indent=2) if as_json else status.as_text(picture))
            return
        made = Replay(reader, speed=speed or (SAMPLE_SPEED if sample else 1.0), from_step=from_step)
    except (StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    from rltop.tui.replay_dashboard import run_replay

    sys.exit(run_replay(made, fps=fps, reference=read_references(references)))


@click.command(short_help="Copy a run into one shareable file.")
@click.argument("run", required=False)
@click.option("--to", "to", type=_FILE, required=True, help="The file to make; packed if its name ends in .gz.")
@click.option("--with-text", is_flag=True, help="Keep the sequences with their token ids.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def record(run: str | None, to: Path, with_text: bool, force: bool) -> None:
    """Copy RUN, live or over, into one shareable file: no token text unless asked for.

    Names of hosts, users and engines, and the reasons that people gave for switches, are in it.
    """
    from rltop.backend.exporters.recording import record as make
    from rltop.backend.store.schema import StoreError

    try:
        size = make(stored(run), to, with_text=with_text, overwrite=force)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; --force overwrites it") from error
    except (StoreError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{to}: {size / 1e6:.2f} MB; `rltop replay {to}` shows it")


@click.command(
    short_help="Write a stored run as a table.",
    help="Write what is stored of RUN, live or over, as a table.\n\n\b\n"
    + "\n".join(f"{name:<14}{summary}" for name, summary in SUMMARIES.items()),
)
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--what", type=click.Choice(list(SUMMARIES)), required=True, help="Which rows.")
@click.option("--to", "to", type=_FILE, required=True, metavar="FILE", help="Ends in .csv, .jsonl or .parquet.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def export(run: str | None, what: str, to: Path, force: bool) -> None:
    """See the help text above, which is made from the table of kinds."""
    from rltop.backend.exporters.tables import ExportError
    from rltop.backend.exporters.tables import export as write
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError

    try:
        with Reader(stored(run)) as reader:
            count = write(reader, what, to, overwrite=force)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; --force overwrites it") from error
    except (StoreError, ExportError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{to}: {count} rows")


_EXIT = {"parity": 0, "not parity": 1, "too little data": 3}


@click.command(short_help="Judge whether a run follows reference runs.")
@click.argument("references", nargs=-1, required=True, metavar="REF... RUN")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def parity(references: tuple[str, ...], as_json: bool) -> None:
    """Judge whether RUN follows the reference runs REF within the noise of repeated runs.

    Each is a run or a file of `rltop record`. Clip rate, KL, entropy, reward, gap, mean ratio and lag are held against
    the references, step by step. Exit code 0: parity; 1: not parity; 3: too little data.
    """
    import msgspec

    from rltop.backend.parity.stored_runs import as_text, compare_stored
    from rltop.backend.store.schema import StoreError

    if len(references) < 2:
        raise click.UsageError("name one reference at least, and the run to judge last")
    *others, run = references
    try:
        verdict = compare_stored([stored(name) for name in others], stored(run))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(msgspec.to_builtins(verdict), indent=2) if as_json else as_text(verdict))
    sys.exit(_EXIT[verdict.verdict])


@click.command(short_help="Hand a live run, or its alarms, on to other tools.")
@click.argument("run", required=False)
@click.option("--to", "to", metavar="SINK",
              help="prometheus:PORT (on the loopback address), tensorboard:DIR or wandb:PROJECT.")  # fmt: skip
@click.option("--on-alarm", "command", metavar="COMMAND", help="Run this for each news of an alarm: JSON on its input.")
@click.option("--webhook", "url", metavar="URL", help="Post the same JSON there.")
def forward(run: str | None, to: str | None, command: str | None, url: str | None) -> None:
    """Hand the figures of a live RUN on, or its alarms, until ctrl-c.

    This is a viewer in a process of its own: if the other side hangs, nothing but this stops. An alarm is handed on
    when it is raised, turns out to lie elsewhere, and is over, each once, unless acknowledged or silent; what can't be
    delivered is tried again for three minutes.
    """
    from rltop.backend.client.live import Client
    from rltop.backend.exporters.alarm_hooks import Hook, ShellCommand, Webhook
    from rltop.backend.exporters.forward import Forwarder, ForwardError, Sink, open_sink

    if not (to or command or url):
        raise click.UsageError("say where to: --to, --on-alarm or --webhook")
    rundir = existing_run(run)
    sinks: list[Sink] = []
    try:
        if to:
            sinks.append(open_sink(to))
        if command:
            sinks.append(Hook(ShellCommand(command), _say))
        if url:
            sinks.append(Hook(Webhook(url), _say))
    except ForwardError as error:
        raise click.ClickException(str(error)) from error
    forwarders = [Forwarder(sink) for sink in sinks]
    try:
        where = [*filter(None, (to, command)), *(["a webhook"] if url else [])]
        click.echo(f"handing run {rundir.run!r} on to {', '.join(where)}; ctrl-c ends it")
        with Client(rundir) as client:
            while True:
                if client.poll(1.0) and client.view is not None:
                    for forwarder in forwarders:
                        forwarder.show(client.view)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for sink in sinks:
            sink.close()


def _say(line: str) -> None:
    click.echo(line, err=True)


COMMANDS = (replay, record, export, parity, forward)
