"""One rank of a TRL training in several processes, for ``torchrun``: arguments MODEL and OUT.

It generates by the stand-in for vLLM. The main process writes TRL's log to ``log.json`` in OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import trl.trainer.grpo_trainer as host

import rltop.integrations.trl
from tests.support.trl_runs import Sampler, trainer


def main(model: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    host.VLLMGeneration = Sampler
    made, log = trainer(model, directory, max_steps=3, ddp_backend="gloo")
    watcher = rltop.integrations.trl.watch(made, run="ranks")
    made.train()
    assert watcher.collector.close(60)
    if made.accelerator.is_main_process:
        (directory / "log.json").write_text(json.dumps(log.steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
