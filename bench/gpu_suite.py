"""The suite of ``tests/test_engine_live.py`` without pytest: a table of every switch for the docs.

``bench/gpu_suite.sh`` prepares a machine for it. Device, model and eager mode are those of ``tests/live_engine.py``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import traceback
from collections.abc import Callable

import numpy as np

from tests.harness import HubStandIn
from tests.live_engine import DEVICE, EAGER, ENVIRONMENT, MODEL, LiveEngine
from tests.switchboard import ENGINE, Walk, arrived, by_epoch, check_equal, fresh, prompt, switch, table

FACTS = ("vllm_version", "model_runner", "attention_backend", "device", "sampling_path", "dtype")
IN_FLIGHT = 40


def strict(engine: LiveEngine, hub: HubStandIn) -> str:
    """All forms of asynchronous scheduling in a random order."""
    switch(hub, "logprobs_mode", "processed", "strict")
    return table(Walk(engine, hub, ("async_scheduling",)).run())


def seeded(engine: LiveEngine, hub: HubStandIn) -> str:
    """Both forms of off under seeded traffic: their effect on the tokens."""
    lines = []
    tokens: dict[str, list[list[int]]] = {}
    for tag, plan in (
        ("none", ()),
        ("depth", (("off", False), ("on", False))),
        ("strict", (("off", True), ("on", False))),
    ):
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
    return "\n".join(lines)


def walk(engine: LiveEngine, hub: HubStandIn) -> str:
    """Every flag in random order, in its plain form."""
    return table(Walk(engine, hub, strict=False).run())


def torn(engine: LiveEngine, hub: HubStandIn) -> str:
    """A failed weight update is reported and blocks nothing."""
    try:
        with tempfile.TemporaryDirectory() as empty:
            engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": empty}))
    except Exception as error:  # noqa: BLE001 - any error that vLLM raises
        reported = fresh(hub).fingerprint["weights torn"]
        switch(hub, "prefix_caching", "off", "torn")
        switch(hub, "prefix_caching", "on", "torn")
        engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(MODEL)}))
        assert "weights torn" not in fresh(hub).fingerprint
        assert check_equal(hub, "mended", engine.generate("mended", prompt(1), 20, seed=1).result(60)).size == 20
        return f"{type(error).__name__}; reported: {reported}"
    raise AssertionError("an update from nowhere succeeded")


PARTS: tuple[Callable[[LiveEngine, HubStandIn], str], ...] = (walk, strict, seeded, torn)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip", nargs="*", default=[], choices=[part.__name__ for part in PARTS])
    skip = parser.parse_args().skip
    failed = 0
    with HubStandIn() as hub:
        os.environ |= ENVIRONMENT | {"RLTOP_HUB": str(hub.rundir.path), "RLTOP_ENGINE": ENGINE}
        engine = LiveEngine()
        try:
            state = fresh(hub)
            facts = ", ".join(state.fingerprint[name] for name in FACTS if name in state.fingerprint)
            print(f"\n{DEVICE}, {'eager' if EAGER else 'compiled'}: {facts}", flush=True)
            for name, flag in state.flags.items():
                print(f"  {name}: {flag.value}{'' if flag.switchable else ', fixed: ' + flag.reason}", flush=True)
            for part in PARTS:
                if part.__name__ in skip:
                    continue
                try:
                    print(part(engine, hub), flush=True)
                except Exception:  # noqa: BLE001 - the other parts still run
                    traceback.print_exc()
                    failed += 1
            health = hub.health()[-1]
            print(f"faults {health.faults}, rollouts dropped {health.counts['rollouts'].dropped}", flush=True)
            failed += bool(health.faults)
        finally:
            engine.close()
    print("FAILED" if failed else "passed", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
