"""Batches prepared ahead in a background thread. No state that matters is here: a batch is a function of i."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `function(i)` for the next few i before they are asked for.

    function: from a counter to a batch; called in one background thread (in the caller's when depth is 0 or i ≥ stop).
    depth: results kept ahead at most. stop: the first i that is never prepared; None = no end.

    `get(i)` may ask for any i, not just the next: preparation goes on from there. An exception of `function(i)` is
    raised by `get(i)`. `close` (or leaving the `with`) ends the thread; it may be called at any time, even twice.
    """

    def __init__(self, function: Callable[[int], T], depth: int = 4, stop: int | None = None) -> None:
        assert depth >= 0
        self._function, self._depth, self._stop = function, depth, stop
        self._changed = threading.Condition()
        self._ready: dict[int, T | BaseException] = {}
        self._wanted: int | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def get(self, index: int) -> T:
        """function(index), waiting for it if it is not ready; asks for index + 1 … index + depth."""
        if self._depth == 0 or (self._stop is not None and index >= self._stop):
            return self._function(index)
        with self._changed:
            if self._closed:
                raise RuntimeError("the prefetcher is closed")
            if self._thread is None:  # a daemon: a run that dies must not wait for it
                self._thread = threading.Thread(target=self._prepare, name="prefetch", daemon=True)
                self._thread.start()
            self._wanted = index
            self._ready = {i: value for i, value in self._ready.items() if index <= i <= index + self._depth}
            self._changed.notify_all()
            while index not in self._ready:
                self._changed.wait()
                if self._closed:
                    raise RuntimeError("the prefetcher was closed while a batch was awaited")
            result = self._ready.pop(index)
            self._wanted = index + 1
            self._changed.notify_all()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Ends the thread, after the batch it is at."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> int | None:
        """The first index that is wanted and neither ready nor past the end; what is asked for comes first."""
        if self._wanted is None:
            return None
        for index in range(self._wanted, self._wanted + self._depth):
            if index not in self._ready:
                return index if self._stop is None or index < self._stop else None
        return None

    def _prepare(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._next() is None:
                    self._changed.wait()
                if self._closed:
                    return
                index = self._next()
                assert index is not None
            try:
                result: T | BaseException = self._function(index)
            except BaseException as error:
                result = error
            with self._changed:
                if not self._closed:
                    self._ready[index] = result
                    self._changed.notify_all()
