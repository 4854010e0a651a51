"""`triaxis bench attention`: what a document mask costs, and what is won where hidden pairs are not computed.

    triaxis bench attention [--lengths 1024,2048] [--documents 64,256] [--rounds N] [--json FILE] [model overrides]

Forward and backward of one attention core, for packed documents of a mean length: under a dense mask, document by document
(model.attention_kernel=varlen), and plainly causal, as if all of a sequence were one document. In turns within one run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from launcher.bench.moe import turns
from launcher.bench.show import write_figures
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console
from models.config import ModelConfig
from models.core import CoreSpec
from models.random import Clock
from models.varlen import core_of

TOKENS = 4096  # of one micro-batch


def run(model: ModelConfig, lengths: list[int], documents: list[int], rounds: int) -> dict[str, Any]:
    """All figures. lengths: tokens of a sequence; documents: mean tokens of a document; rounds: turns of each contender."""
    for option, least, values in (("--lengths", 2, lengths), ("--documents", 1, documents), ("--rounds", 2, [rounds])):
        if min(values) < least:
            raise RecipeError(f"{option}={min(values)}: must be at least {least}")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "heads": model.heads,
        "kv_heads": model.key_value_heads,
        "head_size": model.head_width,
        "rounds": rounds,
        "figures": [
            {"length": length, "document": mean, **_compare(model, length, mean, rounds)}
            for length in lengths
            for mean in documents
            if mean < length
        ],
    }


def _compare(model: ModelConfig, length: int, mean: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way, and how many times as fast as a dense mask document by document is."""
    generator, sequences = torch.Generator().manual_seed(0), max(1, TOKENS // length)
    counts = (model.heads, model.key_value_heads, model.key_value_heads)
    query, key, value = (
        torch.randn(length, sequences, count, model.head_width, generator=generator, requires_grad=True)
        for count in counts
    )
    outward = torch.randn(length, sequences, model.heads * model.head_width, generator=generator)
    clock = Clock(0)
    clock.start(0, (torch.rand(sequences, length, generator=generator) < 1 / mean).long().cumsum(1))

    def contender(**options: bool) -> Callable[[], None]:
        core = core_of(CoreSpec(heads=model.heads, window=model.attention_window, **options), clock)
        return lambda: core(query, key, value, 0, True).backward(outward)

    ways = {
        "varlen": contender(documents=True, varlen=True),
        "causal": contender(),
        "dense": contender(documents=True),
    }
    return turns(ways, rounds, 1)


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as a table."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{figures['heads']} heads ({figures['kv_heads']} of keys and values) of {figures['head_size']}, float32, "
        f"micro-batches of {TOKENS} tokens, {figures['threads']} threads; {machine['cpu']}, {machine['cores']} cores, load "
        f"{figures['load_before']:.1f} before; {figures['rounds']} rounds"
    )
    found = new_table(
        "Medians of forward and backward", "tokens / mean document", "dense ms", "causal ms", "varlen ms", "gain"
    )
    for one in figures["figures"]:
        seconds = (f"{1000 * one['seconds'][way]:.1f}" for way in ("dense", "causal", "varlen"))
        told = f"{one['ratio']:.2f}× ({one['low']:.2f}–{one['high']:.2f})"
        found.add_row(f"{one['length']} / {one['document']}", *seconds, told)
    console.print(found)


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe, whose model is measured."""
    parser = argparse.ArgumentParser(prog="triaxis bench attention", description="What a document mask costs.")
    parser.add_argument("--lengths", default="512,1024,2048,4096", help="tokens of a sequence")
    parser.add_argument("--documents", default="64,256,1024", help="mean tokens of a document")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parser.parse_known_args(arguments)
    lists = {}
    for option in ("lengths", "documents"):
        try:
            lists[option] = [int(value) for value in getattr(flags, option).split(",")]
        except ValueError:
            raise RecipeError(
                f"--{option}={getattr(flags, option)}: must be whole numbers with commas between"
            ) from None
    figures = run(build_recipe(compose_tree(overrides)).model, **lists, rounds=flags.rounds)
    show(figures)
    write_figures(figures, flags.json)
    return 0
