"""Every step by its name in a recipe."""

from __future__ import annotations

from typing import Any

from data.clean.addresses import UrlsConfig
from data.clean.base import StepConfig
from data.clean.decontaminate import DecontaminateConfig
from data.clean.duplicates import ExactConfig, MinhashConfig
from data.clean.filters import FilterConfig, QuantileConfig
from data.clean.gopher import GopherConfig
from data.clean.language import LanguageConfig
from data.clean.lines import C4Config, LinesConfig
from data.clean.options import configure
from data.clean.perplexity import PerplexityConfig
from data.clean.signals import SignalsConfig
from data.clean.unicode import UnicodeConfig

_KINDS: tuple[type, ...] = (
    UnicodeConfig,
    UrlsConfig,
    LanguageConfig,
    LinesConfig,
    C4Config,
    SignalsConfig,
    GopherConfig,
    FilterConfig,
    ExactConfig,
    MinhashConfig,
    DecontaminateConfig,
    PerplexityConfig,
    QuantileConfig,
)

STEPS: dict[str, type] = {kind.name: kind for kind in _KINDS}  # type: ignore[attr-defined]
"""Name -> config, in the order in which most corpora want them."""


def parse(options: Any, where: str) -> StepConfig:
    """The config of `{step: name, option: value, …}`; where: its place, such as corpus.clean[0], for messages."""
    return configure(STEPS, options, where)
