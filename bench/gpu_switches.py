"""Every flag switched on a real GPU engine with 64 requests in flight, through a real hub.

``python bench/gpu_switches.py MODEL [--eager] [--tokens N]`` prints one row per batch. A batch is passed to the
trainer's collector with the engine's logprobs as the trainer's, so ``joined`` must be 100 % and ``gap`` 0: every token
and logprob that the front end returned equals the one that the collector recorded inside the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rltop.backend import api
from rltop.backend.api import Change, Step
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import RunDir

REQUESTS = 64
SWITCH_AFTER_S = 0.35


def prompts(batch: int, vocabulary: int) -> list[list[int]]:
    """Prompts of a batch. Half of them share a prefix of 256 tokens; the rest of each is new in every batch."""
    rng = np.random.default_rng(batch)
    shared = np.random.default_rng(7).integers(3, vocabulary, 256).tolist()
    return [(shared if i % 2 else []) + rng.integers(3, vocabulary, 64 + 4 * i).tolist() for i in range(REQUESTS)]


async def sample(engine: Any, batch: int, tokens: int, vocabulary: int) -> list[Any]:
    """Sample one batch at temperature 0.7 and top_p 0.9. Returns the final outputs in order."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, prompt: list[int]) -> Any:
        params = SamplingParams(
            temperature=0.7, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False,
            top_p=0.9, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        stream = engine.generate({"prompt_token_ids": prompt}, params, f"b{batch}-{number}")
        return [output async for output in stream][-1]

    return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts(batch, vocabulary))))


def switch(rundir: RunDir, flag: str, value: str) -> Change:
    """Switch a flag through the hub and wait for the outcome."""
    with Client(rundir) as client:
        return client.command(api.AskSet(api.new_id(), flag, value))[0]


def measured(client: Client, step: int) -> Step:
    """Wait for the hub's measurement of the step."""
    client.wait(lambda c: c.view is not None and step in c.view.steps, 30.0)
    assert client.view is not None
    return client.view.steps[step]


async def batches(engine: Any, rundir: RunDir, tokens: int, vocabulary: int) -> None:
    """Run a batch without a switch, then one per flag and value with the switch during the batch."""
    print("switch                   outcome       ms flight lost   full   joined      gap   hits")
    switches = [("", ""), *((flag.name, value) for flag in FLAGS for value in (*flag.values[1:], flag.values[0]))]
    with TrainerCollector(hub=str(rundir.path), rank=0, world_size=1) as trainer, Client(rundir) as client:
        for step, (flag, value) in enumerate(switches):
            sampling = asyncio.create_task(sample(engine, step, tokens, vocabulary))
            change = None
            if flag:
                await asyncio.sleep(SWITCH_AFTER_S)
                change = await asyncio.to_thread(switch, rundir, flag, value)
            outputs = await sampling
            rows = [list(output.outputs[0].token_ids) for output in outputs]
            recorded = [
                np.array([entry[token].logprob for token, entry in zip(row, output.outputs[0].logprobs, strict=True)])
                for row, output in zip(rows, outputs, strict=True)
            ]
            trainer.sequences(
                step, token_ids=[np.array(row) for row in rows], rollout_logprobs=recorded, trainer_logprobs=recorded,
                mask=[np.ones(len(row)) for row in rows],
                prompt_ids=[np.array(output.prompt_token_ids) for output in outputs],
            )  # fmt: skip
            trainer.step(step)
            values = measured(client, step).values
            columns = (
                f"{change.state:8} {change.milliseconds or 0:7.1f} {change.in_flight!s:>6} {change.lost_requests!s:>4}"
                if change
                else " " * 28
            )
            complete = sum(len(row) == tokens for row in rows)
            print(
                f"{flag + ' ' + value:24} {columns} {complete:>4}/{len(rows)} {values['joined_fraction']:7.1%} "
                f"{values['logp_abs_diff_mean']:8.1e} {values['prefix_hit_rate'] or 0:6.1%}"
                + (f"  {change.reason}" if change and change.reason else ""),
                flush=True,
            )
        for name, fact in sorted(client.snapshot().engines["e0"].fingerprint.items()):
            print(f"  {name}: {fact}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    arguments = parser.parse_args()
    rundir = RunDir(Path(tempfile.mkdtemp(prefix="rl")) / "gpu")
    ensure_hub(rundir)
    os.environ |= {"RLTOP_HUB": str(rundir.path), "RLTOP_ENGINE": "e0"}

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=arguments.model, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048, max_num_seqs=128,
            gpu_memory_utilization=0.5, disable_log_stats=True, generation_config="vllm", enforce_eager=arguments.eager,
        )
    )  # fmt: skip
    try:
        await sample(engine, 99, 32, arguments.vocabulary)
        await batches(engine, rundir, arguments.tokens, arguments.vocabulary)
    finally:
        engine.shutdown()
        with Client(rundir) as client:
            client.stop_hub()


if __name__ == "__main__":
    asyncio.run(main())
