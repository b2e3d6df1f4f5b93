"""Decides when a rollout is old, so that no later step will train on it. Pure.

Steps and rollouts reach the hub by different sockets: at a hub that was busy or has just started, many rollouts may
arrive before the first of many steps is done. A rollout is therefore old once ``UNUSED_STEPS`` steps have trained on
*later* rollouts of the same engine process, whose rollouts arrive in order. Arrival times count only for a process that
steps no longer train on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rltop.backend.join.records import Record

UNUSED_STEPS = 8
"""Steps after which a rollout that none trained on counts as unused. Trainers drop older ones (default limits of lag:
TRL 3, SkyRL 4, prime-rl 8)."""

_Life = tuple[str, str]


@dataclass(slots=True)
class _Process:
    """One engine process: its rollouts that are not old yet, and the newest one that each recent step trained on."""

    young: deque[Record] = field(default_factory=deque)
    reached: deque[int] = field(default_factory=lambda: deque(maxlen=UNUSED_STEPS))
    idle_steps: int = 0


class RolloutAgeing:
    """Tracks the rollouts of all engines until they are old."""

    def __init__(self) -> None:
        self._processes: dict[_Life, _Process] = {}
        self._arrived = 0
        self._ends: deque[int] = deque(maxlen=UNUSED_STEPS + 1)  # how many had arrived by the end of each step

    def add(self, record: Record) -> None:
        """Add a rollout that has arrived."""
        record.arrival = self._arrived
        self._arrived += 1
        self._processes.setdefault((record.engine, record.life), _Process()).young.append(record)

    def remove(self, record: Record) -> bool:
        """Remove the oldest rollout. Returns whether it was not old yet."""
        process = self._processes.get((record.engine, record.life))
        if process is None or not process.young or process.young[0] is not record:
            return False
        process.young.popleft()
        return True

    def step_done(self, trained: Iterable[Record], *, in_turn: bool) -> Iterator[Record]:
        """Close a step that trained on ``trained``. Yields the rollouts that are old now.

        ``in_turn``: no rollouts have arrived that are much later than those the step could train on.
        """
        newest: dict[_Life, int] = {}
        for record in trained:
            life = record.engine, record.life
            newest[life] = max(newest.get(life, 0), record.arrival)
        if in_turn:
            self._ends.append(self._arrived)
        for life, process in list(self._processes.items()):
            if life in newest:
                process.reached.append(newest[life])
                process.idle_steps = 0
            elif in_turn:
                process.idle_steps += 1
            yield from self._aged(process)
            if not process.young and process.idle_steps >= UNUSED_STEPS:
                del self._processes[life]

    def _aged(self, process: _Process) -> Iterator[Record]:
        if process.idle_steps >= UNUSED_STEPS:
            limit = self._ends[0] if len(self._ends) > UNUSED_STEPS else 0
        else:
            limit = min(process.reached) if len(process.reached) == UNUSED_STEPS else 0
        while process.young and process.young[0].arrival < limit:
            yield process.young.popleft()
