"""The contract between the loop and everything optional: a few hooks over a documented view of the run.

The loop knows no callback by name. Hooks run on every rank in the order of the list unless a callback says
`rank_zero_only`; a hook must not start collectives. An exception in a hook of an optional callback is reported once as
an event and the callback is switched off: logging never stops training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they import torch, which reports do not need
    from models.formats.telemetry import LayerFormats
    from models.moe.telemetry import LayerRouting


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did. Losses are nats per valid token, times are seconds."""

    step: int  # 1 for the first step of the run
    phase: str
    tokens: int  # consumed so far, this step included
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    step_seconds: float
    data_seconds: float  # of the step, spent waiting for data
    skipped: bool  # a NaN or infinite gradient: nothing was written
    skipped_total: int
    flops_utilisation: float | None  # None where the peak of the device is not known
    batch_hash: str  # of the global batch, equal at every layout
    place: int = 0  # tokens of the phase before this step
    batch_tokens: int = 0  # of this step's global batch
    sequence_length: int = 0  # tokens of each of its sequences
    drawn: dict[str, int] = field(default_factory=dict)  # its tokens by source, of a mixture
    routing: tuple[LayerRouting, ...] = ()  # of each layer with experts
    formats: tuple[LayerFormats, ...] = ()  # of each operand in a block format, in steps where they are counted


@dataclass(frozen=True)
class ValidationRecord:
    """What one pass over the validation split found."""

    step: int
    phase: str
    tokens: int
    validation_loss: float  # nats per token
    bits_per_byte: float
    by_source: dict[str, float] = field(default_factory=dict)  # nats per token of each corpus, where there are several


@dataclass(frozen=True)
class RunView:
    """What a callback may know of a run. Counters in it are those of the start; records carry the current ones."""

    name: str
    directory: Path
    config: dict[str, Any]  # the resolved recipe as plain data
    rank: int
    world_size: int
    start_step: int
    total_steps: int
    total_tokens: int
    parameters: int
    facts: dict[str, Any] = field(default_factory=dict)  # baselines, corpus totals, device, versions


class Callback:
    """Base of all callbacks: every hook does nothing."""

    rank_zero_only = True

    def on_start(self, run: RunView) -> None:
        """Before the first step of this process; also after a resume."""

    def on_step(self, record: StepRecord) -> None:
        """After every optimizer step."""

    def on_validation(self, record: ValidationRecord) -> None:
        """After every validation pass."""

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """After a text was sampled from the model."""

    def on_event(self, step: int, kind: str, message: str) -> None:
        """Something worth telling: `resume`, `checkpoint`, `phase`, `skip`, `warning`, `interrupted`."""

    def on_end(self, outcome: str) -> None:
        """After the last step of this process. outcome: `finished`, `interrupted` or `failed`."""
