from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import pack
from data.pack import METHODS, Packed

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(np.array)


def tokens_of(packed: Packed) -> Counter[tuple[int, int]]:
    """How often each token (document, place in it) is in a piece."""
    found: Counter[tuple[int, int]] = Counter()
    for document, offset, length in zip(packed.document, packed.offset, packed.length, strict=True):
        found.update((int(document), place) for place in range(offset, offset + length))
    return found


def everything(lengths: np.ndarray) -> dict[tuple[int, int], int]:
    return {(document, place): 1 for document, length in enumerate(lengths) for place in range(length)}


def sums(packed: Packed) -> np.ndarray:
    """Tokens of each sample."""
    return np.add.reduceat(packed.length, packed.first[:-1])


@pytest.mark.parametrize("method", METHODS)
@given(lengths=LENGTHS, size=st.integers(1, 100))
def test_every_token_is_in_one_piece_and_samples_are_not_too_long(method, lengths, size):
    packed = pack.pack(method, lengths, size)
    assert tokens_of(packed) == everything(lengths)
    assert packed.first[0] == 0 and packed.first[-1] == len(packed.length) and (np.diff(packed.first) > 0).all()
    assert (sums(packed) <= size).all() and (packed.length > 0).all()


@given(lengths=LENGTHS, size=st.integers(1, 100))
def test_cut_leaves_no_gap(lengths, size):
    packed = pack.cut(lengths, size)
    assert (sums(packed)[:-1] == size).all()
    starts = (np.cumsum(lengths) - lengths)[packed.document] + packed.offset
    assert np.array_equal(starts, np.cumsum(packed.length) - packed.length)


def first_fit_by_hand(lengths: list[int], size: int) -> int:
    """Best-fit decreasing, slowly: samples it takes."""
    rest = [n % size for n in lengths if n % size]
    spaces: list[int] = []
    for length in sorted(rest, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - length)
        else:
            spaces.append(size - length)
    return len(spaces) + sum(n // size for n in lengths)


@given(lengths=LENGTHS, size=st.integers(1, 100))
def test_best_fit_cuts_only_what_must_be_cut(lengths, size):
    packed = pack.best_fit(lengths, size)
    assert packed.samples == first_fit_by_hand(lengths.tolist(), size)
    pieces = np.bincount(packed.document, minlength=len(lengths))
    assert np.array_equal(pieces, -(-lengths // size))
    assert packed.samples <= pack.by_document(lengths, size).samples


@given(lengths=LENGTHS, smallest=st.sampled_from([1, 2, 8]), count=st.integers(1, 5))
def test_buckets_hold_powers_of_two_of_single_documents(lengths, smallest, count):
    sizes = tuple(smallest << i for i in range(count))
    found = pack.buckets(lengths, sizes)
    total: Counter[tuple[int, int]] = Counter()
    for size, packed in found.items():
        total += tokens_of(packed)
        assert (np.diff(packed.first) == 1).all()
        assert (packed.length == size).all() if size > smallest else (packed.length <= size).all()
        if size < sizes[-1]:  # as many of the largest as fit come first
            assert np.bincount(packed.document, minlength=1).max() <= (2 if size == smallest else 1)
    assert total == everything(lengths)


def test_best_fit_fills_samples():
    lengths = np.arange(2500) * 37 % 1900 + 60
    assert pack.best_fit(lengths, 2048).samples < 1.01 * lengths.sum() / 2048 + 1
