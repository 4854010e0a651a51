from __future__ import annotations

import threading
import time

import pytest

from data.stream import Prefetcher


def wait_until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_results_are_those_of_the_function_at_any_index(depth):
    with Prefetcher(lambda i: i * i, depth) as prefetcher:
        asked = [*range(20), 5, 6, 7, 1000, 1001, 1001, 0]
        assert [prefetcher.get(i) for i in asked] == [i * i for i in asked]


def test_the_next_ones_are_prepared_and_no_more():
    made: list[int] = []
    with Prefetcher(lambda i: made.append(i) or i, depth=3) as prefetcher:
        prefetcher.get(10)
        assert wait_until(lambda: len(made) == 4)
        time.sleep(0.05)
        assert made == [10, 11, 12, 13]
        prefetcher.get(11)
        assert wait_until(lambda: made == [10, 11, 12, 13, 14])


def test_preparation_overlaps_with_the_consumer():
    with Prefetcher(lambda i: time.sleep(0.05) or i, depth=2) as prefetcher:
        prefetcher.get(0)
        time.sleep(0.2)  # a step that takes longer than a batch
        begin = time.perf_counter()
        prefetcher.get(1)
        assert time.perf_counter() - begin < 0.03


def test_nothing_is_prepared_past_the_end():
    made: list[int] = []
    with Prefetcher(lambda i: made.append(i) or i, depth=4, stop=3) as prefetcher:
        assert [prefetcher.get(i) for i in range(3)] == [0, 1, 2]
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert prefetcher.get(5) == 5


def test_errors_reach_the_one_who_asks():
    def function(i: int) -> int:
        if i == 2:
            raise ValueError("shard lost")
        return i

    with Prefetcher(function, depth=4) as prefetcher:
        assert [prefetcher.get(0), prefetcher.get(1)] == [0, 1]
        with pytest.raises(ValueError, match="shard lost"):
            prefetcher.get(2)
        assert prefetcher.get(3) == 3


def test_closing_ends_the_thread_at_any_moment():
    before = threading.active_count()
    prefetcher = Prefetcher(lambda i: time.sleep(0.01) or i, depth=2)
    prefetcher.close()
    for _ in range(3):
        prefetcher = Prefetcher(lambda i: time.sleep(0.01) or i, depth=2)
        prefetcher.get(0)
        prefetcher.close()
        prefetcher.close()
    assert wait_until(lambda: threading.active_count() == before)
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.get(1)


def test_closing_frees_a_waiting_consumer():
    gate = threading.Event()
    prefetcher = Prefetcher(lambda i: gate.wait(5), depth=1)
    caught: list[Exception] = []

    def consume() -> None:
        try:
            prefetcher.get(0)
        except RuntimeError as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.05)
    closer = threading.Thread(target=prefetcher.close)
    closer.start()
    consumer.join(2)
    gate.set()
    closer.join(2)
    assert caught and not consumer.is_alive() and not closer.is_alive()
