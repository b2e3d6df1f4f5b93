"""``rltop worst``: the tokens and sequences of a step with the largest gap, or a random sample, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import OneOf, as_json_option, client_or_replay, no_engine, run_argument

if TYPE_CHECKING:
    from rltop.backend.api.samples import Samples, Token
    from rltop.tui.tokens.decode import Decode

KINDS = ("abs_diff", "k3", "worst", "sample")
"""As in ``api.AskSamples``."""

MAX_SAMPLES = 32
"""A hub keeps at most this many samples of a kind, so no more can be requested."""


@click.command(short_help="Print the tokens and sequences with the largest gap.")
@run_argument()
@click.option("--step", type=click.IntRange(0), help="Training step (default: the last).")
@click.option("--kind", type=OneOf(KINDS), default=KINDS[0], show_default=True,
              help="Tokens by |d| or by k3; whole sequences: worst by mean k3, or a random sample.")  # fmt: skip
@click.option("--engine", metavar="ID", help="Only tokens that this engine sampled.")
@click.option("--limit", type=click.IntRange(1, MAX_SAMPLES), default=8, show_default=True, help="How many.")
@as_json_option
def worst(run: str | None, step: int | None, kind: str, engine: str | None, limit: int, as_json: bool) -> None:
    """Print the tokens and sequences of RUN with the largest gap. Duplicates are merged and counted: "7x".

    d is the trainer logprob minus the rollout logprob, in nats. Arrows after a token show its size: one from 0.05 nats,
    two from 0.25, three from 1; up if the trainer assigns the token more probability than the engine, down if less.
    RUN may be live or over; FILE is one written by `rltop record`.
    """
    from rltop.backend import api
    from rltop.backend.api import samples
    from rltop.backend.client.live import CommandError, HubUnreachable
    from rltop.tui.tokens.decode import decoder

    try:
        with client_or_replay(run) as source:
            engines = source.snapshot().engines
            if engine is not None and engine not in engines:
                raise no_engine(engine, engines)
            found = source.samples(api.AskSamples(api.new_id(), step, kind, engine, limit if as_json else MAX_SAMPLES))
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(samples.as_json(found))
    else:
        echo(text(found, decoder(list(engines.values())), limit))


def text(found: Samples, decode: Decode, limit: int = MAX_SAMPLES) -> str:
    """The samples as lines of printable text."""
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
    return "\n".join([head, *(lines or ["no such samples are kept"])])


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
