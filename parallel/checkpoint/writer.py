"""Saving beside training: copy to host memory, let the caller go on, write and commit in a thread.

The staging buffer is laid out as the data file is, is kept from save to save, and is pinned where there is a GPU; so
the stall of training is one copy at memory speed. It costs host memory as large as the rank's pieces; a copy on write
of the process would be cheaper and is impossible for device tensors.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoint.commit import Save, abandon, await_commit, commit, given_up
from parallel.checkpoint.errors import CheckpointError, describe_os_error
from parallel.checkpoint.files import BLOCK, SavedPiece, dtype_of, plan_file, write_rank
from parallel.checkpoint.pieces import Piece, blocks
from parallel.checkpoint.store import Retention, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveEvent:
    """How a save ended.

    message: why it failed; where it was committed, what else went wrong (empty if nothing).
    stall: seconds that the caller was held up, `waited` of them for the save before. seconds: from call to commit.
    size: bytes this rank wrote.
    """

    step: int
    committed: bool
    message: str
    stall: float
    waited: float
    seconds: float
    size: int
    removed: tuple[int, ...] = ()


class Staging:
    """A reused host buffer that holds a rank's pieces as they will lie in its file."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.saved: list[SavedPiece] = []
        self._views: list[Tensor] = []
        self._order: list[int] = []
        self._planned_for: list[tuple[object, ...]] | None = None

    def plan(self, pieces: list[Piece]) -> list[Piece]:
        """Make room for the pieces, touching every page; returns them in file order. Pieces laid out as the last
        time cost one comparison each, so that thousands do not hold training up.
        """
        pieces = [block for piece in pieces for block in blocks(piece, BLOCK)]
        signature: list[tuple[object, ...]] = [
            (p.name, p.shape, p.offset, p.tensor.shape, p.tensor.dtype) for p in pieces
        ]
        if signature != self._planned_for:
            self._planned_for = None
            self.saved, self._order = plan_file(pieces)
            size = self.saved[-1].end if self.saved else 0
            if size > self.buffer.numel():
                self._views, self.buffer = [], torch.empty(0, dtype=torch.uint8)  # let go of the old one first
                self.buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            views = ((self.buffer[p.begin : p.end], p) for p in self.saved)
            self._views = [part.view(dtype_of(p.dtype)).view(p.extent) for part, p in views]
            self._planned_for = signature
        return [pieces[i] for i in self._order]

    def fill(self, pieces: list[Piece]) -> None:
        """Copy the live tensors. When it returns the caller may change them."""
        with torch.no_grad():
            for view, piece in zip(self._views, pieces, strict=True):
                view.copy_(piece.tensor, non_blocking=True)
        for device in {piece.tensor.device for piece in pieces if piece.tensor.is_cuda}:
            torch.cuda.synchronize(device)

    @property
    def data(self) -> memoryview:
        return self.buffer.numpy().data


class Saver:
    """Writes one rank's checkpoints. All ranks must call `save` equally often, in the same order.

    retention: applied by rank 0 after each commit. asynchronous: False makes `save` return only when the checkpoint
    is committed or has failed. timeout: seconds that rank 0 waits for the other ranks' parts, and they for its commit.
    """

    def __init__(
        self, store: Store, *, retention: Retention | None = None, asynchronous: bool = True, timeout: float = 600.0
    ) -> None:
        self.store = store
        self.retention = retention or Retention()
        self.asynchronous = asynchronous
        self.timeout = timeout
        self._staging = Staging()
        self._sequence = 0
        self._thread: threading.Thread | None = None
        self._events: deque[SaveEvent] = deque()
        self._closed = False

    def reserve(self, pieces: list[Piece]) -> None:
        """Allocate the staging buffer now, so that the first save stalls no longer than the next."""
        self.wait()
        self._staging.plan(pieces)

    def save(self, step: int, pieces: list[Piece], state: dict[str, Any] | None = None) -> float:
        """Save this rank's pieces as part of `step`'s checkpoint; returns the seconds that the caller was held up.

        pieces: those that this rank alone writes, of any dtype, device and strides; all ranks' together must cover
        each logical tensor exactly once. state: anything JSON can hold (tuples become lists), taken from rank 0.
        Waits for a save in flight. How it ended is told by `poll`; nothing but a caller's mistake is raised: state
        that JSON cannot hold (CheckpointError), a piece outside its tensor (ValueError), a closed saver.
        """
        started = time.perf_counter()
        if self._closed or self.store.attempt is None:
            what = "the saver is closed" if self._closed else "the store has no attempt; rank 0 must open one"
            raise CheckpointError(f"{self.store.path(step)}: cannot save, {what}")
        self._sequence += 1
        self.wait()
        waited = time.perf_counter() - started
        frozen = freeze_state(state or {})
        self._staging.fill(self._staging.plan(pieces))
        stall = time.perf_counter() - started
        save = Save(self.store, step, self._sequence, self.timeout)
        arguments = (save, frozen, started, stall, waited)
        if self.asynchronous:
            self._thread = threading.Thread(target=self._run, args=arguments, name=f"checkpoint-{step}", daemon=True)
            self._thread.start()
            return stall
        self._run(*arguments)
        return time.perf_counter() - started

    def poll(self) -> list[SaveEvent]:
        """How saves ended since the last call, oldest first; every save appears exactly once."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no save is in flight; False where `timeout` seconds passed first."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Let the save in flight end and take no more. After False the save will be lost with the process."""
        self._closed = True
        return self.wait(timeout)

    def _run(self, save: Save, frozen: str, started: float, stall: float, waited: float) -> None:
        saved = self._staging.saved
        removed: tuple[int, ...] = ()
        size, message, committed = 0, "", False
        try:
            save.begin()
            size = self._write(save, saved)
            if self.store.rank == 0:
                commit(save, json.loads(frozen))
            else:
                await_commit(save)
            committed = True
        except Exception as error:
            message = self._explain(save, error)
            abandon(save, message)
        if committed and self.store.rank == 0:
            removed, message = self._retain()
        if message:
            log.error("checkpoint of step %d: %s", save.step, message)
        seconds = time.perf_counter() - started
        self._events.append(SaveEvent(save.step, committed, message, stall, waited, seconds, size, removed))

    def _write(self, save: Save, saved: list[SavedPiece]) -> int:
        store = self.store
        assert store.attempt is not None
        index = write_rank(
            save.temporary, store.rank, store.world_size, save.step, store.attempt, save.sequence, saved,
            self._staging.data,
        )  # fmt: skip
        return index.size

    def _retain(self) -> tuple[tuple[int, ...], str]:
        try:
            return tuple(self.store.retain(self.retention)), ""
        except Exception as error:
            return (), f"committed, but older checkpoints could not be removed: {error}"

    def _explain(self, save: Save, error: Exception) -> str:
        if isinstance(error, OSError):
            if isinstance(error, FileNotFoundError | NotADirectoryError):  # taken away beneath this rank
                if self.store.fenced():
                    return f"{save.target}: fenced off by a newer attempt; another job runs this run, so end this one"
                if save.temporary.is_file():
                    return given_up(save)
            return describe_os_error(error, save.target)
        return str(error) if isinstance(error, CheckpointError) else f"{save.target}: {type(error).__name__}: {error}"


def freeze_state(state: dict[str, Any]) -> str:
    """The state as JSON text, so that training may change its objects at once.

    Raises CheckpointError naming the first top-level key that JSON cannot hold.
    """
    try:
        return json.dumps(state)
    except (TypeError, ValueError) as error:
        for key, value in state.items():
            try:
                json.dumps({key: value})
            except (TypeError, ValueError):
                raise CheckpointError(
                    f"state[{key!r}] is not JSON: {error}; pass numbers, strings, lists and dictionaries, "
                    "and tensors as pieces"
                ) from error
        raise
