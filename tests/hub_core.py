"""The hub's pure core with a clock in the test's hand."""

from __future__ import annotations

import itertools
from typing import TypeVar

from rltop.backend import view
from rltop.backend.state import Effect, Reply, Send, State
from rltop.collectors import wire
from tests.hub_messages import Source, engine_state

T = TypeVar("T", bound=wire.Body)


class Hub:
    """Messages go in as frames; what the core says comes out as effects and in ``picture``."""

    def __init__(self, epoch: str = "hub-1") -> None:
        self.now = 1000.0
        ids = itertools.count()
        self.state = State("run", epoch, self.now, lambda: f"{epoch}-c{next(ids)}")
        self.sources: dict[str, Source] = {}
        self.frames: list[view.Frame] = []

    @property
    def picture(self) -> view.Snapshot:
        return self.state.snapshot

    @property
    def steps(self) -> dict[int, view.Step]:
        return self.picture.steps

    @property
    def counters(self) -> dict[str, int]:
        return self.picture.counters

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.picture.events]

    @property
    def change(self) -> view.Change:
        (only,) = self.picture.changes.values()
        return only

    def source(self, name: str) -> Source:
        return self.sources.setdefault(name, Source(name))

    def send(self, source: str, body: wire.DataBody, arrays: wire.Arrays | None = None) -> list[Effect]:
        return self.state.data(self.source(source).frames(body, arrays, sent=self.now), self.now)

    def engine(self, name: str, **changes: object) -> list[Effect]:
        return self.send(name, engine_state(name, **changes))

    def say(self, source: str, message: wire.Body) -> list[Effect]:
        return self.state.control(self.source(source).identity, wire.encode(message), self.now)

    def ask(self, question: view.Question) -> tuple[view.Answer, list[Send]]:
        effects = self.state.ask(b"viewer", view.encode(question), self.now)
        (answer,) = [effect.answer for effect in effects if isinstance(effect, Reply)]
        return answer, [effect for effect in effects if isinstance(effect, Send)]

    def later(self, seconds: float = 0.0) -> list[Effect]:
        self.now += seconds
        effects = self.state.tick(self.now)
        if frame := self.state.frame(self.now):
            self.frames.append(frame)
        return effects


def sent(effects: list[Effect], kind: type[T]) -> list[T]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]
