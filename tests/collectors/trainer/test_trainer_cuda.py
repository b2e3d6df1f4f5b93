"""Arrays on a GPU: copied without waiting for it, as they were when the call was made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rltop.collectors.contract import wire
from rltop.collectors.trainer import arrays, packing
from rltop.collectors.trainer.arguments import Checked, check

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ROWS, TIME = 64, 512
A_WHILE = 1_000_000_000
"""GPU clock cycles: about half a second."""


def checked(device: str, form: str) -> tuple[Checked, Any]:
    """A call's arguments, the same on every device, and the logprobs among them."""
    random = torch.Generator().manual_seed(0)
    wide = torch.rand(ROWS, TIME + 1, generator=random).to(device)
    ids = torch.randint(0, 32_000, (ROWS, TIME), generator=random).to(device)
    per_token: dict[str, Any] = {
        "token_ids": ids,
        "mask": ids % 3 > 0,
        "rollout_logprobs": wide[:, 1:].to(torch.bfloat16),
        "trainer_logprobs": wide[:, :-1],  # a view with gaps
        "old_logprobs": wide[:, 1:].double(),
        "rollout_versions": ids % 5,
    }
    bounds = None
    if form == "packed":
        bounds = torch.arange(ROWS + 1, device=device) * TIME
        per_token = {name: value.reshape(-1) for name, value in per_token.items()}
    elif form == "list":
        per_token = {name: list(value) for name, value in per_token.items()}
    ids, mask = per_token.pop("token_ids"), per_token.pop("mask")
    per_token["advantages"] = wide[:, 0].half()
    return check(wire.Sequences(0, 0, 0, 0, []), ids, mask, None, wide[:, 1], bounds, per_token), wide


def sent(batch: packing.CopiedCall) -> dict[str, Any]:
    messages = [found for _, found in packing.pack(batch)]
    return {name: np.concatenate([found[name] for found in messages]) for name in messages[0]}


@pytest.mark.parametrize("form", ["batch", "packed", "list"])
def test_the_same_arrives_from_the_gpu_as_from_the_cpu(form: str) -> None:
    on_gpu, on_cpu = (sent(checked(device, form)[0].copy()) for device in ("cuda", "cpu"))
    assert list(on_gpu) == list(on_cpu)
    for name, array in on_cpu.items():
        np.testing.assert_array_equal(on_gpu[name], array)


@pytest.mark.parametrize("form", ["batch", "packed", "list"])
def test_a_call_does_not_wait_for_the_gpu_and_later_changes_do_not_reach_it(form: str) -> None:
    checked("cuda", form)[0].copy()  # the first copy allocates pinned memory, which may wait
    arguments, wide = checked("cuda", form)
    expected = sent(arguments.copy())
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE)
    batch = arguments.copy()
    assert isinstance(batch.token_ids, arrays.Copy)
    assert not batch.token_ids.ready.query()  # back in the caller while the GPU has not even begun to copy
    wide.zero_()
    seen = sent(batch)
    for name, array in expected.items():
        np.testing.assert_array_equal(seen[name], array)


def test_invalid_cumulative_sizes_on_the_gpu_are_detected_when_read() -> None:
    zeros = torch.zeros(6, device="cuda")
    bounds = torch.tensor([0, 4, 7], device="cuda")
    columns = {"rollout_logprobs": zeros, "trainer_logprobs": zeros}
    batch = check(wire.Sequences(0, 0, 0, 0, []), zeros.int(), zeros, None, None, bounds, columns).copy()
    with pytest.raises(ValueError, match="cu_seqlens"):
        sent(batch)


def test_a_default_device_of_the_trainer_does_not_matter() -> None:
    arguments, _ = checked("cuda", "batch")
    with torch.device("cuda"):
        assert sent(arguments.copy())["row_ids"].size
