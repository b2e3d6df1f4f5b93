"""The diagnoses of martingale, the nearest peer, on recorded runs, next to those of rltop.

    pip install --no-deps --target DIR martingale
    .venv/bin/python -m bench.diagnosis_peers TAPES --peers DIR [--part tune|score|all]

martingale gets the data that its own adapters would pass: every rollout with its logprobs and versions, the trainer's
logprobs of every row, and also the version-matched ones under their own version, so that there are tokens of lag 0. The
sampling parameters are those that the engines report. Its results are its alarms and its doctor's lines at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.diagnosis import HEALTHY_RUN, score
from bench.fault_runs import RUNS
from rltop.backend.demo.faults import BY_NAME as FAULTS
from rltop.collectors.contract import wire
from tests.support.cases import DATA
from tests.support.tapes import calls

CAUSE_LINES = {
    "are scored >2 nats lower": "other weights or input",
    "bf16-vs-fp32 tail effect": "bf16 tail",
    "disagree on ordinary tokens": "dtype, sampler settings or stale server",
    "Staleness dominates": "staleness",
    "lag-0 tokens not read as a floor": "temperature not applied alike",
}  # fmt: skip
"""Part of a sentence of its doctor -> its conclusion."""


class PeerRun:
    """A run passed to martingale."""

    def __init__(self, workspace: str) -> None:
        from martingale.integrations._trl_callback import MartingaleMonitor
        from martingale.record import Recorder, SamplerConfig

        self.recorder = Recorder(workspace)
        self.stats: Counter[str] = Counter()
        self._sampler = SamplerConfig
        self._declared: dict[str, Any] = {}
        self._revisions: dict[tuple[int, str], str] = {}
        self._records: dict[tuple[Any, ...], list[str]] = {}
        self._monitor = MartingaleMonitor(self, halt_on_error=False)
        self._number = 0
        self.alarms: list[tuple[int, str]] = []

    def _revision(self, version: int, source: str) -> str:
        if (version, source) not in self._revisions:
            mode = self._declared.get("logprobs_mode") if source == "engine_sampling" else None
            applied = None if source == "engine_sampling" and mode is None else mode != "raw_logprobs"
            sampler = self._sampler(
                temperature=self._declared.get("temperature"), top_p=self._declared.get("top_p"), top_k=None,
                max_tokens=None, logprobs_mode=mode, dtype=self._declared.get("dtype"), engine="vllm",
                engine_version=None, tensor_parallel=1, seed_policy=None, logprobs_source=source,
                temperature_applied=applied,
            )  # fmt: skip
            digest = hashlib.sha256(f"weights {version}".encode()).hexdigest()
            made = self.recorder.publish_revision(digest, "0" * 64, sampler, step=version)
            self._revisions[version, source] = made.digest
        return self._revisions[version, source]

    def state(self, body: wire.EngineState) -> None:
        """Keep the sampling parameters that an engine reports."""
        self._declared |= {
            name: body.fingerprint[name] for name in ("logprobs_mode", "dtype") if name in body.fingerprint
        }

    def rollouts(self, body: wire.Rollouts, arrays: wire.Arrays) -> None:
        """Record finished requests of an engine."""
        prompt = token = 0
        for rollout in body.rollouts:
            self._declared |= {name: rollout.sampling.get(name, 1.0) for name in ("temperature", "top_p")}
            ids = tuple(map(int, arrays["prompt_ids"][prompt : prompt + rollout.prompt_size]))
            tokens = tuple(map(int, arrays["token_ids"][token : token + rollout.size]))
            logprobs = arrays["logprobs"][token : token + rollout.size]
            prompt, token = prompt + rollout.prompt_size, token + rollout.size
            ends = [*(run.start for run in rollout.runs[1:]), rollout.size]
            versions = [run.version for run, end in zip(rollout.runs, ends, strict=True) for _ in range(run.start, end)]
            if not tokens or None in versions or not np.isfinite(logprobs).all():
                continue
            actor = int(body.engine.removeprefix("e"))
            self._number += 1
            with self.recorder.sequence(actor, f"r{self._number}", list(ids)) as sequence:
                for version, own, logprob in zip(versions, tokens, logprobs, strict=True):
                    sequence.token(self._revision(int(version or 0), "engine_sampling"), own, float(logprob))
            self._records.setdefault((ids, tokens), []).append(sequence.record.digest)
            self.stats["sequences"] += 1

    def rows(self, body: wire.Sequences, arrays: wire.Arrays) -> None:
        """Record the trainer's scores of the rollouts."""
        for ids, tokens, columns in _rows(arrays):
            found = self._records.get((ids, tokens), [])
            if not found:
                self.stats["unmatched_rows"] += 1
                continue
            digest = found.pop(0)
            self.stats["scored_sequences"] += 1
            now = int(body.policy_version if body.policy_version is not None else body.step)
            self.recorder.score(
                digest, self._revision(now, "trainer_scores"), list(map(float, columns["trainer_logprobs"]))
            )
            versions = columns.get("old_versions", np.array([-1]))
            if versions[0] >= 0 and (versions == versions[0]).all():
                own = self._revision(int(versions[0]), "trainer_scores")
                self.recorder.score(digest, own, list(map(float, columns["old_logprobs"])))

    def close(self, step: int) -> None:
        """Close a step and keep its alarms."""
        before = len(self._monitor.alarms)
        self._monitor.on_step_end(step)
        self.alarms += [(step, alarm.kind) for alarm in self._monitor.alarms[before:]]

    def on_message(self, body: wire.DataBody, arrays: wire.Arrays) -> None:
        """Handle one message to the hub."""
        if isinstance(body, wire.EngineState):
            self.state(body)
        elif isinstance(body, wire.Rollouts):
            self.rollouts(body, arrays)
        elif isinstance(body, wire.Sequences):
            self.rows(body, arrays)
        elif isinstance(body, wire.StepClosed):
            self.close(body.step)

    def doctor(self) -> list[str]:
        """The conclusions of its doctor at the end; see ``CAUSE_LINES``."""
        from martingale.diagnostics.staleness import decompose, diagnosis

        lines = diagnosis(decompose(self.recorder.ledger))
        return [conclusion for part, conclusion in CAUSE_LINES.items() if any(part in line for line in lines)]


def _rows(arrays: wire.Arrays) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    prompt = row = token = 0
    names = [name for name in wire.TOKEN_COLUMNS if name in arrays]
    for prompt_size, size in zip(arrays["prompt_sizes"], arrays["row_sizes"], strict=True):
        mask = arrays["row_mask"][row : row + size].astype(bool)
        trained = int(mask.sum())
        ids = tuple(map(int, arrays["prompt_ids"][prompt : prompt + prompt_size]))
        tokens = tuple(map(int, arrays["row_ids"][row : row + size][mask]))
        yield ids, tokens, {name: arrays[name][token : token + trained] for name in names}
        prompt, row, token = prompt + prompt_size, row + size, token + trained


@contextlib.contextmanager
def peer_workspace(peers: Path) -> Iterator[str]:
    """Make martingale importable from ``peers`` and give it a temporary workspace."""
    if str(peers) not in sys.path:
        sys.path.append(str(peers))
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as workspace, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield workspace


def run_peer(tape: Path, peers: Path) -> tuple[Counter[str], list[str]]:
    """Its alarms by kind, and the conclusions of its doctor."""
    with peer_workspace(peers) as workspace:
        peer = PeerRun(workspace)
        for method, arguments, _ in calls(tape):
            if method == "data":
                _, body, arrays = wire.decode_data(arguments[0])
                peer.on_message(body, arrays)
        return Counter(kind for _, kind in peer.alarms), peer.doctor()


def main() -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tapes", type=Path)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--part", choices=("tune", "score", "all"), default="tune")
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    print("| run | fault | rltop | martingale's alarms | martingale's doctor |")
    print("| --- | --- | --- | --- | --- |")
    for run in RUNS:
        tape, packed = given.tapes / run.name / "tape.xz", DATA / f"{run.name}.xz"
        wanted = given.part in (run.part, "all") and (not given.only or any(text in run.name for text in given.only))
        if not wanted or not tape.exists() or not packed.exists():
            continue
        alarms, doctor = run_peer(tape, given.peers)
        code = "healthy" if run.fault == HEALTHY_RUN else FAULTS[run.fault].codes[0]
        listed = ", ".join(f"{kind} {count}x" for kind, count in alarms.items()) or "-"
        print(
            f"| {run.name} | {code} | {score(run, packed).answer} | {listed} | {'; '.join(doctor) or '-'} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
