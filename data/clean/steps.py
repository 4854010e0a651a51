"""Every step by its name in a recipe."""

from __future__ import annotations

from typing import Any

from data.clean.base import StepConfig, configure
from data.clean.filters import FilterConfig
from data.clean.signals import SignalsConfig
from data.clean.unicode import UnicodeConfig

STEPS: dict[str, type] = {config.name: config for config in (UnicodeConfig, SignalsConfig, FilterConfig)}


def parse(options: Any, where: str) -> StepConfig:
    """The config of `{step: name, option: value, …}`; where: its place, such as corpus.clean[0], for messages."""
    return configure(STEPS, options, where)
