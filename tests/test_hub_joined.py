"""What a step says of its join, for people and programs."""

from __future__ import annotations

from typing import Any

from rltop.backend import api
from rltop.backend.join import stats
from rltop.backend.join.stats import REMEMBERED_STEPS, JoinWatch


def test_every_fact_of_a_join_stands_in_the_text() -> None:
    step = api.Step(
        3, 0.0, 4, False, {}, unjoined={"no_prompt": 2, "overlong": 1}, joins={"whole": 60, "packed": 1}, reused=5,
        unused={"e1": 2, "e0": 3}, copies={"e0": {"equal": 30}, "e1": {"equal": 29, "shifted+1": 2}},
    )  # fmt: skip
    assert stats.as_text(step) == [
        "61 of 64 sequences found among the rollouts (1 packed, 60 whole)",
        "5 were trained on in an earlier step too",
        "2 no_prompt: no engine reported a rollout of this prompt",
        "1 overlong: the row goes on after its rollout's last token, with tokens that no engine sampled",
        "rollouts that were never trained on: e0 3, e1 2",
        "2 of 31 copies of e1's logprobs are shifted+1: each value is that of a token before (+) or after (-)",
        "59 of 61 copies of the recorded logprobs are equal to them",
    ]
    assert stats.as_json(step)["copies"] == step.copies


def test_a_step_without_rows_has_little_to_say() -> None:
    assert stats.as_text(api.Step(0, 0.0, None, False, {})) == ["0 of 0 sequences found among the rollouts"]


def step(**facts: Any) -> api.Step:
    return api.Step(0, 0.0, None, False, {}, **facts)


def test_a_kind_of_copy_that_was_gone_for_a_while_is_news_again() -> None:
    watch = JoinWatch()
    bad, good = step(copies={"e0": {"recomputed": 1}}), step(copies={"e0": {"equal": 1}})
    assert len(watch.news(bad)) == 1
    assert not watch.news(bad)
    for _ in range(REMEMBERED_STEPS - 1):
        assert not watch.news(good)
    assert not watch.news(bad)
    for _ in range(REMEMBERED_STEPS):
        assert not watch.news(good)
    assert len(watch.news(bad)) == 1


def test_the_same_on_another_engine_is_news_and_several_engines_are_one_line() -> None:
    watch = JoinWatch()
    assert len(watch.news(step(copies={"e0": {"padded": 1, "cut": 9}, "e1": {"padded": 2, "equal": 1}}))) == 1
    (line,) = watch.news(step(copies={"e0": {"padded": 1}, "e2": {"padded": 3}}))
    assert line.startswith("3 of 3 copies of e2's logprobs are padded: ")


def test_rows_that_are_not_what_an_engine_answered_are_news() -> None:
    watch = JoinWatch()
    odd = step(unjoined={"overlong": 2, "no_prompt": 5}, joins={"other_prompt": 1, "whole": 3})
    assert [line.split(":")[0] for line in watch.news(odd)] == ["2 sequences overlong", "1 sequences other_prompt"]
    assert not watch.news(odd)
