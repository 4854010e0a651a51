"""`formats.jsonl`: what became of the operands of quantised products, in the steps where they are counted.

Lines are of the kind `formats`: step, tokens, and for each operand of each product of each linear layer what
models/formats/telemetry.py documents. `tracker.formats_every_steps` says which steps; at 0 there is no such file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from launcher.callbacks.base import Callback, RunView, StepRecord
from launcher.callbacks.metrics import repair, strict
from launcher.callbacks.routing import rounded

FILE_NAME = "formats.jsonl"


class FormatsFile(Callback):
    """Appends to `<run>/formats.jsonl` at every step that tells of formats."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def on_start(self, run: RunView) -> None:
        """Take out what the weights that go on have not seen."""
        self._path = run.directory / FILE_NAME
        repair(self._path, run.start_step)

    def on_step(self, record: StepRecord) -> None:
        """One line: numbers to 5 digits, which is more than a picture shows; an infinite ratio is null."""
        if self._path is None or not record.formats:
            return
        operands = [rounded(asdict(one)) for one in record.formats]
        line = {"kind": "formats", "step": record.step, "tokens": record.tokens, "operands": strict(operands)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
