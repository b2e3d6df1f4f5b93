"""Options of the demo: parsing, validation, encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo import jobs
from rltop.backend.demo.options import DemoOptions, Setting, parse_setting
from rltop.backend.demo.progress import ranges
from rltop.collectors.contract.flags import FLAGS

settings = st.builds(
    lambda step, flag, index: Setting(step, flag.name, flag.values[index % len(flag.values)]),
    st.integers(0, 10_000), st.sampled_from(FLAGS), st.integers(0, 3),
)  # fmt: skip


@given(settings)
def test_a_setting_is_parsed_from_its_text(setting: Setting) -> None:
    assert parse_setting(str(setting)) == setting


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prefix_caching=off", r"expected N:FLAG=VALUE"),
        ("5:prefix_caching", r"expected N:FLAG=VALUE"),
        ("-1:prefix_caching=off", r"expected N:FLAG=VALUE"),
        ("x:prefix_caching=off", r"expected N:FLAG=VALUE"),
        ("²:prefix_caching=off", r"expected N:FLAG=VALUE"),
        ("", r"expected N:FLAG=VALUE"),
        ("5:caching=off", r"no flag 'caching'; there are prefix_caching, async_scheduling"),
        ("5:prefix_caching=maybe", r"prefix_caching can be on or off, not 'maybe'"),
    ],
)
def test_an_invalid_setting_is_rejected_with_the_valid_ones(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_setting(text)


@given(st.text(max_size=30))
def test_every_parsed_text_prints_as_itself(text: str) -> None:
    try:
        setting = parse_setting(text)
    except ValueError:
        return
    assert int(text.partition(":")[0]) == setting.step


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"engines": 0}, "engines: 0"),
        ({"engines": 9}, "engines: 9"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"objective": "dpo"}, "objective: 'dpo'; expected ppo or gspo"),
        ({"matched": -1}, "matched: -1"),
        ({"steps": 5, "settings": (Setting(5, "prefix_caching", "off"),)}, "the last of 5 steps is 4"),
    ],
)
def test_invalid_options_are_rejected(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DemoOptions(**wrong)


@given(settings, st.sampled_from([None, Path("/tmp/a b.json")]))
def test_options_are_unchanged_by_encoding(setting: Setting, path: Path | None) -> None:
    options = DemoOptions(steps=setting.step + 1, settings=(setting,), json_path=path, keep_hub=True)
    assert jobs.decode(jobs.encode(options), DemoOptions) == options


def test_numbers_are_shown_as_ranges() -> None:
    assert ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
    assert ranges([]) == ""
