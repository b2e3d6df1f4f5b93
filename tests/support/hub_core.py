"""A hub's pure state with a simulated clock."""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

from rltop.backend import api
from rltop.backend.commands.audit import AuditLine
from rltop.backend.hub.outputs import AnswerFromStore, Audit, Effect, Reply, SendControl
from rltop.backend.hub.state import HubState
from rltop.backend.ingest.sources import is_trainer
from rltop.backend.steps.steps import GRACE_S
from rltop.backend.store.aggregates import StoredAggregates
from rltop.collectors.contract import wire
from tests.support.hub_messages import Source, engine_state

T = TypeVar("T", bound=wire.Body)

TICK_S = 0.5


class Hub:
    """Passes messages to a ``HubState`` as frames; output comes as effects and in ``picture``, its snapshot."""

    def __init__(
        self,
        epoch: str = "hub-1",
        past: api.Snapshot | None = None,
        stored: StoredAggregates | None = None,
        now: float = 1000.0,
    ) -> None:
        self.now = now
        ids = itertools.count()
        self.state = HubState("run", epoch, self.now, lambda: f"{epoch}-c{next(ids)}", past=past, stored=stored)
        self.sources: dict[str, Source] = {}
        self.lines: list[AuditLine] = []
        self.frames: list[api.Frame] = []

    @classmethod
    def of(cls, state: HubState, now: float) -> Hub:
        """Wrap an existing state."""
        hub = cls()
        hub.state, hub.now = state, now
        return hub

    @property
    def picture(self) -> api.Snapshot:
        return self.state.snapshot

    @property
    def steps(self) -> dict[int, api.Step]:
        return self.picture.steps

    @property
    def counters(self) -> dict[str, int]:
        return self.picture.counters

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.picture.events]

    @property
    def change(self) -> api.Change:
        (only,) = self.picture.changes.values()
        return only

    def source(self, name: str) -> Source:
        return self.sources.setdefault(name, Source(name))

    def send(self, source: str, body: wire.DataBody, arrays: wire.Arrays | None = None) -> list[Effect]:
        return self._logged(self.state.data(self.source(source).frames(body, arrays, sent=self.now), self.now))

    def engine(self, name: str, **changes: object) -> list[Effect]:
        return self.send(name, engine_state(name, **changes))

    def say(self, source: str, message: wire.Body) -> list[Effect]:
        return self._logged(self.state.control(self.source(source).identity, wire.encode(message), self.now))

    def ask(self, question: api.Question) -> tuple[api.Answer, list[SendControl]]:
        effects = self._logged(self.state.ask(b"viewer", api.encode(question), self.now))
        (answer,) = [effect.answer for effect in effects if isinstance(effect, Reply | AnswerFromStore)]
        return answer, [effect for effect in effects if isinstance(effect, SendControl)]

    def undelivered(self, order: SendControl) -> None:
        self._logged(self.state.undelivered(order.to, wire.encode(order.message), self.now))

    def restore(self, lines: list[AuditLine], bad: int = 0) -> None:
        self._logged(self.state.restore(lines, bad, self.now))

    def _logged(self, effects: list[Effect]) -> list[Effect]:
        """Collect the lines of the audit log, which come before all other effects."""
        lines = [effect.line for effect in effects if isinstance(effect, Audit)]
        assert all(isinstance(effect, Audit) for effect in effects[: len(lines)])
        self.lines += lines
        return effects

    def later(self, seconds: float = 0.0) -> list[Effect]:
        """Advance the clock, with the ticks of a live hub in between."""
        effects: list[Effect] = []
        begin, ticks = self.now, max(math.ceil(seconds / TICK_S), 1)
        for tick in range(1, ticks + 1):
            self.now = begin + seconds * tick / ticks
            effects += self._logged(self.state.tick(self.now))
            while self.state.unfinished:
                effects += self._logged(self.state.tick(self.now))
            self.state.diagnose(self.now)
        if frame := self.state.next_frame(self.now):
            self.frames.append(frame)
        return effects

    def settle(self) -> None:
        """Advance the clock until missing rollouts are no longer waited for, all engines having been heard."""
        self.later(GRACE_S + 0.1)
        for name in [name for name in self.sources if not is_trainer(name)]:
            self.send(name, wire.Passed())
        self.later()


def sent(effects: list[Effect], kind: type[T]) -> list[T]:
    return [
        effect.message for effect in effects if isinstance(effect, SendControl) and isinstance(effect.message, kind)
    ]
