"""Fingerprint output, and launch options that vLLM's parser turns back into the same flags."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rltop.backend.text import fingerprint_text
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.wire import FlagState
from tests.support import pictures
from tests.tui.cli.test_cli import Engine, answer, home, rltop, start_hub, wait_for_engine

__all__ = ["home"]

FACTS = {
    "vllm_version": "0.32.0", "dtype": "bfloat16", "model": "/models/" + "deep/" * 20 + "sort",
    "default_sampling": "temperature=0.6, top_k=20", "default_sampling_from": "the model's generation_config.json",
    "block_size": "32",
}  # fmt: skip


def differing() -> Any:
    odd = FACTS | {"dtype": "float16", "default_sampling": "vLLM's own"}
    return pictures.picture(
        engines={
            "e0": pictures.engine("e0", fingerprint=FACTS, differs={"dtype": "e2 has float16"}),
            "e1": pictures.engine("e1", fingerprint=FACTS, differs={"dtype": "e2 has float16"}),
            "e2": pictures.engine("e2", fingerprint=odd, health="silent", differs={"dtype": "e0, e1 have bfloat16"}),
        },
        trainer=msgspec.structs.replace(pictures.picture().trainer, facts={"dtype": "float32", "rank_of_lora": "8"}),
    )


def test_identical_engines_share_a_column_and_mismatches_are_marked() -> None:
    text = fingerprint_text.as_text(differing())
    lines = {line[3:].split("  ")[0].strip(): line for line in text.splitlines()[2:]}
    assert text.splitlines()[0] == "run sort: 3 engines; dtype differs."
    assert lines["fact"].split() == ["fact", "e0,", "e1", "e2", "(silent)", "trainer"]
    assert lines["dtype"].split() == ["≠", "dtype", "bfloat16", "≠", "float16", "≠", "float32"]
    assert lines["model"].count("…") == 2
    assert lines["rank_of_lora"].split() == ["rank_of_lora", "-", "-", "8"]
    assert lines["prefix_caching"].split() == ["prefix_caching", "on", "on", "-"]
    why = "other rounding: the gap grows with the length of an answer"
    assert f"\n≠ dtype: e0, e1 have bfloat16; e2 has float16; {why}\n" in text
    assert (
        "· e0, e1: requests that leave them unset get temperature 0.6, top_k 20 (from the model's "
        "generation_config.json)" in text
    )


def test_matching_engines_are_reported_as_such() -> None:
    agreeing = pictures.picture(engines={"e0": pictures.engine("e0", fingerprint={"dtype": "float32"})})
    assert fingerprint_text.as_text(agreeing).startswith(
        "run sort: 1 engine, nothing to compare with. The trainer stated no facts"
    )
    assert "≠" not in fingerprint_text.as_text(agreeing)
    assert fingerprint_text.as_text(pictures.picture()) == "run sort: no engine has reported yet"


def test_the_json_has_every_fact_untruncated() -> None:
    made = json.loads(json.dumps(fingerprint_text.as_json(differing()), allow_nan=False))
    assert made.keys() == {"run", "agree", "engines", "trainer"}
    assert made["agree"] is False
    first = made["engines"][0]
    assert first["facts"]["model"] == FACTS["model"]
    assert first["facts"]["prefix_caching"] == "on"
    assert first["default_sampling"] == {"temperature": "0.6", "top_k": "20"}
    assert first["differs"] == {"dtype": "e2 has float16"}
    assert made["trainer"]["facts"] == {"dtype": "float32", "rank_of_lora": "8"}


def test_status_names_the_mismatched_facts() -> None:
    from rltop.backend.text import status

    assert "  ≠ dtype: e0, e1 have bfloat16; e2 has float16; other rounding" in status.as_text(differing())
    assert "≠" not in status.as_text(pictures.healthy())


def engine_with(**flags: str | None) -> Any:
    states = {name: FlagState(value, True) for name, value in flags.items()}
    return pictures.engine("e0", flags=pictures.flags() | states)


def parsed(line: str) -> Any:
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return parser.parse_args(shlex.split(line))


def test_vllm_reads_the_launch_options_back_as_the_flags() -> None:
    line, remarks = fingerprint_text.launch_args(
        engine_with(prefix_caching="off", async_scheduling="on", logprobs_mode="raw", lm_head_fp32="on")
    )
    arguments = parsed(line)
    assert (arguments.enable_prefix_caching, arguments.async_scheduling) == (False, True)
    assert (arguments.logprobs_mode, arguments.hf_overrides) == ("raw_logprobs", {"head_dtype": "float32"})
    assert remarks == []


@pytest.mark.parametrize("flag", FLAGS, ids=[flag.name for flag in FLAGS])
def test_every_launch_option_of_the_table_is_one_of_vllms(flag: Any) -> None:
    assert set(flag.launch_args) <= set(flag.values)
    for line in flag.launch_args.values():
        parsed(line)


def test_flags_without_a_launch_option_get_a_remark() -> None:
    engine = engine_with(prefix_caching="mixed", lm_head_fp32=None)
    engine.flags["async_scheduling"] = FlagState("off", True, "", "depth 1")
    line, remarks = fingerprint_text.launch_args(msgspec.structs.replace(engine, health="gone"))
    assert "prefix" not in line
    assert "--no-async-scheduling" in line
    assert remarks == [
        "engine e0: exited; these are its last reported flags",
        "prefix_caching reads mixed, which no launch option reproduces",
        "async_scheduling is off (depth 1); the launch option sets off in full",
        "lm_head_fp32: this engine reports no such flag",
    ]


def test_the_commands_print_it_for_a_live_run(home: Path) -> None:
    rundir = start_hub("prints")
    with Engine(rundir):
        wait_for_engine(rundir)
        made = answer("fingerprint", "prints", "--json")
        text = rltop("fingerprint").stdout
        line = rltop("launch-args", "e0")
        wrong = rltop("launch-args", "e7", "--run", "prints")
    assert made["agree"] is True
    assert made["engines"][0]["facts"]["vllm_version"] == "0.32.0"
    assert "vllm_version" in text
    assert (line.exit_code, line.stdout) == (0, "--enable-prefix-caching --async-scheduling\n")
    assert "# logprobs_mode: this engine reports no such flag" in line.stderr
    assert (wrong.exit_code, wrong.stderr) == (1, "Error: no engine 'e7'; engines of this run: e0\n")


def test_the_commands_name_a_missing_run(home: Path) -> None:
    for command in (["fingerprint", "nosuch"], ["launch-args", "e0", "--run", "nosuch"]):
        result = rltop(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no run named 'nosuch'" in result.stderr
