"""Batches go to GPUs without anybody waiting."""

from __future__ import annotations

from typing import Any

import torch

from parallel.transfer import sent


class Host:
    """A tensor on the host that writes down how it is sent."""

    device = torch.device("cpu")

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned

    def pin_memory(self) -> Host:
        return Host(pinned=True)

    def to(self, device: torch.device, non_blocking: bool = False) -> tuple[str, bool, bool]:
        return device.type, self.pinned, non_blocking


def test_what_is_sent_to_a_gpu_is_pinned_and_nobody_waits() -> None:
    found: Any = sent(Host(), torch.device("cuda", 3))  # type: ignore[arg-type]
    assert found == ("cuda", True, True)


def test_what_stays_is_itself() -> None:
    x = torch.ones(3)
    assert sent(x, torch.device("cpu")) is x
    assert sent(x, torch.device("meta")).is_meta
