"""The refit guard's verdicts: every kind of broken update, of any part of a model, on sketches of real tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api.refit import FAULTY, RefitCheck
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.probes.refit_guard import PATIENCE_S, SETTLE_S, VERSIONS, RefitChecks
from rltop.collectors.contract import wire
from rltop.collectors.contract.digests import column_multipliers
from rltop.collectors.contract.weight_sketch import sketch

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
Weights = dict[str, torch.Tensor]


def model(seed: int) -> Weights:
    """A trainer's weights: two layers, an embedding, a head."""
    make = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (64, 16), "norm.weight": (16,), "lm_head.weight": (64, 16)}
    for layer in (0, 1):
        shapes |= {f"layers.{layer}.{part}_proj.weight": (16, 16) for part in "qkvo"}
    return {name: 0.02 * torch.randn(shape, generator=make) for name, shape in shapes.items()}


def trained(weights: Weights, seed: int, size: float = 1e-3) -> Weights:
    make = torch.Generator().manual_seed(seed)
    return {name: one + size * torch.randn(one.shape, generator=make) for name, one in weights.items()}


def in_engine(weights: Weights, dtype: torch.dtype = torch.float32, ranks: int = 1) -> list[wire.WeightSketch]:
    """As an engine has them: fused, cut by rows over ranks, in its dtype, the vocabulary padded."""
    found: list[wire.WeightSketch] = []
    for name, one in fuse(weights).items():
        padded = torch.cat([one, torch.zeros(8, 16)]) if one.shape[0] == 64 else one
        parts = padded.to(dtype).chunk(ranks) if one.dim() > 1 else [one.to(dtype)] * ranks
        for rank, part in enumerate(parts):
            read = sketch([(name, part)])
            assert read is not None
            found += [wire.WeightSketch(*each) for each in read.read(rank)]
    return found


def fuse(weights: Weights) -> Weights:
    made: Weights = {}
    for name, one in weights.items():
        whole = re.sub(r"\.[qkv]_proj", ".qkv_proj", name)
        made[whole] = torch.cat([made[whole], one]) if whole in made else one
    return made


class Guard:
    """The hub's half, fed by one or more engines."""

    def __init__(self) -> None:
        self.checks = RefitChecks()
        self.now = 100.0
        self.updates: dict[str, int] = {}

    def state(self, version: int, weights: Weights) -> None:
        read = sketch(weights.items(), rounded=True)
        assert read is not None
        self.checks.add_trainer(wire.TrainerWeights(0, version, [wire.WeightSketch(*one) for one in read.read()]))

    def load(
        self,
        weights: Weights,
        version: int | None,
        *,
        engine: str = "e0",
        stated: bool = True,
        filled: int = 1,
        reason: str = "update",
        sketches: list[wire.WeightSketch] | None = None,
    ) -> None:
        """``filled``: parameters that this update filled."""
        count = self.updates[engine] = self.updates.get(engine, -1) + (reason != "wake")
        self.total = getattr(self, "total", 0) + filled
        source = "engine" if stated else "inferred"
        body = wire.RefitReport(engine, reason, count, version, source, self.total, sketches or in_engine(weights),
                                FUSED, 0.01, 0.01, 0.01, 10.0)  # fmt: skip
        self.checks.add_report(body, "epoch", version, stated, self.now, count)

    def answers(self, wait: float = 2 * SETTLE_S) -> dict[str, RefitCheck]:
        self.now += wait
        return self.checks.tick(self.now, 5)

    def answer(self, wait: float = 2 * SETTLE_S) -> RefitCheck:
        (found,) = self.answers(wait).values()
        return found


FAULTS: dict[str, Callable[[Weights, Weights], Weights]] = {
    "head": lambda old, new: new | {"lm_head.weight": old["lm_head.weight"]},
    "partial": lambda old, new: new | {name: one for name, one in old.items() if "layers.1" in name},
    "scaled": lambda _old, new: {name: 1.5 * one for name, one in new.items()},
    "cast": lambda _old, new: {name: one.bfloat16().float() for name, one in new.items()},
    "lost": lambda _old, new: new | {"layers.0.o_proj.weight": torch.zeros(16, 16)},
    "differs": lambda _old, new: new | {"norm.weight": new["norm.weight"].flip(0) + 0.001},
}


def after_a_right_update(**how: Any) -> tuple[Guard, Weights, Weights]:
    """A guard that has seen version 1, with the weights of versions 1 and 2, which the trainer stated."""
    guard, old = Guard(), model(0)
    new = trained(old, 1)
    guard.state(1, old)
    guard.load(old, 1, **how)
    assert guard.answer().verdict == "agree"
    guard.state(2, new)
    return guard, old, new


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stated", [True, False], ids=["version stated", "updates counted"])
def test_a_fault_in_the_weights_is_named_at_the_update(fault: str, stated: bool) -> None:
    guard, old, new = after_a_right_update(stated=stated)
    guard.load(FAULTS[fault](old, new), 2, stated=stated)
    found = guard.answer(2 * (SETTLE_S if stated else PATIENCE_S))
    assert (found.verdict, found.against, found.is_faulty) == (fault, "trainer", True), found
    assert found.tensors


@pytest.mark.parametrize(("filled", "verdict"), [(0, "skipped"), (13, "late")])
def test_an_update_without_effect_is_skipped_or_late_by_whether_something_was_loaded(filled: int, verdict: str) -> None:
    guard, old, _ = after_a_right_update()
    guard.load(old, 2, filled=filled)
    found = guard.answer()
    assert found.verdict == verdict
    assert "1" in found.text


def test_an_engine_that_stays_one_version_behind_is_late_at_every_update() -> None:
    guard, old, new = after_a_right_update()
    guard.load(new, 2)
    assert guard.answer().verdict == "agree"
    for version in range(3, 7):
        old, new = new, trained(new, version)
        guard.state(version, new)
        guard.load(old, version)
        assert guard.answer().verdict == "late"


@pytest.mark.parametrize(("filled", "verdict"), [(0, "skipped"), (13, "late")])
@pytest.mark.parametrize("counted", [True, False], ids=["update counted", "version only"])
def test_weights_that_no_update_changes_stay_so_named_after_their_version_is_forgotten(
    filled: int, verdict: str, counted: bool
) -> None:
    guard, old, new = after_a_right_update()
    for version in range(2, VERSIONS + 6):
        if not counted:  # the engine's version moves, and nothing is loaded
            guard.updates["e0"] -= 1
        guard.load(old, version, filled=filled)
        assert guard.answer().verdict == verdict, version
        new = trained(new, version + 1)
        guard.state(version + 1, new)


@pytest.mark.parametrize("fault", ["head", "partial"])
@pytest.mark.parametrize("stated", [True, False], ids=["version stated", "updates counted"])
def test_tensors_that_updates_leave_out_stay_so_named_after_their_version_is_forgotten(
    fault: str, stated: bool
) -> None:
    guard, old, new = after_a_right_update(stated=stated)
    for version in range(2, VERSIONS + 6):
        guard.load(FAULTS[fault](old, new), version, stated=stated)
        found = guard.answer(2 * (SETTLE_S if stated else PATIENCE_S))
        assert (found.verdict, found.against) == (fault, "trainer"), (version, found)
        new = trained(new, version + 1)
        guard.state(version + 1, new)


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.sampled_from([1, 2]), st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_a_right_update_agrees_in_every_dtype_and_cut(
    dtype: torch.dtype, ranks: int, seed: int, own: torch.dtype
) -> None:
    guard = Guard()
    weights = {name: one.to(own) for name, one in model(seed).items()}
    guard.state(3, weights)
    guard.load(weights, 3, sketches=in_engine({n: one.float() for n, one in weights.items()}, dtype, ranks))
    assert guard.answer().verdict == "agree"


@given(st.floats(-4.0, 4.0).filter(lambda k: abs(k) > 0.1 and abs(k - 1) > 0.05), st.integers(0, 100))
def test_any_factor_is_found(k: float, seed: int) -> None:
    guard, _, new = after_a_right_update()
    guard.load({name: k * one for name, one in new.items()}, 2)
    found = guard.answer()
    assert found.verdict == "scaled", (k, found)
    assert f"{k:.4g}"[:4] in found.text


@given(st.floats(1e-7, 1e-2), st.integers(0, 1000))
def test_an_update_of_any_size_is_neither_scaled_nor_cast(size: float, seed: int) -> None:
    guard, old, _ = after_a_right_update()
    new = trained(old, seed, size)
    guard.state(2, new)
    guard.load(trained(old, seed + 1, size), 2)
    assert guard.answer().verdict in ("differs", "lost")


def test_a_tensor_that_an_engine_stores_in_another_layout_is_never_a_fault() -> None:
    guard, weights = Guard(), model(0)
    for version in range(1, 5):
        weights = trained(weights, version)
        guard.state(version, weights)
        guard.load(weights | {"layers.0.o_proj.weight": weights["layers.0.o_proj.weight"].t()}, version)
        assert guard.answer().verdict == "agree"


def test_a_change_without_an_update_after_sleep_is_lost() -> None:
    guard, old, _ = after_a_right_update()
    guard.load({name: torch.rand_like(one) * 0.02 for name, one in old.items()}, 1, reason="wake")
    assert guard.answer().verdict == "lost"


def test_values_that_are_no_numbers_are_lost() -> None:
    guard, _, new = after_a_right_update()
    guard.load(new | {"norm.weight": torch.full((16,), math.nan)}, 2)
    assert guard.answer().verdict == "lost"


# --- without the trainer's weights ----------------------------------------------------------------------------------


def alone(*loads: Weights) -> list[str]:
    """The verdicts on the weights that one engine loads in turn, which nobody states."""
    guard, found = Guard(), []
    for version, weights in enumerate(loads):
        guard.load(weights, version)
        found += [one.verdict for one in guard.answers(2 * PATIENCE_S).values()]
    return found


def test_an_engine_alone_is_compared_with_its_own_update_before() -> None:
    first = model(0)
    second = trained(first, 1)
    assert alone(first, second) == ["changed"]
    assert alone(first, second, second, second) == ["changed", "unchanged", "skipped"]
    assert alone(first, {name: 0.5 * one for name, one in first.items()}) == ["scaled"]
    assert alone(first, second | {"norm.weight": first["norm.weight"]}) == ["unchanged"]
    assert alone(first, {name: torch.zeros_like(one) for name, one in first.items()}) == ["lost"]
    assert alone(first, {name: 100 * torch.randn(one.shape) for name, one in first.items()}) == ["lost"]


def fleet(*second: Weights) -> dict[str, str]:
    """The verdicts on engines that had the same weights and then loaded these, all as version 2."""
    guard, first = Guard(), model(0)
    for version, loads in ((1, [first] * len(second)), (2, second)):
        for number, weights in enumerate(loads):
            guard.load(weights, version, engine=f"e{number}")
        found = {engine: one.verdict for engine, one in guard.answers().items()}
    return found


def test_engines_of_one_version_are_compared_with_each_other() -> None:
    old, new = model(0), trained(model(0), 1)
    assert fleet(new, new) == {"e0": "alike", "e1": "alike"}
    assert fleet(new, old)["e1"] == "skipped"
    assert fleet(new, new, FAULTS["head"](old, new))["e2"] == "head"
    assert fleet(new, new, FAULTS["differs"](old, new))["e2"] == "differs"


# --- waiting --------------------------------------------------------------------------------------------------------


def test_a_report_waits_for_the_trainers_statement_of_its_version() -> None:
    guard, _, new = after_a_right_update()
    newer = trained(new, 7)
    guard.load(newer, 3)
    assert guard.answers() == {}
    guard.state(3, newer)
    assert guard.answer().verdict == "agree"


def test_the_next_update_ends_the_wait() -> None:
    guard, _, new = after_a_right_update()
    guard.load(trained(new, 7), 3)
    guard.load(new, 2)
    assert guard.answer().verdict == "agree"


def test_a_version_that_is_stated_after_the_weights_were_read_is_no_fault() -> None:
    guard, _, new = after_a_right_update()
    guard.load(new, 1)
    assert guard.answers(0.1) == {}
    guard.updates["e0"] -= 1
    guard.load(new, 2, filled=0)
    assert guard.answer().verdict == "agree"


def test_an_engine_that_counts_updates_may_have_any_newer_version() -> None:
    guard, _, new = after_a_right_update(stated=False)
    guard.load(new, 17, stated=False)
    assert guard.answer().verdict == "agree"
    newest = trained(new, 9)
    guard.state(9, newest)
    guard.load(new, 18, stated=False, filled=0)
    assert guard.answer(2 * PATIENCE_S).verdict == "skipped"
    guard.load(newest, 19, stated=False)
    assert guard.answer().verdict == "agree"


def test_every_verdict_is_an_outcome_of_the_check_and_only_faults_alarm() -> None:
    check = BY_NAME["refit"]
    assert set(check.outcomes) == FAULTY | {"agree", "alike", "changed", "unchanged"}
    assert {outcome for outcome in check.outcomes if check.alarms(outcome)} == FAULTY


# --- sketches -------------------------------------------------------------------------------------------------------


def read(tensors: Iterable[tuple[str, Any]]) -> list[wire.WeightSketch]:
    found = sketch(tensors)
    return [] if found is None else [wire.WeightSketch(*one) for one in found.read()]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 10**6))
def test_sketches_add_up_over_rows_and_do_not_depend_on_neighbours(rows: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    one, two = torch.randn(rows, width), torch.randn(rows + 3, width)
    first, second, both = read([("a", one), ("b", two), ("c", torch.cat([one, two]))])
    assert (int(first.hashes[0], 16) + int(second.hashes[0], 16)) % (1 << 64) == int(both.hashes[0], 16)
    assert math.isclose(first.square + second.square, both.square, rel_tol=1e-9)
    assert read([("a", one)])[0] == first


def test_a_sketch_of_what_can_not_be_read_leaves_it_out() -> None:
    odd = [("meta", torch.ones(4, 4, device="meta")), ("sparse", torch.eye(4).to_sparse()), ("empty", torch.ones(0))]
    assert [one.name for one in read([*odd, ("a", torch.ones(4)), ("c", torch.ones(4, dtype=torch.complex64))])] == [
        "a"
    ]
    assert read(odd) == []


def test_column_multipliers_are_odd_and_distinct() -> None:
    found = column_multipliers(8, torch.device("cpu")).tolist()
    assert all(one % 2 for one in found) and len(set(found)) == 8
