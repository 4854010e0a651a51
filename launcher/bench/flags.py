"""Command lines of benches: flags of their own, everything else overrides of a recipe."""

from __future__ import annotations

import argparse


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, overrides) of a bench that trains a recipe: experiment=tiny where none is named."""
    flags, overrides = parser.parse_known_args(arguments)
    if not any(text.startswith("experiment=") for text in overrides):
        overrides.insert(0, "experiment=tiny")
    return flags, overrides
