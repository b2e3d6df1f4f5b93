"""The suite of ``tests/live/test_engine_live.py`` without pytest: a table of every switch for the docs.

``bench/gpu_suite.sh`` prepares a machine for it. Device, model and eager mode are those of
``tests/support/live_engine.py``. With ``--size`` the engine spans two ranks (``tests/support/parallel.py``); a refused
switch is a row of the table with its reason. ``--out DIR`` keeps the rows in ``DIR/rows.json``, written after every
part; ``bench/gpu_table.py`` joins them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import DEVICE, EAGER, ENVIRONMENT, MODEL, LiveEngine
from tests.support.parallel import SIZES, kill_mid_switch, switch_together, update_and_compare
from tests.support.switchboard import (
    ENGINE,
    TIMES,
    Row,
    Walk,
    arrived,
    by_epoch,
    check_equal,
    fresh,
    prompt,
    switch,
    table,
)

FACTS = ("vllm_version", "model_runner", "attention_backend", "device", "sampling_path", "dtype", "parallel")
IN_FLIGHT = 40
RANKS = (f"{ENGINE}/dp0", f"{ENGINE}/dp1")


class Suite:
    """An engine, its hub, and the rows so far."""

    def __init__(self, engine: LiveEngine, hub: HubStandIn, size: str, out: Path | None, times: int) -> None:
        self.engine, self.hub, self.size, self.out, self.times = engine, hub, size, out, times
        self.began = time.monotonic()
        self.source = RANKS[0] if size == "dp2" else ENGINE
        wait_for(lambda: [s for s in hub.states() if s.engine == self.source], "the engine's first state")
        self.state = next(s for s in hub.states() if s.engine == self.source)
        self.rows: list[dict[str, Any]] = []
        self.refuses: str | None = None
        """Reason why the strict form of async_scheduling is refused; empty if it is not; None: not tried yet."""

    def head(self) -> str:
        """The engine's main facts in one line."""
        facts = [self.state.fingerprint[name] for name in FACTS if name in self.state.fingerprint]
        return f"{self.size}, {DEVICE}, {'eager' if EAGER else 'compiled'}: {', '.join(facts)}"

    def runner(self) -> str:
        """The model runner, ``V1`` or ``V2``, and whether it is compiled."""
        return f"{self.state.fingerprint.get('model_runner', '?')} {'eager' if EAGER else 'compiled'}"

    def add(self, part: str, switched: str, outcome: str, says: str = "", **figures: Any) -> None:
        """Add a row to the table and rewrite its file."""
        row = {"size": self.size, "runner": self.runner(), "part": part, "switch": switched, "outcome": outcome}
        self.rows.append(row | {"says": says, "at_s": round(time.monotonic() - self.began, 1)} | figures)
        if self.out is not None:
            (self.out / "rows.json").write_text(json.dumps({"head": self.head(), "rows": self.rows}, indent=1) + "\n")

    def add_rows(self, part: str, rows: Iterable[Row]) -> None:
        """Add the rows of a walk."""
        for row in rows:
            self.add(
                part, f"{row.flag} {row.value}", "applied", row.signature, times=len(row.milliseconds), lost=row.lost,
                ms=round(statistics.median(row.milliseconds), 2), ms_max=round(max(row.milliseconds), 2),
                in_flight=[min(row.in_flight), max(row.in_flight)],
            )  # fmt: skip

    def switchable(self) -> tuple[str, ...]:
        """The flags that this engine can switch."""
        return tuple(name for name, flag in self.state.flags.items() if flag.switchable)

    def strict_refused(self) -> str:
        """Reason why this engine refuses the strict form; empty if it accepts it. Tried once, on the idle engine."""
        if self.refuses is None:
            if "async_scheduling" not in self.switchable():
                self.refuses = self.state.flags["async_scheduling"].reason
                return self.refuses
            self.hub.command(ENGINE, "async_scheduling", "off", "may-be-strict", strict=True)
            update = self.hub.closed("may-be-strict")
            self.refuses = update.reason if update.state == "refused" else ""
            if not self.refuses:
                switch(self.hub, "async_scheduling", "on", "may-be-strict")
        return self.refuses


def walk(suite: Suite) -> str:
    """Every switchable flag in random order, in its plain form."""
    for name, flag in suite.state.flags.items():
        if not flag.switchable:
            suite.add("walk", name, "refused", flag.reason)
    rows = Walk(suite.engine, suite.hub, suite.switchable(), strict=False, times=suite.times).run()
    suite.add_rows("walk", rows)
    return table(rows)


def strict(suite: Suite) -> str:
    """All forms of asynchronous scheduling in random order."""
    if refused := suite.strict_refused():
        suite.add("strict", "async_scheduling off (strict)", "refused", refused)
        return f"strict: refused: {refused}"
    switch(suite.hub, "logprobs_mode", "processed", "strict")
    rows = Walk(suite.engine, suite.hub, ("async_scheduling",), times=suite.times).run()
    switch(suite.hub, "logprobs_mode", "raw", "strict")
    suite.add_rows("strict", rows)
    return table(rows)


def seeded(suite: Suite) -> str:
    """Both forms of off under seeded traffic: their effect on the tokens."""
    engine, hub = suite.engine, suite.hub
    plans: list[tuple[str, tuple[tuple[str, bool], ...]]] = [("none", ())]
    if "async_scheduling" in suite.switchable():
        plans.append(("depth", (("off", False), ("on", False))))
        if not suite.strict_refused():
            plans.append(("strict", (("off", True), ("on", False))))
    lines = []
    tokens: dict[str, list[list[int]]] = {}
    switch(hub, "logprobs_mode", "processed", "seeded")
    for tag, plan in plans:
        names = [f"{tag}{i}" for i in range(IN_FLIGHT)]
        running = [engine.generate(name, prompt(i), 200, seed=i) for i, name in enumerate(names)]
        engine.wait_running(names, 20)
        for number, (value, full) in enumerate(plan):
            switch(hub, "async_scheduling", value, f"{tag}{number}", strict=full)
            engine.wait_running(names, 60 + 40 * number)
        outputs = [work.result(120) for work in running]
        for name, output in zip(names, outputs, strict=True):
            assert check_equal(hub, name, output).size == 200
        tokens[tag] = [list(output.outputs[0].token_ids) for output in outputs]
        gap = np.concatenate(list(by_epoch([arrived(hub, name) for name in names], 1.0).values())).mean() - 1
        same = sum(ours == plain for ours, plain in zip(tokens[tag], tokens["none"], strict=True))
        lines.append(f"seeded, {tag}: {same} of {IN_FLIGHT} as without a switch, mean ratio - 1 = {gap:+.5f}")
        suite.add("seeded", f"async_scheduling, {tag}", "whole", lines[-1], in_flight=[IN_FLIGHT, IN_FLIGHT], lost=0)
    switch(hub, "logprobs_mode", "raw", "seeded")
    return "\n".join(lines)


def torn(suite: Suite) -> str:
    """A failed weight update is reported and blocks nothing."""
    if suite.size == "pp2":  # vLLM would take the last stage's answer for a step's output, and end
        suite.add("torn", "an update that fails", "not run", "ends vLLM's engine of several stages")
        return "torn: not run"
    engine, hub = suite.engine, suite.hub
    try:
        with tempfile.TemporaryDirectory() as empty:
            engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": empty}))
    except Exception as error:  # noqa: BLE001 - any error that vLLM raises
        reported = fresh(hub).fingerprint["weights torn"]
        switch(hub, "prefix_caching", "off", "torn")
        switch(hub, "prefix_caching", "on", "torn")
        if suite.size == "tp2":
            return _out_of_step(suite, reported)
        engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(MODEL)}))
        assert "weights torn" not in fresh(hub).fingerprint
        assert check_equal(hub, "mended", engine.generate("mended", prompt(1), 20, seed=1).result(60)).size == 20
        suite.add("torn", "an update that fails", "shown", reported)
        return f"{type(error).__name__}; reported: {reported}"
    raise AssertionError("an update from nowhere succeeded")


def _out_of_step(suite: Suite, reported: str) -> str:
    """After a failed call vLLM keeps the other rank's answer in its queue, so switches inside the ranks are refused."""
    suite.hub.command(ENGINE, "logprobs_mode", "processed", "out-of-step")
    update = suite.hub.closed("out-of-step")
    suite.add("torn", "logprobs_mode processed, after an update that failed", update.state, update.reason)
    with contextlib.suppress(Exception):  # it is done on all ranks; what vLLM raises is an earlier answer
        engine = suite.engine
        engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(MODEL)}))
    output = suite.engine.generate("after", prompt(1), 20, seed=1).result(60)
    assert check_equal(suite.hub, "after", output).size == 20
    assert (update.state, "a call failed on a rank" in update.reason) == ("refused", True), update
    return f"reported: {reported}; then {update.state}: {update.reason}"


def digests(suite: Suite) -> str:
    """New weights under load: all ranks together have the trainer's, and a trainer with others is contradicted."""
    with tempfile.TemporaryDirectory() as folder:
        right, wrong = update_and_compare(suite.engine, suite.hub, ENGINE, Path(folder) / "weights")
    for expected, found in (("agree", right), ("not_the_trainer", wrong)):
        says = "; ".join([found.text, *found.notes])
        suite.add("digests", f"weights, expected: {expected}", found.verdict, says)
        assert found.verdict == expected, found
    return f"digests: {right.verdict}: {'; '.join(right.notes)}\n  of one that was changed: {wrong.text}"


def together(suite: Suite) -> str:
    """Two data-parallel ranks of one name, every flag switched on both under load."""
    wait_for(lambda: all(suite.hub.knows(rank) for rank in RANKS), "both ranks register")
    updates = switch_together(suite.engine, suite.hub, RANKS)
    for update in updates:
        suite.add(
            "together", f"{update.flag} {update.new} {update.detail}".rstrip(), update.state, update.engine,
            times=1, ms=update.milliseconds, in_flight=[update.in_flight] * 2, lost=update.lost_requests,
        )  # fmt: skip
    served = sorted({state.engine for state in suite.hub.states() if state.generated_tokens})
    flight = [update.in_flight or 0 for update in updates]
    return f"together: {len(updates)} switches, {min(flight)} to {max(flight)} in flight, ranks that served: {served}"


def killed(suite: Suite) -> str:
    """One of the ranks is killed in the middle of a switch of both. The last part: it ends the engine."""
    found = kill_mid_switch(suite.engine, suite.hub.rundir, RANKS)
    for rank, state in found.states.items():
        suite.add("killed", f"prefix_caching off, {rank}", state, found.reasons[rank])
    events = ", ".join(found.events)
    suite.add("killed", "audit", "read", f"{events}; command over {found.seconds:.1f} s after the kill")
    assert found.states == {RANKS[0]: "applied", RANKS[1]: "timed_out"}, found
    assert not found.bad_lines
    assert "all half_switched" in found.events
    return f"killed: {found}"


Part = Callable[[Suite], str]

PARTS: tuple[Part, ...] = (walk, strict, seeded, digests, torn)
OF_RANKS: tuple[Part, ...] = (together,)
"""Of data-parallel ranks, each an engine of its own; ``killed`` follows with a hub of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=[*SIZES], default="one")
    parser.add_argument("--skip", nargs="*", default=[], choices=[p.__name__ for p in (*PARTS, *OF_RANKS, killed)])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--times", type=int, default=TIMES, help="switches of each flag in a walk")
    parser.add_argument("--launch", type=json.loads, default={}, help="further launch arguments, as JSON")
    given = parser.parse_args()
    failed = 0
    with HubStandIn() as hub:
        os.environ |= ENVIRONMENT | {"RLTOP_HUB": str(hub.rundir.path), "RLTOP_ENGINE": ENGINE}
        engine = LiveEngine(**SIZES[given.size], **given.launch)
        try:
            failed = run(Suite(engine, hub, given.size, given.out, given.times), set(given.skip))
        finally:
            engine.close()
    print("FAILED" if failed else "passed", flush=True)
    return failed


def run(suite: Suite, skip: set[str]) -> int:
    """All parts of the suite's size; how many failed."""
    print(f"\n{suite.head()}", flush=True)
    for name, flag in suite.state.flags.items():
        print(f"  {name}: {flag.value}{'' if flag.switchable else ', fixed: ' + flag.reason}", flush=True)
    parts = OF_RANKS if suite.size == "dp2" else PARTS
    failed = sum(not _passed(part, suite) for part in parts if part.__name__ not in skip)
    health = suite.hub.health()[-1]
    dropped = sum(count.dropped for name, count in health.counts.items() if name == "rollouts")
    says = f"faults {health.faults}, rollouts dropped {dropped}"
    suite.add("health", "all", "faults" if health.faults else "none", says)
    print(says, flush=True)
    if suite.size == "dp2" and killed.__name__ not in skip:
        suite.hub.close()
        failed += not _passed(killed, suite)
    return failed + bool(health.faults)


def _passed(part: Part, suite: Suite) -> bool:
    try:
        print(part(suite), flush=True)
    except Exception as error:  # noqa: BLE001 - the other parts still run
        traceback.print_exc()
        suite.add(part.__name__, "", "FAILED", f"{type(error).__name__}: {error}"[:2000])
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
