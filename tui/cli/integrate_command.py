"""``rltop integrate``: the lines that attach rltop to a training framework, and what they give in this environment."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rltop.backend.util.near import did_you_mean
from rltop.integrations.support.catalogue import BY_NAME, FRAMEWORKS, PROOFS, Framework
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option


@click.command(short_help="Print the lines that attach rltop to a training framework.")
@click.argument("framework", required=False)
@click.option("--source", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="Check the source in FOLDER, such as a checkout, instead of the installed framework.")  # fmt: skip
@as_json_option
def integrate(framework: str | None, source: Path | None, as_json: bool) -> None:
    """Print the lines that attach rltop to FRAMEWORK, or list all frameworks.

    The framework's source is compared with the functions that the adapter observes; it is not imported. Exit code 1 if
    a function does not fit.
    """
    from rltop.backend.doctor import integration_check as checks

    if framework is None:
        found = [checks.check(one) for one in FRAMEWORKS]
        if as_json:
            print_json({"frameworks": [checks.as_json(one) for one in found], "proofs": PROOFS})
            return
        for one in found:
            state = f"installed {one.version}" if one.version else "installed" if one.found else "not installed"
            fits = {True: "", False: ", hooks do not all fit", None: ""}[one.fits]
            echo(f"{one.framework.name:<12} {one.framework.proof:<10} {state}{fits}")
        echo("\n" + "\n".join(f"{proof:<10} {text}" for proof, text in PROOFS.items()))
        return
    checked = checks.check(_named(framework), source)
    if as_json:
        print_json(checks.as_json(checked))
    else:
        echo("\n".join(checks.as_text(checked)))
    sys.exit(checked.fits is False)


def _named(name: str) -> Framework:
    wanted = name.lower().replace("_", "-")
    same = {key.replace("-", ""): one for key, one in BY_NAME.items()}
    if (found := same.get(wanted.replace("-", ""))) is not None:
        return found
    hint = did_you_mean(name, [one.name for one in FRAMEWORKS])
    known = ", ".join(one.name for one in FRAMEWORKS)
    raise click.ClickException(f"no adapter for {name!r}{hint}; adapters: {known}. Any trainer: examples/attach.py")


COMMANDS: tuple[click.Command, ...] = (integrate,)
