"""The commands on stored runs and on exports: replay, record, export, parity, forward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.exporters.kinds import SUMMARIES
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import OneOf, as_json_option, existing_run, on_terminal, run_argument, run_path

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot
    from rltop.backend.client.live import Client
    from rltop.tui.model.reference import Reference

_FILE = click.Path(dir_okay=False, path_type=Path)


def reference_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--reference`` to a command that shows a run."""
    option = click.option(
        "--reference", "references", multiple=True, metavar="RUN",
        help="Also draw this stored run and mark where the two diverge (repeatable: gives the run-to-run noise).",
    )  # fmt: skip
    return option(command)


def read_references(names: tuple[str, ...]) -> Reference | None:
    """Read the stored runs of ``--reference``; None if there are none.

    Raises:
        click.ClickException, StoreError: a run can't be read.
    """
    if not names:
        return None
    from rltop.backend.store.read import Reader, evaluating
    from rltop.tui.model.reference import Reference

    runs = []
    for path in map(run_path, names):
        with evaluating(path), Reader(path) as reader:
            runs.append(reader.snapshot().steps)
    return Reference(runs)


@click.command(short_help="Replay a stored run in the dashboard.")
@run_argument()
@click.option("--sample", is_flag=True, help="The recorded demo run included in rltop.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), metavar="N",
              help="Playback speed (default: 1); inf shows the end.")  # fmt: skip
@click.option("--from", "from_step", type=click.IntRange(0), metavar="STEP",
              help="Start at this step (default: the first; of the sample, some steps before its fault).")  # fmt: skip
@reference_option
@click.option("--fps", type=click.FloatRange(0.5, 10), default=4.0, show_default=True, help="Repaints per second.")
@click.option("--json", "as_json", is_flag=True, help="Print the last snapshot, as `rltop status --json` does.")
def replay(
    run: str | None,
    sample: bool,
    speed: float | None,
    from_step: int | None,
    references: tuple[str, ...],
    fps: float,
    as_json: bool,
) -> None:
    """Replay a stored run in the dashboard as if it were live.

    RUN may be live, over, or the path of a copied run directory; FILE is one written by `rltop record`. Without a
    terminal, or with --json, the last snapshot is printed.
    """
    from rltop.backend.client.replay import SAMPLE, Replay, before_first_alarm
    from rltop.backend.store.read import Reader, evaluating
    from rltop.backend.text import status

    if sample == (run is not None):
        raise click.UsageError("give either a run or file, or --sample")
    path = SAMPLE if sample else run_path(run)
    if as_json or not on_terminal():
        with evaluating(path), Reader(path) as reader:
            snapshot = reader.snapshot()
            print_json(status.as_json(snapshot)) if as_json else echo(status.as_text(snapshot))
        return
    reader = Reader(path)
    if sample and speed is None and from_step is None:
        from_step = before_first_alarm(reader)
    source = Replay(reader, speed=speed or 1.0, from_step=from_step)
    from rltop.tui.replay_dashboard import run_replay

    sys.exit(run_replay(source, fps=fps, reference=read_references(references)))


@click.command(short_help="Copy a run into one shareable file.")
@run_argument("[RUN]")
@click.option(
    "-o",
    "--to",
    "to",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="Output file; compressed if its name ends in .gz.",
)
@click.option("--with-text", is_flag=True, help="Include token ids of the sampled sequences.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def record(run: str | None, to: Path, with_text: bool, force: bool) -> None:
    """Copy RUN, live or over, into one shareable file, without token text unless --with-text.

    The file contains the names of hosts, users and engines, and the reasons given for commands.
    """
    from rltop.backend.exporters.recording import record as write

    try:
        size = write(run_path(run), to, with_text=with_text, overwrite=force)
    except FileExistsError as error:
        raise click.ClickException(f"{to} exists; --force overwrites it") from error
    except OSError as error:
        raise click.ClickException(f"{to}: {error.strerror or error}") from error
    echo(f"{to}: {size / 1e6:.2f} MB; `rltop replay {to}` shows it")


@click.command(
    short_help="Export stored rows as CSV, JSON lines or Parquet.",
    help="Export the stored rows of RUN, live or over, as CSV, JSON lines or Parquet.\n\n\b\n"
    + "\n".join(f"{name:<14}{summary}" for name, summary in SUMMARIES.items()),
)
@run_argument()
@click.option("--what", type=OneOf(list(SUMMARIES)), required=True, help="Which rows to export.")
@click.option(
    "-o",
    "--to",
    "to",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="Output file; its name ends in .csv, .jsonl or .parquet.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def export(run: str | None, what: str, to: Path, force: bool) -> None:
    """The help text above is made from the table of row kinds."""
    from rltop.backend.exporters.tables import export as write
    from rltop.backend.store.read import Reader, evaluating

    path = run_path(run)
    try:
        with evaluating(path), Reader(path) as reader:
            count = write(reader, what, to, overwrite=force)
    except FileExistsError as error:
        raise click.ClickException(f"{to} exists; --force overwrites it") from error
    except OSError as error:
        raise click.ClickException(f"{to}: {error.strerror or error}") from error
    echo(f"{to}: {count} rows")


_EXIT_CODES = {"parity": 0, "not parity": 1, "too little data": 3}


@click.command(short_help="Test whether a run matches reference runs.")
@click.argument("references", nargs=-1, required=True, metavar="REF... RUN")
@as_json_option
def parity(references: tuple[str, ...], as_json: bool) -> None:
    """Test whether RUN matches the reference runs REF within the noise of repeated runs.

    Each is a run or a file written by `rltop record`. Clip rate, KL, entropy, reward, gap, mean ratio and lag are
    compared step by step. Exit code 0: parity; 1: not parity; 3: too little data.
    """
    import msgspec

    from rltop.backend.parity.stored_runs import as_text, compare_stored

    if len(references) < 2:
        raise click.UsageError("give at least one reference run, then the run to test")
    *others, run = references
    verdict = compare_stored([run_path(name) for name in others], run_path(run))
    print_json(msgspec.to_builtins(verdict)) if as_json else echo(as_text(verdict))
    sys.exit(_EXIT_CODES[verdict.verdict])


@click.command(short_help="Forward metrics or alarms of a live run to other tools.")
@run_argument("[RUN]")
@click.option("--to", "to", metavar="SINK",
              help="prometheus:PORT (on the loopback address), tensorboard:DIR or wandb:PROJECT.")  # fmt: skip
@click.option(
    "--on-alarm",
    "command",
    metavar="COMMAND",
    help="Run this command on each alarm change, with JSON on its standard input.",
)
@click.option("--webhook", "url", metavar="URL", help="Post the same JSON to this URL.")
def forward(run: str | None, to: str | None, command: str | None, url: str | None) -> None:
    """Forward the metrics or alarms of a live RUN until it ends, or until ctrl-c.

    Runs as a separate viewer process: if the receiver hangs, only this process stops. An alarm is sent once each when
    it is raised, when its cause or engines change, and when it closes, unless it is acknowledged or silenced; failed
    deliveries are retried for three minutes.
    """
    from rltop.backend.client.live import Client
    from rltop.backend.exporters.alarm_hooks import Hook, ShellCommand, Webhook
    from rltop.backend.exporters.forward import Forwarder, ForwardError, Sink, check_sink, open_sink

    if not (to or command or url):
        raise click.UsageError("give a receiver: --to SINK, --on-alarm COMMAND or --webhook URL")
    sinks: list[Sink] = []
    try:
        if to:
            check_sink(to)
        rundir = existing_run(run)
        if to:
            sinks.append(open_sink(to))
        if command:
            sinks.append(Hook(ShellCommand(command), _log))
        if url:
            sinks.append(Hook(Webhook(url), _log))
    except ForwardError as error:
        raise click.ClickException(str(error)) from error
    forwarders = [Forwarder(sink) for sink in sinks]
    try:
        receivers = [*filter(None, (to, command)), *(["a webhook"] if url else [])]
        echo(f"forwarding run {rundir.run!r} to {', '.join(receivers)}; ctrl-c stops")
        with Client(rundir) as client:
            for snapshot in _until_over(client):
                for forwarder in forwarders:
                    forwarder.show(snapshot)
        echo(f"run {rundir.run!r} has ended")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for sink in sinks:
            sink.close()


LAST_S = 3
"""Seconds to wait for the last frames of a run that is over."""


def _until_over(client: Client) -> Iterator[Snapshot]:
    """The snapshots of a live run, about once a second, until trainer and engines have exited."""
    from rltop.backend.api import is_over

    left = LAST_S
    while left:
        if client.poll(1.0) and client.view is not None:
            yield client.view
        if client.view is not None and is_over(client.view):
            left -= 1


def _log(line: str) -> None:
    echo(line, err=True)


COMMANDS = (replay, record, export, parity, forward)
