"""The draft vocabulary: by count, ties and filling by id, never by the order of the data."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.vocabulary import DraftVocabulary, build_vocabulary, coverage

NOTHING: Ids = np.zeros(0, dtype=np.int64)


def counted(counts: Mapping[int, int], size: int) -> Ids:
    array = np.zeros(size, dtype=np.int64)
    for token, count in counts.items():
        array[token] = count
    return array


def build(counts: Mapping[int, int], target: int, size: int, always: tuple[int, ...] = ()) -> DraftVocabulary:
    return build_vocabulary(counted(counts, target), size, np.array(always, dtype=np.int64))


@pytest.mark.parametrize(
    ("counts", "target", "size", "always", "ids"),
    [
        pytest.param(
            {5: 3, 7: 1, 2: 3}, 10, 4, (), [0, 2, 5, 7], id="too few distinct ones: the lowest unused id fills"
        ),
        pytest.param({9: 1, 8: 1, 7: 1, 6: 1, 5: 1}, 10, 3, (), [5, 6, 7], id="equal counts: the lowest ids"),
        pytest.param({1: 9, 2: 8, 3: 7}, 10, 2, (9,), [1, 9], id="what must be in pushes the rarest out"),
        pytest.param({1: 9, 9: 8}, 10, 2, (9,), [1, 9], id="what must be in may be frequent too"),
        pytest.param({1: 9}, 4, 100, (), [0, 1, 2, 3], id="never larger than the target's"),
        pytest.param({}, 6, 3, (4, 4), [0, 1, 4], id="nothing counted, one kept twice"),
        pytest.param({3: 2, 4: 1, 0: 5}, 5, 3, (), [0, 3, 4], id="ascending, whatever the counts"),
    ],
)
def test_members(counts: dict[int, int], target: int, size: int, always: tuple[int, ...], ids: list[int]) -> None:
    assert build(counts, target, size, always).ids.tolist() == ids


def test_offsets_are_what_engines_read() -> None:
    vocabulary = build({5: 3, 7: 1, 2: 3}, 10, 4)
    assert vocabulary.d2t().tolist() == [0, 1, 3, 4]
    assert vocabulary.d2t().dtype == np.int64
    assert vocabulary.t2d().tolist() == [True, False, True, False, False, True, False, True, False, False]
    assert vocabulary.counts.tolist() == [0, 3, 3, 1]
    assert (vocabulary.num_used, vocabulary.num_filled) == (3, 1)


def test_what_must_be_in_has_to_fit() -> None:
    with pytest.raises(ValueError, match="given 3 tokens to keep; accepted: at most the draft vocabulary's size, 2"):
        build({}, 10, 2, (1, 2, 3))


def test_coverage_is_the_share_of_supervised_tokens_inside() -> None:
    counts = counted({1: 6, 2: 3, 3: 1}, 10)
    assert coverage(build_vocabulary(counts, 2, NOTHING), counts) == pytest.approx(0.9)
    assert coverage(build_vocabulary(counts, 10, NOTHING), counts) == 1.0
    assert coverage(build_vocabulary(counted({}, 10), 2, NOTHING), counted({}, 10)) == 0.0


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 60), st.randoms())
def test_the_order_of_the_data_changes_nothing(tokens: list[int], size: int, shuffler: object) -> None:
    shuffled = list(tokens)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        build_vocabulary(np.bincount(np.array(order, dtype=np.int64), minlength=50), size, NOTHING)
        for order in (tokens, shuffled)
    )
    assert first.ids.tolist() == second.ids.tolist()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=64),
    st.integers(1, 70),
    st.sets(st.integers(0, 63), max_size=3),
)
def test_every_vocabulary_is_the_best_one_of_its_size(counts: list[int], size: int, always: set[int]) -> None:
    always = {token for token in always if token < len(counts)}
    size = max(size, len(always), 1)
    vocabulary = build_vocabulary(np.array(counts, dtype=np.int64), size, np.array(sorted(always), dtype=np.int64))
    ids = vocabulary.ids.tolist()
    ranked = sorted(
        (token for token in range(len(counts)) if token not in always), key=lambda token: (-counts[token], token)
    )
    assert set(ids) == always | set(ranked[: min(size, len(counts)) - len(always)])
    # the invariant that exporters and engines rely on
    assert np.array_equal(np.flatnonzero(vocabulary.t2d()), vocabulary.d2t() + np.arange(vocabulary.size))


def test_a_large_target_takes_less_than_a_second() -> None:
    counts = np.random.default_rng(0).zipf(1.3, 152_064).astype(np.int64)
    started = time.perf_counter()
    vocabulary = build_vocabulary(counts, 32_000, np.array([151_645], dtype=np.int64))
    assert time.perf_counter() - started < 1.0
    assert vocabulary.size == 32_000
    assert 151_645 in vocabulary.ids
