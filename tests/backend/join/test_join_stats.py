"""Statistics of the join: text, JSON and notices."""

from __future__ import annotations

from typing import Any

from rltop.backend import api
from rltop.backend.join import stats
from rltop.backend.join.stats import REMEMBERED_STEPS, JoinWatch


def test_text_contains_every_fact_of_the_join() -> None:
    step = api.Step(
        3, 0.0, 4, False, {}, unjoined={"no_prompt": 2, "overlong": 1}, joins={"whole": 60, "packed": 1}, reused=5,
        unused={"e1": 2, "e0": 3}, copies={"e0": {"equal": 30}, "e1": {"equal": 29, "shifted+1": 2}},
    )  # fmt: skip
    assert stats.as_text(step) == [
        "61 of 64 sequences found among the rollouts (1 packed, 60 whole)",
        "5 were also trained on in an earlier step",
        "2 no_prompt: no engine reported a rollout of this prompt",
        "1 overlong: the row continues after its rollout's last token, with tokens that no engine sampled",
        "rollouts that were never trained on: e0 3, e1 2",
        "2 of 31 copies of e1's logprobs are shifted+1: each value belongs to an earlier (+) or later (-) token",
        "59 of 61 copies of the rollout logprobs are equal to the engine's",
    ]
    assert stats.as_json(step)["copies"] == step.copies


def test_a_step_without_rows_has_one_line() -> None:
    assert stats.as_text(api.Step(0, 0.0, None, False, {})) == ["0 of 0 sequences found among the rollouts"]


def step(**facts: Any) -> api.Step:
    return api.Step(0, 0.0, None, False, {}, **facts)


def test_a_kind_of_copy_that_reappears_is_noticed_again() -> None:
    watch = JoinWatch()
    bad, good = step(copies={"e0": {"recomputed": 1}}), step(copies={"e0": {"equal": 1}})
    assert len(watch.notices(bad)) == 1
    assert not watch.notices(bad)
    for _ in range(REMEMBERED_STEPS - 1):
        assert not watch.notices(good)
    assert not watch.notices(bad)
    for _ in range(REMEMBERED_STEPS):
        assert not watch.notices(good)
    assert len(watch.notices(bad)) == 1


def test_the_same_kind_on_another_engine_is_noticed_and_engines_share_a_line() -> None:
    watch = JoinWatch()
    assert len(watch.notices(step(copies={"e0": {"padded": 1, "cut": 9}, "e1": {"padded": 2, "equal": 1}}))) == 1
    (line,) = watch.notices(step(copies={"e0": {"padded": 1}, "e2": {"padded": 3}}))
    assert line.startswith("3 of 3 copies of e2's logprobs are padded: ")


def test_rows_that_differ_from_the_engines_prompt_or_answer_are_noticed() -> None:
    watch = JoinWatch()
    odd = step(unjoined={"overlong": 2, "no_prompt": 5}, joins={"other_prompt": 1, "whole": 3})
    assert [line.split(":")[0] for line in watch.notices(odd)] == ["2 sequences overlong", "1 sequences other_prompt"]
    assert not watch.notices(odd)
