"""TRL's trainer on the demo's task: its model with a tokenizer, prompts, a reward, TRL's log, a stand-in for vLLM."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

import rltop.backend.demo
from rltop.backend.demo.rl import task

CHECKPOINT = Path(rltop.backend.demo.__file__).parent / "sort-sft"
MAX_COMPLETION = 20


def make_model(path: Path) -> Path:
    """Write the demo's checkpoint with a tokenizer of one word per token; returns its directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(CHECKPOINT, path, dirs_exist_ok=True)
    words = Tokenizer(models.WordLevel({word(token): token for token in range(task.VOCABULARY)}, unk_token=word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=word(task.PAD), eos_token=word(task.EOS), bos_token=word(task.BOS)
    ).save_pretrained(path)
    return path


def word(token: int) -> str:
    return f"w{token:03d}"


def dataset(size: int = 64, seed: int = 0) -> Dataset:
    """Prompts in words, their ids, and one of two environments."""
    prompts = [task.prompt(seed, number) for number in range(size)]
    return Dataset.from_list(
        [
            {"prompt": " ".join(map(word, ids)), "ids": ids, "environment": ("short", "long")[len(ids) > 47]}
            for ids in prompts
        ]
    )


def sorted_share(completion_ids: list[list[int]], ids: list[list[int]], **_: Any) -> list[float]:
    return [task.reward(prompt, answer) for prompt, answer in zip(ids, completion_ids, strict=True)]


def config(path: Path, **changes: Any) -> Any:
    """A configuration on the CPU in float32; logs every step."""
    from trl import GRPOConfig

    settings: dict[str, Any] = {
        "output_dir": str(path), "use_cpu": True, "bf16": False, "fp16": False, "per_device_train_batch_size": 8,
        "num_generations": 4, "gradient_accumulation_steps": 1, "max_steps": 4,
        "max_completion_length": MAX_COMPLETION, "learning_rate": 5e-4, "lr_scheduler_type": "constant",
        "report_to": [], "logging_steps": 1, "save_strategy": "no", "use_vllm": True, "vllm_mode": "colocate",
        "vllm_max_model_length": 256, "beta": 0.0, "seed": 0, "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    return GRPOConfig(**settings | changes)


def trainer(model: Path, path: Path, *, of: Any = None, **changes: Any) -> tuple[Any, Log]:
    """A trainer, of TRL's class or a subclass, and what it will have logged."""
    from trl import GRPOTrainer

    log = Log()
    made = (of or GRPOTrainer)(
        model=str(model), reward_funcs=sorted_share, args=config(path, **changes), train_dataset=dataset(),
        eval_dataset=dataset(8, seed=1), callbacks=[log],
    )  # fmt: skip
    return made, log


class Log(TrainerCallback):  # type: ignore[misc]
    """What TRL logged in training, by step from 0."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.steps[state.global_step - 1] = dict(logs)


class Sampler:
    """Stands in for TRL's ``VLLMGeneration``: samples by transformers from a bfloat16 copy, so that there is a gap."""

    def __init__(self, model: Any, temperature: float = 1.0, max_completion_length: int = 16, **_: Any) -> None:
        self.mode = "colocate"
        self._model, self._temperature, self._limit = model, temperature, max_completion_length
        self._copy = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).float().eval()
        self._generator = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
        self.syncs = 0

    def sync_weights(self) -> None:
        self.syncs += 1
        with torch.no_grad():
            for own, theirs in zip(self._copy.parameters(), self._model.parameters(), strict=True):
                own.copy_(theirs.to(torch.bfloat16).float())

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> tuple[Any, ...]:
        completions: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[list[float]]] = [[] for _ in prompts]
        for _ in range(self._limit):
            going = [row for row, tokens in enumerate(completions) if tokens[-1:] != [task.EOS]]
            if not going:
                break
            rows = [torch.tensor([*prompts[row], *completions[row]]) for row in going]
            last = torch.tensor([len(row) - 1 for row in rows])
            ids = torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True
            )  # causal: padding on the right changes nothing
            with torch.no_grad():
                logits = self._copy(ids).logits[torch.arange(len(going)), last]
            values = (logits / self._temperature).log_softmax(-1)
            chosen = torch.multinomial(values.exp(), 1, generator=self._generator)
            for row, token, value in zip(going, chosen, values.gather(-1, chosen), strict=True):
                completions[row].append(int(token))
                logprobs[row].append([float(value)])
        return prompts, completions, logprobs, [[[token] for token in tokens] for tokens in completions]
