"""Commands on a GPU engine with requests in flight and killed hubs: a table for the docs.

``RLTOP_BENCH=bench.gpu_life bench/gpu_suite.sh ...`` runs it, on the device and model of
``tests/support/live_engine.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.commands import audit
from rltop.collectors.contract.rundir import RunDir
from tests.support.live_engine import DEVICE, ENVIRONMENT, LiveEngine

ENGINE, FLAG = "e0", "prefix_caching"
IN_FLIGHT, TOKENS = 64, 256
DEADLINE_S = 60.0


class Bench:
    """One engine, its hub and a client."""

    def __init__(self, rundir: RunDir) -> None:
        self.rundir = rundir
        self.engine = LiveEngine()
        self.client = Client(rundir)
        self.batches = 0
        self.next_hub()

    def next_hub(self) -> None:
        before = self.client.view.epoch if self.client.view else ""
        self.hub = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(self.rundir.path)])
        self.wait_for(lambda v: v.epoch != before and ENGINE in v.engines and v.engines[ENGINE].health == "live")

    def kill_hub(self) -> None:
        self.hub.kill()
        self.hub.wait(DEADLINE_S)

    def wait_for(self, condition: object) -> api.Snapshot:
        assert callable(condition)
        assert self.client.wait(lambda c: c.state == "live" and bool(condition(c.view)), DEADLINE_S)
        assert self.client.view is not None
        return self.client.view

    def closed(self, command: str) -> api.Change:
        key = f"{command}@{ENGINE}"
        return self.wait_for(lambda v: key in v.changes and v.changes[key].state in api.TERMINAL).changes[key]

    def batch(self) -> dict[str, object]:
        self.batches += 1
        prompt = [3] + [5 + i for i in range(60)]
        made = {f"b{self.batches}-{i}": i for i in range(IN_FLIGHT)}
        running = {name: self.engine.generate(name, [*prompt, 7 + i], TOKENS, seed=i) for name, i in made.items()}
        self.engine.wait_running(list(running), 40)
        return dict(running)

    def check_complete(self, running: dict[str, object]) -> str:
        sizes = {len(work.result(DEADLINE_S).outputs[0].token_ids) for work in running.values()}  # type: ignore[attr-defined]
        assert sizes == {TOKENS}, sizes
        return f"all {len(running)} complete"


def row(label: str, change: api.Change, remark: str) -> None:
    spent = f"{change.milliseconds:.1f}" if change.milliseconds is not None else "-"
    cells = (label, change.state, change.old, change.new, spent, change.in_flight, change.lost_requests, remark)
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    path = tempfile.mkdtemp(prefix="rl", dir="/tmp")
    os.environ |= {**ENVIRONMENT, "RLTOP_HUB": path, "RLTOP_ENGINE": ENGINE}
    bench = Bench(RunDir(Path(path)))
    facts = bench.wait_for(lambda v: v.engines[ENGINE].fingerprint).engines[ENGINE].fingerprint
    print(DEVICE, {name: facts.get(name) for name in ("vllm_version", "model_runner", "device")})
    print("| command | state | old | new | ms | in flight | lost | |\n|---|---|---|---|---|---|---|---|")

    running = bench.batch()
    (paused,) = bench.client.command(api.AskAct(api.new_id(), "pause", revert_s=4.0, who="bench"))
    seen = {name: len(bench.engine.progress[name]) for name in running}
    time.sleep(1.0)
    late = sum(len(bench.engine.progress[name]) - count for name, count in seen.items())
    bench.kill_hub()
    row("pause, hub killed", paused, f"{late} tokens arrived in the second after; {bench.check_complete(running)}")
    bench.next_hub()
    row("its guard timer", bench.closed(f"{paused.command}/revert"), "learned by the next hub")

    running = bench.batch()
    (off,) = bench.client.command(api.AskSet(api.new_id(), FLAG, "off", revert_s=2.0, who="bench"))
    bench.kill_hub()
    row("prefix_caching off --for 2s, hub killed", off, bench.check_complete(running))
    while time.time() < (off.reverts_at or 0.0) + 2.0:
        time.sleep(0.1)
    bench.next_hub()
    row("its timer", bench.closed(f"{off.command}/revert"), "learned by the next hub")

    running = bench.batch()
    (flushed,) = bench.client.command(api.AskAct(api.new_id(), "flush_cache"))
    row("flush", flushed, f"{flushed.reason}; {bench.check_complete(running)}")
    running = bench.batch()
    (off,) = bench.client.command(api.AskSet(api.new_id(), FLAG, "off"))
    (undone,) = bench.client.command(api.AskUndo(api.new_id(), off.command))
    row("undo", undone, bench.check_complete(running))
    lines, bad = audit.read(bench.rundir.audit)
    print(f"audit: {len(lines)} lines, {bad} unreadable: " + ", ".join(f"{line.verb} {line.event}" for line in lines))
    health = bench.wait_for(lambda v: v.engines[ENGINE].counts).engines[ENGINE]
    print("faults:", health.faults or "none", "missing:", [n for n in facts if n.startswith("missing")] or "none")
    bench.client.close()
    bench.engine.close()
    bench.kill_hub()


if __name__ == "__main__":
    main()
