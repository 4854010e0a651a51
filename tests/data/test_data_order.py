from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from data.order import Bijection, key, permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 65, 255, 256, 257, 1000, 4097])
def test_bijection_is_one_to_one(size):
    image = Bijection(size, key("test", size))(np.arange(size))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(size))


def test_bijection_is_a_function_of_single_positions():
    bijection = Bijection(1000, 7)
    whole = bijection(np.arange(1000))
    assert [int(bijection(np.array([i]))[0]) for i in (0, 1, 500, 999)] == whole[[0, 1, 500, 999]].tolist()
    huge = Bijection(10**15, 7)(np.arange(1000))
    assert len(set(huge.tolist())) == 1000 and huge.min() >= 0 and huge.max() < 10**15


def test_bijection_scatters():
    size = 20000
    image = Bijection(size, 3)(np.arange(size))
    # Of a random permutation: neighbours stay neighbours about twice, halves mix, no correlation with the place.
    assert (np.abs(np.diff(image)) == 1).sum() < 10
    assert abs((image[: size // 2] < size // 2).mean() - 0.5) < 0.02
    assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 0.03
    other = Bijection(size, 4)(np.arange(size))
    assert (image == other).sum() < 10


def test_small_permutations_are_fair():
    counts = Counter(tuple(permutation(3, key("fair", i)).tolist()) for i in range(6000))
    assert set(counts) == set(permutations(range(3)))
    assert all(880 < count < 1120 for count in counts.values())  # 1000 ± 4 standard deviations


def test_keys_tell_their_parts_apart():
    keys = [key("blocks", 1, 2), key("blocks", 12), key("blocks", 2, 1), key("documents", 1, 2), key("blocks", 1, 2, 0)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 1 << 64 for value in keys)


def test_the_order_outlives_releases():
    """Written down once: a change here moves the data of every run, and must raise ORDER_VERSION."""
    assert key("blocks", 0, 0) == KEY
    assert permutation(10, 1).tolist() == PERMUTATION
    assert Bijection(10, 1)(np.arange(10)).tolist() == BIJECTION


KEY = 4311701526889555223
PERMUTATION = [9, 0, 5, 4, 8, 1, 2, 6, 7, 3]
BIJECTION = [1, 2, 9, 5, 4, 8, 7, 6, 0, 3]
