"""What is kept of the latest steps is bounded by bytes, and the oldest go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.util.bounded import ByteBoundedCache


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50))), st.integers(0, 200), st.integers(0, 9),
    st.integers(0, 400),
)  # fmt: skip
def test_the_cache_stays_within_its_bounds(puts: list[tuple[int, int]], total: int, steps: int, most: int) -> None:
    most = max(most, total)
    kept: ByteBoundedCache[int] = ByteBoundedCache(total, steps=steps, most_bytes=most)
    for number, (step, nbytes) in enumerate(puts):
        kept.put(step, number, nbytes)
        assert kept.last == step
        assert len(kept) == 1 or kept.nbytes <= (total if len(kept) > steps else most)
    sizes = dict(puts)
    last = {step: number for number, (step, _) in enumerate(puts)}
    assert dict(kept.items()) == {step: last[step] for step in kept}
    assert kept.nbytes == sum(sizes[step] for step in kept)
    order = sorted(last, key=last.__getitem__)
    assert list(kept) == order[len(order) - len(kept) :]


def test_a_dropped_step_is_not_kept() -> None:
    kept: ByteBoundedCache[str] = ByteBoundedCache(10)
    assert kept.last is None
    kept.put(3, "three", 4)
    kept.drop(3)
    kept.drop(3)
    assert (len(kept), kept.nbytes, kept.get(3)) == (0, 0, None)
