"""Keys and palette entries, made from the table of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, cast

from textual.binding import Binding, BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider

from rltop.tui.model.key_commands import COMMANDS, NEEDS_CONTROL


class CommandTarget(Protocol):
    """An application that does commands of the table."""

    control: bool

    def command(self, command_id: str) -> None:
        """Do it, or say why not."""

    def go_to(self, step: int) -> None:
        """Read everything at that step."""


def key_bindings() -> list[BindingType]:
    """Keys of all commands. Leaving works everywhere, also in front of a dialog."""
    bindings: list[BindingType] = [Binding("ctrl+c", "command('quit')", show=False, priority=True)]
    for command in COMMANDS:
        keys = ",".join(command.keys)
        bindings.append(Binding(keys, f"command('{command.id}')", command.title, id=command.id, show=False))
    return bindings


class CommandPalette(Provider):
    """The palette's entries."""

    async def discover(self) -> Hits:
        """All commands, before anything was typed."""
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
        for command in COMMANDS:
            off = command.needs_control and not app.control
            text = f"{command.shown}   {NEEDS_CONTROL if off else command.help}"
            yield command.title, partial(app.command, command.id), text
