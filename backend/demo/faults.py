"""Faults that a demo run can be started with: real ones, for seeing what they look like.

A table: the command's help is made of it, and its fields are what engines and trainer act on. ``Rollouts.update`` and
``Rollouts._prompt`` in ``engine.py`` are where an engine goes wrong, ``trainer.granted`` where the trainer does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong; the defaults are a healthy run.

    Attributes:
        name: what the command line calls it; empty of the healthy run.
        help: what happens, in a line.
        engine: the one engine it is on; empty where it is not on one alone.
        loads: an update brings the new weights.
        labels: an update that brings no weights moves the engine's version nevertheless, or not.
        clears: an update forgets the KV that older weights computed.
        apart: of the samples of a group, those that share no prefix with anything, so that there are misses.
        burst: steps whose tickets go out at once.
    """

    name: str = ""
    help: str = ""
    engine: str = ""
    loads: bool = True
    labels: bool = True
    clears: bool = True
    apart: int = 0
    burst: int = 1

    def on(self, engine: str) -> Fault:
        """What ``engine`` has of it."""
        return self if self.engine in ("", engine) else HEALTHY


HEALTHY = Fault()

FAULTS: tuple[Fault, ...] = (
    Fault(
        name="stale-replica",
        help="e1 gets no weight updates, and its version says so",
        engine="e1",
        loads=False,
        labels=False,
    ),
    Fault(
        name="lying-replica",
        help="e1 gets no weight updates, yet its version advances",
        engine="e1",
        loads=False,
    ),
    Fault(
        name="stale-prefix",
        help="updates leave the prefix cache, so prompts hit KV of older weights (one in four has a salt, and misses)",
        clears=False,
        apart=2,
    ),
    Fault(
        name="lag",
        help="tickets go out for eight steps at once, so what is trained on gets ever older until the next",
        burst=8,
    ),
)

BY_NAME = {fault.name: fault for fault in (HEALTHY, *FAULTS)}
