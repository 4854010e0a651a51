"""Figures of an order against closed forms, and that they tell good shuffles from bad ones."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from data.order import UnitOrder, key, permutation
from data.shuffle_quality import Figure, buffered, drawn, measure

SIZE, BATCH = 8192, 128
GROUPS = {"shards": lambda position: position // 512}


def worst(order: np.ndarray, size: int = SIZE) -> float:
    return max(abs(figure.z) for figure in measure(order, size, BATCH, GROUPS).values())


def test_chance_is_what_combinatorics_says():
    found = measure(np.arange(SIZE), SIZE, BATCH, GROUPS, rounds=200)
    n = SIZE
    assert abs(found["correlation"].expected) < 5 / np.sqrt(200 * n)
    assert found["correlation"].deviation == pytest.approx(1 / np.sqrt(n - 1), rel=0.2)
    # the oscillation of a permutation: mean (n^2 - 1) / 3, variance (n - 2)(n + 1)(4n - 7) / 90
    deviation = np.sqrt((n - 2) * (n + 1) * (4 * n - 7) / 90) / (n - 1) / n
    assert found["distance"].expected == pytest.approx((n + 1) / 3 / n, abs=4 * deviation / np.sqrt(200))
    assert found["distance"].deviation == pytest.approx(deviation, rel=0.2)
    assert found["kept"].expected == pytest.approx(1000 / n, rel=0.3)
    assert found["spread"].expected == pytest.approx(np.sqrt(1 / 12), rel=0.01)
    assert found["drift"].expected == pytest.approx(np.sqrt((1 - BATCH / n) / 12 / BATCH), rel=0.05)
    different = 16 * (1 - comb(n - 512, BATCH) / comb(n, BATCH))
    assert found["shards a batch"].expected == pytest.approx(different, rel=2e-3)


def test_the_plain_order_is_told_from_a_shuffle():
    found = measure(np.arange(SIZE), SIZE, BATCH, GROUPS)
    assert found["correlation"].value == pytest.approx(1.0)
    assert found["kept"].value == 1000 and found["distance"].value == pytest.approx(1 / SIZE)
    assert found["shards a batch"].value == 1
    assert all(abs(figure.z) > 20 for figure in found.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_global_shuffle_is_as_good_as_a_perfect_one(seed):
    order = UnitOrder(np.full(16, 512), "global", 0, seed)
    assert worst(order(0, np.arange(SIZE))) < 4.5
    assert worst(permutation(SIZE, key("perfect", seed))) < 4.5


def test_a_window_is_told_from_a_global_shuffle_and_a_buffer_is_worse():
    window = measure(UnitOrder(np.full(16, 512), "window", 4, 0)(0, np.arange(SIZE)), SIZE, BATCH, GROUPS)
    buffer = measure(buffered(np.full(16, 512), SIZE, 0, buffer=200, initial=50), SIZE, BATCH, GROUPS)
    assert 3.9 < window["shards a batch"].value <= 4.0
    assert window["drift"].z > 10 and buffer["drift"].z > window["drift"].z
    assert buffer["shards a batch"].value < window["shards a batch"].value
    assert buffer["distance"].value < window["distance"].value < 1 / 3


def test_a_wide_window_is_a_global_shuffle():
    assert worst(UnitOrder(np.full(16, 512), "window", 16, 5)(0, np.arange(SIZE))) < 4.5


def test_the_beginning_of_a_long_order_is_measured_against_all_of_it():
    size = 10**9
    order = UnitOrder(np.full(1000, size // 1000), "global", 0, 1)(0, np.arange(SIZE))
    shards = {"shards": lambda position: position // (size // 1000)}
    assert max(abs(figure.z) for figure in measure(order, size, BATCH, shards).values()) < 4.5
    first = UnitOrder(np.full(1000, size // 1000), "window", 8, 1)(0, np.arange(SIZE))
    found = measure(first, size, BATCH, shards)
    assert found["shards a batch"].value <= 8 < 100 < found["shards a batch"].expected


def test_buffers_give_every_sample_once():
    order = buffered(np.array([700, 300, 500]), 1500, 3, buffer=100, initial=10)
    assert np.array_equal(np.sort(order), np.arange(1500))
    assert np.array_equal(order, buffered(np.array([700, 300, 500]), 1500, 3, buffer=100, initial=10))


@pytest.mark.parametrize(("size", "count"), [(10, 10), (1000, 100), (10**12, 5000), (50, 6)])
def test_drawn_positions_differ(size, count):
    found = drawn(size, count, 7)
    assert len(set(found.tolist())) == count and found.min() >= 0 and found.max() < size


def test_z_of_what_cannot_vary():
    assert Figure(1.0, 1.0, 0.0).z == 0 and Figure(0.5, 1.0, 0.0).z == -np.inf
