"""Key bindings and palette entries, made from the table of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

from textual.binding import Binding, BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider

from rltop.tui.model.key_commands import NEEDS_CONTROL, KeyCommand


class CommandTarget(Protocol):
    """An application that executes commands."""

    control: bool
    commands: Sequence[KeyCommand]

    def command(self, command_id: str) -> None:
        """Execute a command, or show why it is unavailable."""

    def go_to(self, step: int) -> None:
        """Show every view at that step."""


def key_bindings(commands: Sequence[KeyCommand]) -> list[BindingType]:
    """Bindings of all commands. ctrl+c works everywhere, also in front of a dialog."""
    bindings: list[BindingType] = [Binding("ctrl+c", "command('quit')", show=False, priority=True)]
    for command in commands:
        keys = ",".join(command.keys)
        bindings.append(Binding(keys, f"command('{command.id}')", command.title, id=command.id, show=False))
    return bindings


class CommandPalette(Provider):
    """The palette's entries."""

    async def discover(self) -> Hits:
        """All commands, before anything is typed."""
        for title, call, text in self._entries():
            yield DiscoveryHit(title, call, help=text)

    async def search(self, query: str) -> Hits:
        """Commands whose title or help matches; a number is a step."""
        if query.strip().isdecimal():
            step = int(query)
            yield Hit(1.0, f"Go to step {step}", partial(cast("CommandTarget", self.app).go_to, step))
        matcher = self.matcher(query)
        for title, call, text in self._entries():
            if score := matcher.match(f"{title} {text}"):
                yield Hit(score, matcher.highlight(title), call, help=text)

    def _entries(self) -> Iterator[tuple[str, Callable[[], None], str]]:
        app = cast("CommandTarget", self.app)
        for command in app.commands:
            off = command.needs_control and not app.control
            text = f"{command.shown}   {NEEDS_CONTROL if off else command.help}"
            yield command.title, partial(app.command, command.id), text
