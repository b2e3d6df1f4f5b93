"""``rltop worst``: the tokens and sequences of a step that disagree most, or a fair sample, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, client_of, print_json

if TYPE_CHECKING:
    from rltop.backend.api.samples import Samples, Token
    from rltop.tui.tokens.decode import Decode

KINDS = ("abs_diff", "k3", "worst", "sample")
"""As in ``view.AskSamples``."""

MOST = 32
"""Most that a hub keeps of a kind, and so the most to be asked for."""


@click.command()
@click.argument("run", required=False)
@click.option("--step", type=click.IntRange(0), help="Training step (default: the last).")
@click.option("--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True,
              help="Tokens by |d| or by k3; whole sequences: the worst by mean k3, or a fair sample.")  # fmt: skip
@click.option("--engine", metavar="ID", help="Only what this engine wrote.")
@click.option("--limit", type=click.IntRange(1, MOST), default=8, show_default=True, help="How many.")
@as_json_option
def worst(run: str | None, step: int | None, kind: str, engine: str | None, limit: int, as_json: bool) -> None:
    """Print the tokens and sequences of RUN with the largest gap. Those that are the same stand once: "7x".

    d is trainer minus rollout logprob, in nats. Arrows after a token say how large it is: one from 0.05 nats on, two
    from 0.25, three from 1; up where the trainer gives the token more probability than the engine did, down where less.
    """
    from rltop.backend import api
    from rltop.backend.api import samples
    from rltop.backend.client.live import CommandError, HubUnreachable
    from rltop.tui.tokens.decode import decoder

    try:
        with client_of(run) as client:
            known = client.snapshot().engines
            if engine is not None and engine not in known:
                raise click.ClickException(f"no engine {engine!r}; engines of this run: {', '.join(sorted(known))}")
            found = client.samples(api.AskSamples(api.new_id(), step, kind, engine, limit if as_json else MOST))
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(samples.as_json(found))
    else:
        click.echo(text(found, decoder(list(known.values())), limit))


def text(found: Samples, decode: Decode, limit: int = MOST) -> str:
    """For a person; all of it printable."""
    from rltop.tui.tokens import token_text
    from rltop.tui.tokens.dedupe import distinct_sequences, distinct_tokens, sequence_key, times_text, token_key

    tokens, times = distinct_tokens(found.tokens)
    sequences, of_sequences = distinct_sequences(found.sequences)
    head = f"step {found.step}: {found.of_sequences} sequences, {found.of_tokens} tokens"
    lines = [_token(token, decode, times_text(times, token_key(token))) for token in tokens[:limit]]
    if lines:
        lines.insert(
            0, f"{'d':>9} {'rollout':>9} {'trainer':>9}  {'engine':<8} {'version':>7}  {'at':>9}  before, token"
        )
    for sequence in sequences[:limit]:
        facts, *rest = token_text.lines(sequence, decode)
        lines += ["", times_text(of_sequences, sequence_key(sequence)) + facts, *rest]
    return "\n".join([head, *(lines or ["nothing is kept of that"])])


def _token(token: Token, decode: Decode, times: str) -> str:
    from rltop.tui.tokens import token_text
    from rltop.tui.tokens.decode import printable

    before, after = token_text.context(token.before, decode), token_text.context(token.after, decode)
    engine, version = printable(token.engine) or "-", "-" if token.version < 0 else str(token.version)
    return (
        f"{token.diff:>9.4f} {token.rollout:>9.4f} {token.trainer:>9.4f}  {engine:<8} {version:>7}  "
        f"{f'{token.position}/{token.tokens}':>9}  {times}{before[-40:]}>>{decode(token.id)}<<{after[:24]}"
    )


COMMANDS = (worst,)
