"""`routing.jsonl`: where the routers of a model with experts sent its tokens, layer by layer, every few steps.

Lines are of the kind `routing`: step, tokens, and for each layer with experts what models/moe/telemetry.py documents. A
model without experts has no such file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.callbacks.base import Callback, RunView, StepRecord
from launcher.callbacks.metrics import repair, strict

FILE_NAME = "routing.jsonl"


class RoutingFile(Callback):
    """Appends to `<run>/routing.jsonl` at every multiple of some steps."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self._path: Path | None = None

    def on_start(self, run: RunView) -> None:
        """Take out what the weights that go on have not seen."""
        self._path = run.directory / FILE_NAME
        repair(self._path, run.start_step)

    def on_step(self, record: StepRecord) -> None:
        """One line, where it is due: numbers to 5 digits, which is more than a picture shows."""
        if self._path is None or not record.routing or record.step % self.every_steps:
            return
        layers = [rounded(asdict(layer)) for layer in record.routing]
        line = {"kind": "routing", "step": record.step, "tokens": record.tokens, "layers": strict(layers)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def rounded(value: Any) -> Any:
    """Plain data with its numbers to 5 digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
