"""The demo's supervisor: starts hub, engines and trainer, follows the run, and ends all processes.

``run_headless`` does the whole run in the foreground; ``start`` does it in a process of its own, for a dashboard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO

from rltop.backend.client.live import Client, HubUnreachable
from rltop.backend.demo import jobs, messages
from rltop.backend.demo.children import Child, end_all
from rltop.backend.demo.demo_hub import RunInUseError, fresh_hub, stop_hub
from rltop.backend.demo.faults import Fault
from rltop.backend.demo.observed import Follower
from rltop.backend.demo.options import MODEL, DemoOptions, Setting, parse_setting
from rltop.backend.demo.progress import ProgressPrinter, ranges
from rltop.backend.text import status
from rltop.collectors.contract.launch import HubInfo, LaunchError
from rltop.collectors.contract.rundir import RunDir, RunDirError, for_run

__all__ = ["Demo", "DemoError", "DemoOptions", "RunInUseError", "Setting", "parse_setting", "run_headless", "start"]

REQUIRED = ("vllm", "torch", "transformers", "safetensors")

POLL_S = 0.1
LAST_STEP_S = 15.0
"""How long the hub may take after training to show the last step and the end of the trainer."""

STOP_GRACE_S = 40.0
"""How long the supervisor may take to end its children."""

SETTLE_S = 60.0
"""How long a flag change may take after training to be closed."""

ENGINE_ENVIRONMENT = {
    "RLTOP_DEMO_ASYNC": "1",
    "RLTOP_DEMO_FORK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TRITON_F32_DEFAULT": "ieee",
}
"""Without the CPU settings the small engine is forty times slower on two cores. Without ``TORCH_COMPILE_DISABLE`` the
first token waits 20 s for the compilation of a sampler helper. The last is for GPUs: without it fp32 attention
multiplies in TF32, which dominates the gap of a healthy run."""

TRAINER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class DemoError(RuntimeError):
    """The run can't continue; the message has the reason and the fix."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop; ``args[0]`` is its number."""


def run_headless(options: DemoOptions, out: TextIO | None = None) -> int:
    """The whole run: progress and one line per step on ``out``, warnings on standard error.

    Returns:
        0 if all steps were trained, no process failed and every ``--set`` was applied on every engine; 1 if not;
        128 + n after signal n.
    """
    progress = ProgressPrinter(out or sys.stdout, options.steps)
    try:
        with _signals() as caught, contextlib.ExitStack() as stack:
            return _Run(options, progress, caught, stack).go()
    except Interrupted as interrupted:
        progress.warn(f"ended by {signal.Signals(interrupted.args[0]).name}")
        return 128 + int(interrupted.args[0])
    except (DemoError, RunInUseError, LaunchError, RunDirError, HubUnreachable) as error:
        progress.warn(str(error))
        return 1


class _Run:
    """One run; ``stack`` cleans up in reverse order."""

    def __init__(
        self, options: DemoOptions, progress: ProgressPrinter, caught: list[int], stack: contextlib.ExitStack
    ) -> None:
        _check_installed()
        if options.json_path is not None:
            _check_writable(options.json_path)
        self._options = options
        self._progress = progress
        self._caught = caught
        self._stack = stack
        self._rundir = for_run(options.run)
        stack.enter_context(_demo_lock(self._rundir))
        self._start_hub()
        client = Client(self._rundir)
        stack.callback(client.close)
        self._follower = Follower(client, options.settings)

    def go(self) -> int:
        """Start all processes, follow the run to its end, and return the exit code."""
        weights = Path(tempfile.mkdtemp(prefix="rltop-", dir=_memory_directory()))
        self._stack.callback(shutil.rmtree, weights, ignore_errors=True)
        children = self._start_children(weights)
        *engines, trainer = children
        self._progress.booting([engine.name for engine in engines])
        while trainer.exit_code is None:
            self._poll(trainer)
            self._check_alive(engines)
        self._poll(trainer)
        if trainer.exit_code != 0:
            raise DemoError(trainer.failure())
        self._await_last_reports(engines)
        return self._exit_code()

    def _start_hub(self) -> None:
        hub, ours = fresh_hub(self._rundir)
        if (fault := self._options.injected).name:
            since = f", from step {fault.at} on" if fault.at else ""
            self._progress.line(f"started with the fault {fault.name}{since}: {fault.description}")
        self._progress.line(f"run {self._options.run!r}: hub is process {hub.pid}, directory {self._rundir.path}")
        if ours and not self._options.keep_hub:
            self._stack.callback(stop_hub, self._rundir, hub)

    def _start_children(self, weights: Path) -> list[Child]:
        options, directory = self._options, self._rundir.path
        socket, model = f"ipc://{directory / messages.SOCKET}", str(_checkpoint(options.injected, weights))
        children: list[Child] = []
        self._stack.callback(self._end, children)
        for engine in options.engine_ids:
            fault = options.injected.on(engine)
            job = jobs.EngineJob(engine, model, socket, options.seed, options.sampled_at, fault)
            environment = {**ENGINE_ENVIRONMENT, "RLTOP_HUB": str(directory), "RLTOP_ENGINE": engine}
            children.append(
                Child(
                    engine, "rltop.backend.demo.engines.engine_process", job, environment, directory / f"{engine}.log"
                )
            )
        trainer = jobs.TrainerJob(
            run=options.run,
            model=model,
            socket=socket,
            weights=str(weights),
            engines=options.engine_ids,
            steps=options.steps,
            seed=options.seed,
            temperature=options.sampled_at,
            objective=options.objective,
            matched=options.matched,
            fault=options.injected,
            facts=options.facts,
        )
        children.append(
            Child(
                "trainer", "rltop.backend.demo.rl.demo_trainer", trainer, TRAINER_ENVIRONMENT,
                directory / "trainer.log", piped=True,
            )
        )  # fmt: skip
        return children

    def _poll(self, trainer: Child | None = None) -> None:
        """Process the hub's frames, the trainer's output, and signals."""
        if self._caught:
            raise Interrupted(self._caught[0])
        for step in self._follower.poll(POLL_S):
            self._progress.step(step)
        for line in trainer.lines() if trainer else []:
            self._progress.trainer_line(line)
        self._progress.tick(hub=self._follower.client.state)

    def _check_alive(self, engines: list[Child]) -> None:
        for engine in engines:
            if engine.exit_code is not None:
                raise DemoError(engine.failure())

    def _await_last_reports(self, engines: list[Child]) -> None:
        """After training, wait for the last step and the end of every flag change; the engines are still live."""
        last = self._options.steps - 1
        deadline = time.monotonic() + LAST_STEP_S
        while self._follower.live and time.monotonic() < deadline:
            view = self._follower.client.view
            if view is not None and last in view.steps and view.trainer.health == "gone":
                break
            self._poll()
        deadline = time.monotonic() + SETTLE_S
        while self._follower.live and self._follower.unsettled() and time.monotonic() < deadline:
            self._poll()
            self._check_alive(engines)
        self._check_alive(engines)

    def _exit_code(self) -> int:
        options, follower = self._options, self._follower
        if missing := follower.missing(options.steps):
            self._progress.warn(f"no hub measured steps {ranges(missing)} (the trainer continued)")
        picture = follower.picture()
        if options.json_path is not None:
            if picture is None:
                raise DemoError(f"no hub was reached, so {options.json_path} is not written")
            _write_json(options.json_path, status.as_json(picture))
        failures = follower.failures()
        for failure in failures:
            self._progress.warn(failure)
        self._progress.summary()
        return 1 if failures else 0

    def _end(self, children: list[Child]) -> None:
        if children:
            self._progress.line("stopping engines and trainer")
        if left := end_all(children):
            self._progress.warn(f"still running after SIGKILL: {', '.join(left)}")


def _checkpoint(fault: Fault, scratch: Path) -> Path:
    """The initial checkpoint: the demo's, or a copy with the fault's sampling defaults."""
    if fault.repetition_penalty == 1.0:
        return MODEL
    copy = scratch / "checkpoint"
    shutil.copytree(MODEL, copy)
    config = copy / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"repetition_penalty": fault.repetition_penalty}))
    return copy


def _check_installed() -> None:
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"the demo needs {', '.join(missing)}: run `make setup` in a checkout, or install the extra `rltop[demo]`"
        )


@contextlib.contextmanager
def _demo_lock(rundir: RunDir) -> Iterator[IO[bytes]]:
    try:
        rundir.create()
        opened = (rundir.path / "demo.lock").open("wb")
    except OSError as error:
        raise DemoError(f"can't use the run directory: {error}; set RLTOP_HOME to a directory of your own") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"a demo already runs as {rundir.run!r}; choose another name with --run") from None
        yield lock


def _memory_directory() -> str | None:
    shared = Path("/dev/shm")  # noqa: S108 - a fresh 0700 directory is created in it
    return str(shared) if os.access(shared, os.W_OK) else None


def _check_writable(path: Path) -> None:
    """Check that ``path`` can be written, before a run of minutes rather than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DemoError(f"--json {path}: {error}") from error


def _write_json(path: Path, value: object) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise DemoError(f"--json {path}: {error}") from error


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Catch SIGINT, SIGTERM and SIGHUP; the run ends at its next poll."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Demo:
    """A run in a process of its own; see ``start``.

    Attributes:
        rundir: of the run; its hub serves the dashboard.
        log: the supervisor's output.
    """

    def __init__(self, rundir: RunDir, process: Child, hub: HubInfo | None) -> None:
        self.rundir = rundir
        self.log = process.log
        self._process = process
        self._hub = hub

    @property
    def exit_code(self) -> int | None:
        """The result of ``run_headless``; None while the run is in progress."""
        return self._process.exit_code

    def stop(self) -> int:
        """End the run and the hub that was started for it; blocks for seconds.

        Returns the exit code.
        """
        end_all([self._process], grace_s=STOP_GRACE_S)
        if self._hub is not None:
            stop_hub(self.rundir, self._hub)
        assert self.exit_code is not None
        return self.exit_code


def start(options: DemoOptions) -> Demo:
    """Start the run in the background; its hub is up when this returns (a second or two).

    The hub stays up after the last step, for viewers; ``Demo.stop`` ends it. If the caller dies, the run ends too.

    Raises:
        DemoError, RunInUseError, LaunchError, RunDirError: the start failed; no process is left.
    """
    _check_installed()
    rundir = for_run(options.run)
    with _demo_lock(rundir):  # another demo's hub must not be taken for a leftover
        hub, ours = fresh_hub(rundir)
    job = dataclasses.replace(options, keep_hub=True)
    supervisor = Child("demo", "rltop.backend.demo.supervisor", job, {}, rundir.path / "demo.log")
    return Demo(rundir, supervisor, hub if ours else None)


if __name__ == "__main__":
    jobs.end_with_parent()
    sys.exit(run_headless(jobs.decode(sys.argv[1], DemoOptions)))
