"""Verdicts of probes on synthetic measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rltop.backend.api import Effect, EffectEstimate, EffectRow, Snapshot
from rltop.backend.api.probe_result import ProbeFinding
from rltop.backend.api.samples import Samples
from rltop.backend.commands.validation import RejectedError
from rltop.backend.fleet.engines import Engines
from rltop.backend.join.versions import VersionAlignment
from rltop.backend.probes.canary import result_of
from rltop.backend.probes.digest_verdict import KnownDigests
from rltop.backend.probes.inputs import InputChooser, ScoringInput
from rltop.backend.probes.reports import EngineReport, Scored
from rltop.backend.probes.scores import judge_cache_salt, judge_cross_replica, judge_rescore
from rltop.collectors.contract import wire
from rltop.collectors.contract.digests import as_hex, checksum, weight_digests
from tests.support.hub_messages import Written, engine_state, rollouts

RNG = np.random.default_rng(1)
FP32 = {"e0": "float32", "e1": "torch.float32", "e2": "float32"}


def scoring_inputs(count: int = 8, tokens: int = 20) -> list[ScoringInput]:
    inputs = []
    for number in range(count):
        recorded = RNG.uniform(-3, 0, tokens).astype(np.float32)
        inputs.append(
            ScoringInput(
                f"r{number}", np.arange(4, dtype=np.int32), np.arange(tokens, dtype=np.int32), recorded, recorded
            )
        )
    return inputs


def report(engine: str, scores: list[Scored], *, version: int = 3, **about: Any) -> EngineReport:
    body = wire.ProbeReport("c", engine, "p", [], version, **about)
    return EngineReport(body, scores)


def cold(chosen: list[ScoringInput], error: float = 0.0, only: set[int] | None = None) -> list[Scored]:
    """Scores of whole passages: the rollout logprobs with an error of this size on each token."""
    found = []
    for number, one in enumerate(chosen):
        size = error if only is None or number in only else 0.0
        values = np.concatenate([np.full(one.prompt.size - 1, -1.0), one.recorded + size * RNG.choice([-1, 1], 20)])
        found.append(Scored(number, "cold", 1, values.astype(np.float32), 0))
    return found


def judged(error: float, *, dtype: str = "float32", count: int = 8, only: set[int] | None = None) -> ProbeFinding:
    chosen = scoring_inputs(count)
    return judge_rescore({"e0": report("e0", cold(chosen, error, only))}, {"e0": chosen}, {"e0": dtype})


@pytest.mark.parametrize(
    ("error", "dtype", "verdict"),
    [(1e-6, "float32", "match"), (1e-3, "float32", "differ"), (1e-2, "bfloat16", "match"), (0.1, "bf16", "differ")],
)
def test_a_rescore_is_compared_with_the_tolerance_of_the_dtype(error: float, dtype: str, verdict: str) -> None:
    found = judged(error, dtype=dtype)
    assert found.verdict == verdict
    assert found.odd == (["e0"] if verdict == "differ" else [])
    assert found.policy_version == 3
    assert found.evidence[0].value == pytest.approx(error, rel=0.2, abs=1e-6)
    assert (found.evidence[0].n, found.evidence[1].n) == (8, 160)


def test_one_outlying_sequence_decides_and_too_few_sequences_do_not() -> None:
    assert judged(0.05, only={3}).verdict == "differ"
    assert judged(1e-6, count=3).verdict == "unclear"
    assert judged(0.5, count=1).verdict == "differ"
    assert judge_rescore({"e0": report("e0", [])}, {"e0": []}, FP32).verdict == "unclear"


def test_a_truncated_passage_is_compared_up_to_its_end() -> None:
    chosen = scoring_inputs(5)
    scores = [Scored(s.passage, s.way, s.first, s.logprobs[:10], 0) for s in cold(chosen)]
    found = judge_rescore({"e0": report("e0", scores)}, {"e0": chosen}, FP32)
    assert found.verdict == "match"
    assert found.evidence[1].n == 5 * 7


def salts(stale: float, path: float, *, cached: int = 32, count: int = 8) -> ProbeFinding:
    scores = []
    for number in range(count):
        true = RNG.uniform(-3, 0, 40).astype(np.float32)
        sign = RNG.choice([-1, 1], 40).astype(np.float32)
        scores.append(Scored(number, "hot", 33, (true + stale * sign)[32:], cached))
        scores.append(Scored(number, "cold", 1, true + path * sign, 0))
        if cached:
            scores.append(Scored(number, "warm", 33, true[32:], cached))
    return judge_cache_salt({"e0": report("e0", scores)}, FP32)


def test_a_cached_prefix_is_stale_if_its_age_matters_more_than_the_compute_path() -> None:
    assert salts(0.0, 1e-6).verdict == "fresh"
    found = salts(0.02, 1e-6)
    assert (found.verdict, found.odd) == ("stale", ["e0"])
    assert salts(0.02, 0.02).verdict == "fresh"  # no more than the compute path alone
    assert salts(0.0, 0.0, cached=0).verdict == "not_cached"
    assert salts(1e-6, 1e-6, count=2).verdict == "unclear"


def test_the_differing_engine_is_identified_by_the_trainer_or_by_the_other_engines() -> None:
    chosen = scoring_inputs()
    fine, wrong = cold(chosen, 1e-6), cold(chosen, 0.1)
    two = {"e0": chosen, "e1": chosen}
    assert (
        judge_cross_replica({"e0": report("e0", fine), "e1": report("e1", fine)}, two, FP32, neutral=True).verdict
        == "agree"
    )
    pair = {"e0": report("e0", fine), "e1": report("e1", wrong)}
    found = judge_cross_replica(pair, two, FP32, neutral=True)
    assert (found.verdict, found.odd) == ("differ", ["e1"])
    unnamed = judge_cross_replica(pair, two, FP32, neutral=False)
    assert (unnamed.verdict, unnamed.odd) == ("differ", [])
    assert "weight-digest" in unnamed.text
    three = pair | {"e2": report("e2", fine)}
    assert judge_cross_replica(three, two | {"e2": chosen}, FP32, neutral=False).odd == ["e1"]
    other = {"e0": report("e0", fine), "e1": report("e1", wrong, version=4)}
    assert judge_cross_replica(other, two, FP32, neutral=True).verdict == "unclear"


def digests(value: str, *, small: str = "0", fused: str | None = None) -> list[wire.Digest]:
    rows = fused or value * 16
    return [
        wire.Digest("m.qkv_proj.weight", "packed", value * 16, rows, "float32", 8192),
        wire.Digest("m.norm.weight", "parameter", small * 16, small * 16, "float32", 64),
        wire.Digest("m.scale", "buffer", "5" * 16, "5" * 16, "float32", 1),
    ]


def of(engine: str, value: str, updates: int, *, version: int = 3, **about: Any) -> EngineReport:
    return report(engine, [], version=version, weight_updates=updates, digests=digests(value, **about))


EPOCHS = {"e0": "l0", "e1": "l1"}


def test_of_two_different_replicas_the_one_whose_update_changed_nothing_is_named() -> None:
    weights = KnownDigests()
    first = weights.judge({"e0": of("e0", "a", 1), "e1": of("e1", "a", 1)}, EPOCHS)
    assert first.verdict == "agree"
    assert any("run it again after the next update" in note for note in first.notes)
    found = weights.judge({"e0": of("e0", "b", 2, small="1"), "e1": of("e1", "a", 2)}, EPOCHS)
    assert (found.verdict, found.odd) == ("differ", ["e1"])
    assert "m.qkv_proj.weight" in found.text


def test_without_earlier_digests_two_engines_differ_and_neither_is_named() -> None:
    found = KnownDigests().judge({"e0": of("e0", "b", 2), "e1": of("e1", "a", 2)}, EPOCHS)
    assert (found.verdict, found.odd) == ("differ", [])
    assert "does not show which" in found.text


def test_of_three_engines_the_one_that_differs_is_named() -> None:
    reports = {name: of(name, value, 2) for name, value in (("e0", "a"), ("e1", "b"), ("e2", "a"))}
    assert KnownDigests().judge(reports, EPOCHS).odd == ["e1"]


def test_an_update_without_effect_is_found_although_all_engines_are_equal() -> None:
    weights = KnownDigests()
    weights.judge({"e0": of("e0", "a", 1), "e1": of("e1", "a", 1)}, EPOCHS)
    found = weights.judge({"e0": of("e0", "a", 2), "e1": of("e1", "a", 2)}, EPOCHS)
    assert (found.verdict, found.odd) == ("not_applied", ["e0", "e1"])
    same = weights.judge({"e0": of("e0", "a", 2), "e1": of("e1", "a", 2)}, EPOCHS)
    assert same.verdict == "agree"  # no update since


def test_an_unchanged_large_weight_is_a_partial_update_and_a_small_one_is_not() -> None:
    weights = KnownDigests()
    weights.judge({"e0": of("e0", "a", 1)}, EPOCHS)
    small = weights.judge({"e0": of("e0", "b", 2)}, EPOCHS)  # the norm stayed
    assert small.verdict == "agree"
    large = weights.judge({"e0": of("e0", "b", 3, small="1")}, EPOCHS)
    assert (large.verdict, large.odd) == ("partial", ["e0"])
    assert "m.qkv_proj.weight" in large.text


def test_digests_of_an_earlier_engine_process_are_not_compared() -> None:
    weights = KnownDigests()
    weights.judge({"e0": of("e0", "a", 1)}, {"e0": "l0"})
    assert weights.judge({"e0": of("e0", "a", 2)}, {"e0": "l9"}).verdict == "agree"


def test_the_trainers_parts_add_up_to_an_engines_fused_weight() -> None:
    fused = {"qkv_proj": ["q_proj", "k_proj"]}
    body = wire.ProbeReport("c", "e0", "p", [], 3, 1, digests=digests("a", fused=f"{7:016x}"), fused=fused)
    rows = {"m.q_proj.weight": f"float32:{(1 << 64) - 1:016x}", "m.k_proj.weight": f"float32:{8:016x}"}
    weights = KnownDigests()
    weights.add_trainer_digests(wire.StepClosed(0, 0, 1, 3, weight_digests=rows))
    right = weights.judge({"e0": EngineReport(body, [])}, EPOCHS)
    assert right.verdict == "agree"
    assert "e0: 1 of 1 weights match the trainer's of this version" in right.notes
    weights.add_trainer_digests(wire.StepClosed(0, 0, 1, 3, weight_digests={"m.k_proj.weight": f"float32:{9:016x}"}))
    wrong = weights.judge({"e0": EngineReport(body, [])}, EPOCHS)
    assert (wrong.verdict, wrong.odd) == ("not_the_trainer", ["e0"])


def test_ranks_that_cut_a_weight_by_rows_or_columns_add_up_to_the_trainers() -> None:
    whole = np.arange(64, dtype=np.float32).reshape(8, 8)
    cuts = {"by_rows": np.split(whole, 2), "by_columns": np.split(whole, 2, 1), "replicated": [whole, whole]}

    def report(wrong: str = "") -> EngineReport:
        found = []
        for name, parts in cuts.items():
            for rank, part in enumerate(parts):
                sums = checksum(part + np.float32(name == wrong))
                rows, columns = as_hex(sums.rows), as_hex(sums.columns)
                found.append(wire.Digest(name, "parameter", as_hex(sums.whole), rows, "float32", 64, rank, columns))
        return EngineReport(wire.ProbeReport("c", "e0", "p", [], 3, 1, digests=found), [])

    weights = KnownDigests()
    weights.add_trainer_digests(wire.StepClosed(0, 0, 1, 3, weight_digests=weight_digests(dict.fromkeys(cuts, whole))))
    right = weights.judge({"e0": report()}, EPOCHS)
    assert right.verdict == "agree"
    assert "e0: 3 of 3 weights match the trainer's of this version" in right.notes
    for wrong in cuts:
        found = weights.judge({"e0": report(wrong)}, EPOCHS)
        assert (found.verdict, found.odd) == ("not_the_trainer", ["e0"])
        assert wrong in found.text


def test_digests_of_another_dtype_are_not_compared() -> None:
    weights = KnownDigests()
    weights.add_trainer_digests(wire.StepClosed(0, 0, 1, 3, weight_digests={"m.norm.weight": f"bfloat16:{9:016x}"}))
    found = weights.judge({"e0": of("e0", "a", 1)}, EPOCHS)
    assert found.verdict == "agree"
    assert any("none of the trainer's digests" in note for note in found.notes)


def chooser(*written: Written, **state: Any) -> InputChooser:
    engines = Engines(VersionAlignment())
    mode = state.pop("mode", "raw")
    flags = {"logprobs_mode": wire.FlagState(mode, True)}
    engines.set_state(wire.Envelope(1, "e0", "l", 0, 1.0), engine_state("e0", flags=flags, **state), 1.0)

    def samples() -> Samples:
        raise ValueError("none")

    made = InputChooser(engines, samples)
    for one in written:
        made.recent.add(*rollouts([one]))
    return made


def rolled(number: int, versions: list[int | None], **about: Any) -> Written:
    return Written([1, 2, number], [3, 4, 5], [-1.0, -2.0, -3.0], versions, request_id=f"r{number}", **about)


def test_a_rescore_uses_the_newest_rollouts_of_the_current_weights() -> None:
    made = chooser(rolled(0, [3, 3, 3]), rolled(1, [2, 2, 3]), rolled(2, [2, 2, 2]), rolled(3, [3, 3, 3]))
    (passages,) = made.choose("prefill-rescore", ["e0"]).values()
    assert [one.request_id for one in passages] == ["r3", "r0"]
    assert np.frombuffer(passages[0].ids, "<i4").tolist() == [1, 2, 3, 3, 4, 5]
    assert passages[0].start == 3
    assert made.take_chosen()["e0"][0].recorded.tolist() == [-1.0, -2.0, -3.0]


def test_a_rescore_without_usable_rollouts_is_rejected_with_the_reason() -> None:
    with pytest.raises(RejectedError, match="no rollout of e0 has finished yet"):
        chooser().choose("prefill-rescore", ["e0"])
    with pytest.raises(RejectedError, match="under its current weights"):
        chooser(rolled(0, [2, 2, 2])).choose("prefill-rescore", ["e0"])
    hot, arrays = rollouts([rolled(0, [3, 3, 3])])
    hot.rollouts[0].sampling["temperature"] = 0.7
    made = chooser(mode="processed")
    made.recent.add(hot, arrays)
    with pytest.raises(RejectedError, match="other sampling parameters than temperature 1"):
        made.choose("prefill-rescore", ["e0"])
    raw = chooser(mode="raw")
    raw.recent.add(hot, arrays)
    assert raw.choose("prefill-rescore", ["e0"])["e0"] != []  # raw logprobs are before temperature


def test_rollouts_that_hit_the_cache_come_first_with_different_prompts() -> None:
    made = chooser(
        rolled(0, [3] * 3, cached=2),
        rolled(1, [3] * 3, cached=0),
        rolled(0, [3] * 3, cached=2),
        rolled(2, [3] * 3, cached=2),
    )
    (passages,) = made.choose("cache-salt", ["e0"]).values()
    assert [one.request_id for one in passages] == ["r2", "r0", "r1", "r0"]


def test_the_passages_of_one_probe_are_bounded() -> None:
    many = [Written(list(range(3000)), [3, 4], [-1.0, -1.0], [3, 3], request_id=f"r{n}") for n in range(12)]
    (passages,) = chooser(*many).choose("prefill-rescore", ["e0"]).values()
    assert len(passages) == 5  # of 16384 tokens
    assert len(chooser(*(rolled(n, [3] * 3) for n in range(80))).choose("cross-replica", ["e0"])["e0"]) == 8


def test_the_effect_of_a_canary_is_the_result_of_a_probe() -> None:
    moved = EffectRow("kl_k3", "nats", EffectEstimate(1.0, 2.0, 1.0, 0.5, 1.5), None, "up", after=9)
    effect = Effect("c", "lm_head_fp32", "off", "on", ["e0"], [], 1, 9, 0, "", [], [moved])
    picture = Snapshot("run", "h", 0, 0.0, 9.0)
    found = result_of(effect, picture)
    assert (found.verdict, found.odd, found.code) == ("changed", ["e0"], "P8")
    assert (found.evidence[0].low, found.evidence[0].n) == (0.5, 9)
    for verdict, word in (("none", "no_effect"), ("not_yet", "not_yet"), ("unclear", "unclear")):
        row = EffectRow("kl_k3", "nats", None, None, verdict, "noisy", 4)
        assert result_of(Effect("c", "f", "a", "b", ["e0"], [], 1, 9, 0, "", [], [row]), picture).verdict == word
