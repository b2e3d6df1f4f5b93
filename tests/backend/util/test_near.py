"""Suggestions for wrong words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo.faults import FAULTS
from rltop.backend.metrics import BY_NAME as METRICS
from rltop.backend.util.near import did_you_mean, nearest
from rltop.collectors.contract.flags import BY_NAME as FLAGS
from rltop.collectors.contract.probes import BY_NAME as PROBES
from rltop.tui.cli.main import main

WORDS = {
    "commands": list(main.commands), "flags": list(FLAGS), "faults": [fault.name for fault in FAULTS],
    "probes": list(PROBES), "metrics": list(METRICS),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
@given(st.data())
def test_one_wrong_letter_is_recognised(kind: str, data: st.DataObject) -> None:
    known = WORDS[kind]
    word = data.draw(st.sampled_from([one for one in known if len(one) >= 5]))
    at = data.draw(st.integers(1, len(word) - 2))
    missing, doubled = word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]
    for wrong in (missing, doubled, word.replace("_", "-"), word.upper()):
        found = nearest(wrong, known)
        assert found == word or nearest(found, [word]) == word or wrong in known, (wrong, found)


def test_an_unlike_word_has_no_suggestion() -> None:
    assert did_you_mean("xyzzy", FLAGS) == ""
    assert did_you_mean("prefix_cache", FLAGS) == "; did you mean 'prefix_caching'?"
    assert did_you_mean("anything", []) == ""
