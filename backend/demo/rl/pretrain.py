"""Makes the demo's checkpoint: a small Qwen3, trained to sort on noisy examples.

``python -m rltop.backend.demo.rl.pretrain OUT [--steps N] [--seed S]``. The noise leaves the policy uncertain: the
sampled reward is about 0.5 after the default steps, which reinforcement learning can improve. ``sort-sft`` had 238
steps. The head is not tied to the embedding: vLLM 0.32 loads tied heads wrongly on the CPU (see
``weight_transfer.py``).
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import torch

from rltop.backend.demo.rl import policy, task

STEPS, BATCH, NOISE = 240, 32, 0.12
LEARNING_RATE, WARMUP_STEPS, GRADIENT_NORM = 2e-3, 20, 1.0
LOG_EVERY = 10


def new_model() -> Any:
    """A randomly initialised Qwen3 with 0.62 million parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=task.VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=task.BOS,
            eos_token_id=task.EOS,
            pad_token_id=task.PAD,
        )
    )


def example_batch(rng: random.Random, size: int) -> policy.PaddedAnswers:
    """Random prompts with noisy answers."""
    prompts = [task.make_prompt(rng) for _ in range(size)]
    return policy.make_batch(prompts, [task.noisy_answer(rng, prompt, NOISE) for prompt in prompts])


def pretrain(out: Path, steps: int, seed: int) -> float:
    """Train and save; returns the last loss, in nats per answer token."""
    torch.manual_seed(seed)
    rng = random.Random(f"pretrain/{seed}")  # noqa: S311 - a task, not a secret
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    loss = torch.tensor(0.0)
    for step in range(steps):
        batch = example_batch(rng, BATCH)
        logprobs, _ = policy.logprobs_and_entropy(model, batch, temperature=1.0)
        loss = -(logprobs * batch.mask).sum() / batch.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        warmup.step()
        if step % LOG_EVERY == 0 or step == steps - 1:
            sys.stdout.write(f"step {step:4d}  loss {float(loss.detach()):.3f}\n")
            sys.stdout.flush()
    model.save_pretrained(out)
    return float(loss.detach())


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m rltop.backend.demo.rl.pretrain", description="Make a checkpoint.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
