"""``rltop metrics`` and ``rltop compute``: output and error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rltop.backend.metrics import BY_NAME, FAMILIES
from rltop.tui.cli.main import main

ROLLOUT = np.array([[-0.5, -1.0, -2.0], [-0.1, -0.2, -9.0]])
TRAINER = ROLLOUT + np.array([[0.1, -0.1, 0.0], [0.0, 0.2, 5.0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])
GIVEN = {"trainer_logprobs": TRAINER, "rollout_logprobs": ROLLOUT, "mask": MASK}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def file_of(directory: Path, **arrays: Any) -> Path:
    path = directory / "arrays.npz"
    np.savez(path, **arrays)
    return path


def test_compute_prints_one_object_with_all_metrics(tmp_path: Path) -> None:
    result = run("compute", file_of(tmp_path, **GIVEN), "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values.keys() == BY_NAME.keys()
    assert values["tokens"] == 5
    assert values["sequences"] == 2
    assert values["logp_abs_diff_mean"] == pytest.approx(0.4 / 5, rel=1e-12)
    assert values["logp_diff_max"] == pytest.approx(0.2, rel=1e-12)
    assert values["entropy"] is None


def test_compute_prints_units_in_its_text_output(tmp_path: Path) -> None:
    lines = run("compute", file_of(tmp_path, **GIVEN)).stdout.splitlines()
    (line,) = [line for line in lines if line.split()[0] == "logp_abs_diff_mean"]
    assert line.split()[1:] == ["0.08", "nats"]
    assert not any("None" in line or "entropy " in line for line in lines)


def test_a_single_sequence_and_packed_sequences_are_accepted(tmp_path: Path) -> None:
    one = {name: array[0] for name, array in GIVEN.items()}
    assert json.loads(run("compute", file_of(tmp_path, **one), "--json").stdout)["sequences"] == 1
    flat = {name: array.ravel() for name, array in GIVEN.items()}
    packed = run("compute", file_of(tmp_path, **flat, cu_seqlens=[0, 3, 6]), "--json").stdout
    assert json.loads(packed) == json.loads(run("compute", file_of(tmp_path, **GIVEN), "--json").stdout)


def test_every_argument_of_the_collector_is_accepted(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, **GIVEN, token_ids=np.arange(6).reshape(2, 3), prompt_ids=[[7], [8]], rewards=[0.0, 1.0],
        advantages=[-1.0, 1.0], entropy=np.ones((2, 3)), old_logprobs=TRAINER, old_version=3, rollout_versions=[3, 2],
        policy_version=4, clip_low=0.95, clip_high=1.15, ratio_base="rollout", objective="ppo", temperature=1.0,
    )  # fmt: skip
    result = run("compute", path, "--json")
    values = json.loads(result.stdout)
    assert result.stderr == ""
    assert (values["backend_tokens"], values["stale_backend_tokens"], values["lag_max"]) == (3, 2, 2)
    assert values["clip_frac_low"] == pytest.approx(1 / 5)
    assert values["clip_frac_high"] == pytest.approx(1 / 5)
    assert values["reward_std"] == 0.5


def shifted_of(arrays: dict[str, Any], form: str) -> dict[str, Any]:
    """The same rows after one more token each, with per-token arrays of the next tokens. ``mask`` may be as long."""
    filled = {name: np.pad(array, ((0, 0), (1, 0)), constant_values=1) for name, array in arrays.items()}
    if form == "packed":
        flat = {name: array.ravel()[1:] for name, array in filled.items()}
        return flat | {"shifted": True, "cu_seqlens": [0, 4, 8]}
    if form == "with ids":
        return arrays | {"shifted": 1, "token_ids": np.zeros((2, 4), int)}
    if form == "a longer mask":
        return arrays | {"shifted": True, "mask": filled["mask"]}
    return arrays | {"shifted": np.array([True])}


@pytest.mark.parametrize("form", ["rows", "with ids", "a longer mask", "packed"])
def test_arrays_of_the_next_tokens_give_the_figures_of_arrays_in_their_own_columns(tmp_path: Path, form: str) -> None:
    plain = json.loads(run("compute", file_of(tmp_path, **GIVEN), "--json").stdout)
    result = run("compute", file_of(tmp_path, **shifted_of(GIVEN, form)), "--json")
    shifted = json.loads(result.stdout)
    for name in ("tokens", "sequences", "logp_abs_diff_mean", "kl_k3", "ratio_mean"):
        assert shifted[name] == pytest.approx(plain[name], rel=1e-12), name
    assert result.stderr == ""


def test_the_gap_is_broken_down_by_environment(tmp_path: Path) -> None:
    path = file_of(tmp_path, **GIVEN, environments=["math", "code"])
    found = json.loads(run("compute", path, "--json").stdout)["environments"]
    assert [(one["label"], one["tokens"]) for one in found] == [("math", 3), ("code", 2)]
    assert found[0]["abs_diff"]["mean"] == pytest.approx(0.2 / 3)
    text = run("compute", path).stdout
    assert "environment" in text and "math" in text
    one_row = {name: array[0] for name, array in GIVEN.items()}
    (alone,) = json.loads(run("compute", file_of(tmp_path, **one_row, environments="math"), "--json").stdout)[
        "environments"
    ]
    assert (alone["label"], alone["tokens"]) == ("math", 3)


def test_unused_arrays_are_reported(tmp_path: Path) -> None:
    result = run("compute", file_of(tmp_path, **GIVEN, old_logprob=TRAINER), "--json")
    assert result.exit_code == 0
    assert result.stderr == "not used: old_logprob\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "mask: missing; required are trainer_logprobs, rollout_logprobs, mask"),
        ({"rollout_logprobs": ROLLOUT[:, :2]}, "rollout_logprobs: shape [2, 2]; expected shape [2, 3] as trainer_logp"),
        ({"mask": MASK[0]}, "mask: shape [3]; expected shape [2, 3] as trainer_logprobs"),
        ({"rewards": [1.0]}, "rewards: shape [1]; expected [2], one per row"),
        ({"trainer_logprobs": np.array([["a", "b"]])}, "trainer_logprobs: dtype <U1; expected numbers"),
        ({"objective": "reinforce"}, "objective: reinforce; expected one of ppo, gspo"),
        ({"shifted": [True, False]}, "shifted: bool of shape [2]; expected a single bool"),
        ({"shifted": 2}, "shifted: int64 of shape []; expected a single bool"),
        ({"environments": ["math"]}, "environments: 1 entries; expected 2, one per row"),
        ({"environments": [1, 2]}, "environments: 1; expected None or a string of at most 256 characters"),
        ({"clip_low": [0.8, 0.9]}, "clip_low: float64 of shape [2]; expected a single number"),
        ({"rewards": np.array([object(), None])}, "Object arrays cannot be loaded"),
    ],
)  # fmt: skip
def test_an_invalid_array_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (GIVEN | change).items() if array is not None}
    result = run("compute", file_of(tmp_path, **arrays))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"PK\x03\x04nonsense", b"\x93NUMPY\x01\x00nonsense", b"\x80\x04N."]
)
def test_a_file_that_is_not_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    result = run("compute", path)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_file_a_directory_and_a_bare_array_are_refused(tmp_path: Path) -> None:
    bare = tmp_path / "x.npy"
    np.save(bare, ROLLOUT)
    for path in (tmp_path / "none.npz", tmp_path, bare):
        result = run("compute", path)
        assert result.exit_code == 1
        assert str(path) in result.stderr


def test_the_catalogue_lists_every_metric_with_its_unit() -> None:
    listing = run("metrics").stdout
    for family in FAMILIES:
        assert family.title in listing
        for metric in family.metrics:
            assert any(
                line.split()[0] == metric.name and metric.formula in line and (metric.unit or "own") in line
                for line in listing.splitlines()
                if line.startswith("  ")
            ), metric.name


def test_one_metric_is_described_as_text_and_as_json() -> None:
    text = run("metrics", "kl_k3").stdout
    for part in ("nats", "exp(d) - 1 - d", "Schulman", "0.001", "verl: rollout_corr/k3_kl", "NeMo-RL: gen_kl_error"):
        assert part in text
    (entry,) = json.loads(run("metrics", "kl_k3", "--json").stdout)["metrics"]
    assert (entry["name"], entry["unit"], entry["thresholds"]["amber"]) == ("kl_k3", "nats", 1e-3)
    assert len(json.loads(run("metrics", "--json").stdout)["metrics"]) == len(BY_NAME)


def test_a_metric_that_is_not_computed_has_a_reason_and_an_alternative() -> None:
    result = run("metrics", "rank_tail")
    assert result.exit_code == 1
    assert "not computed" in result.output and "low_prob_frac" in result.output


@pytest.mark.parametrize(
    ("key", "metric"),
    [
        ("mismatch_kl/all/mean", "kl_k3"),
        ("mismatch_kl/math/mean", "kl_k3"),  # of one environment
        ("mismatch_kl/mean", "kl_k3_seq_mean"),
        ("train/sampling/importance_sampling_ratio/mean", "seq_ratio_kept_mean"),  # with a logger's prefix
        ("kl_new_old", "kl_k3_seq_mean"),  # without the framework's
        ("rollout_corr/k3_kl", "kl_k3"),
        ("actor/ppo_kl", "ppo_kl"),
    ],
)
def test_a_key_of_a_framework_prints_its_metric_and_the_place_it_was_read_in(key: str, metric: str) -> None:
    lines = run("metrics", key).stdout.splitlines()
    assert any(line.split()[:2] == ["metric", metric] or line.startswith(f"  metric       {metric},") for line in lines)
    assert metric in lines  # its own entry follows
    found = json.loads(run("metrics", key, "--json").stdout)
    assert metric in {entry["metric"] for entry in found["keys"]} <= {entry["name"] for entry in found["metrics"]}
    assert all(entry["place"] and entry["version"] for entry in found["keys"])


def test_a_key_that_differs_says_how() -> None:
    assert "mean over sequences of means" in run("metrics", "train/ppo_kl").stdout
    assert "old - rollout" in run("metrics", "gen_kl_error").stdout


@pytest.mark.parametrize(
    ("name", "near"), [("kl_k33", "kl_k3"), ("actor/ppokl", "actor/ppo_kl"), ("gen_kl", "gen_kl_error")]
)
def test_an_unknown_name_lists_similar_metrics_and_keys(name: str, near: str) -> None:
    result = run("metrics", name)
    assert result.exit_code == 1
    assert near in result.stderr
