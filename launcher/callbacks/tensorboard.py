"""TensorBoard as a tracker: event files in `<run>/tensorboard`, cut back to the checkpoint on a resume."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from launcher.callbacks.base import Callback, RunView, StepRecord, ValidationRecord
from models.formats.telemetry import headline as formats_headline
from models.moe.telemetry import headline

DIRECTORY = "tensorboard"

_log = logging.getLogger(__name__)


class TensorBoardTracker(Callback):
    """Writes scalars, samples and events for TensorBoard; read with `tensorboard --logdir runs`."""

    def __init__(self, flush_seconds: int = 10) -> None:
        self.flush_seconds = flush_seconds
        self._writer: Any = None

    def on_start(self, run: RunView) -> None:
        """Open an event file; what earlier files hold beyond the start step is purged by its reader."""
        try:
            from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import
        except ImportError:
            _log.warning("tensorboard is not installed: no event files are written; `pip install tensorboard`")
            return
        self._writer = SummaryWriter(
            log_dir=str(run.directory / DIRECTORY),
            purge_step=run.start_step + 1,
            flush_secs=self.flush_seconds,
        )

    def on_step(self, record: StepRecord) -> None:
        """One point in every chart under `train/`."""
        names = ("tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds")
        values = {name: getattr(record, name) for name in (*names, "flops_utilisation", "skipped_total")}
        self._scalars("train", record.step, values | headline(record.routing) | formats_headline(record.formats))

    def on_validation(self, record: ValidationRecord) -> None:
        """One point in every chart under `validation/`, flushed at once: it is what people wait for."""
        values = {"loss": record.validation_loss, "bits_per_byte": record.bits_per_byte}
        self._scalars("validation", record.step, values)
        if self._writer is not None:
            self._writer.flush()

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """The text, as a code block so that its line breaks survive TensorBoard's markdown."""
        self._text("sample", step, prompt + text)

    def on_event(self, step: int, kind: str, message: str) -> None:
        """The message, under `event/`."""
        self._text(f"event/{kind}", step, message)

    def on_end(self, outcome: str) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def _text(self, tag: str, step: int, text: str) -> None:
        if self._writer is not None:
            self._writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)
