"""A minimal run for rltop: one vLLM engine, a torch model, REINFORCE on the sorting task.

Run it, and `rltop example --control` in another terminal:

    VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind .venv/bin/python examples/attach.py

The engine's weights are never updated here, so the gap grows with every step: this is staleness. The hub keeps running
after the run has ended; `rltop hub example --stop` stops it.
"""

import os
import random
from pathlib import Path

os.environ.setdefault("RLTOP_RUN", "example")  # before vLLM starts: activates the engine's collector
os.environ.setdefault("RLTOP_ENGINE", "e0")

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt

import rltop.backend.demo as demo
from rltop.backend.demo.rl import task
from rltop.collectors import TrainerCollector

MODEL = Path(demo.__file__).parent / "sort-sft"


def main(steps: int = 20, batch: int = 32) -> None:
    """Sample, score and train; three calls pass the data to rltop."""
    engine = LLM(str(MODEL), skip_tokenizer_init=True, max_model_len=128, enforce_eager=True, dtype="float32",
                 block_size=32, logprobs_mode="processed_logprobs")  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    sampling = SamplingParams(temperature=1.0, max_tokens=20, logprobs=0, detokenize=False, stop_token_ids=[task.EOS])
    rng = random.Random(0)

    facts = {"temperature": 1.0, "top_p": 1.0, "dtype": torch.float32}  # the settings of score()

    with TrainerCollector(rank=0, world_size=1, facts=facts) as trainer:
        for step in range(steps):
            prompts = [task.make_prompt(rng) for _ in range(batch)]
            outputs = engine.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], sampling, use_tqdm=False)
            answers = [list(o.outputs[0].token_ids) for o in outputs]
            rollout = [torch.tensor([lp[t].logprob for t, lp in zip(a, o.outputs[0].logprobs, strict=True)])
                       for a, o in zip(answers, outputs, strict=True)]  # fmt: skip
            rewards = torch.tensor([task.reward(p, a) for p, a in zip(prompts, answers, strict=True)])
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)

            current = [score(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
            loss = -torch.cat([a * lp for a, lp in zip(advantages, current, strict=True)]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            trainer.sequences(step, token_ids=[torch.tensor(a) for a in answers], rollout_logprobs=rollout,
                              trainer_logprobs=current, mask=[torch.ones(len(a)) for a in answers],
                              prompt_ids=[torch.tensor(p) for p in prompts], advantages=advantages,
                              rewards=rewards, policy_version=step, rollout_versions=0)  # fmt: skip
            trainer.step(step, policy_version=step + 1, metrics={"loss": loss.item()})
            print(f"step {step}: reward {rewards.mean():.3f}")


def score(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Logprobs of the answer's tokens, [len(answer)], in nats."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


if __name__ == "__main__":
    main()
