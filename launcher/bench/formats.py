"""`triaxis bench formats`: what a format of products saves and costs beside a model in bfloat16, or in float32.

    triaxis bench formats [--presets mxfp8,mxfp6,…] [--base bf16|fp32] [--sequences B] [--rounds N] [--json FILE] [overrides]

Of each preset of `precision=`: bits in which a linear layer keeps its input for backward, bytes that the recipe's model keeps
in all, bytes that the all-gather of sequence parallelism moves for each number of an activation, and the time of forward and
backward as a multiple of the base's, in turns within one run. Where the hardware has no units for a format its products run in
those of bfloat16: beside bfloat16 time is what quantising costs, beside float32 that and what its products took longer.
Memory and wire are saved everywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from launcher.bench.show import write_figures
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console
from models.decoder import Decoder, initialise_blocks
from models.layers import PlainLayers
from models.precision import UNQUANTISED, ProductsConfig
from models.products import QuantisedProduct, WholeAxes
from models.random import Clock
from parallel.blocks import check_products
from parallel.config import ParallelConfig

VOCABULARY = 1024
BASES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What a model computes in where its products have no format."""
PRESETS = ("fp8", "mxfp8", "mxint8", "mxfp6", "mxfp4_mxfp6", "mxfp4_backward", "nvfp4")


def run(presets: dict[str, ProductsConfig], recipe: Recipe, sequences: int, rounds: int, base: str) -> dict[str, Any]:
    """All figures. sequences: of train.sequence_length tokens at once; rounds: turns of each contender; base: of `BASES`."""
    for option, least, value in (("--sequences", 1, sequences), ("--rounds", 2, rounds)):
        if value < least:
            raise RecipeError(f"{option}={value}: must be at least {least}")
    for products in presets.values():
        check_products(ParallelConfig(), recipe.model, products, recipe.train.sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    contenders = {
        name: _Contender(recipe, products, sequences, device, BASES[base])
        for name, products in ({base: UNQUANTISED} | presets).items()
    }
    seconds = _take_turns({name: one.step for name, one in contenders.items()}, rounds, device)
    whole = contenders[base].kept_bytes()
    figures = []
    for name, one in contenders.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True)]
        figures.append(
            {
                "preset": name,
                "kept_bits": one.kept_bits(),
                "gathered_bytes": one.gathered_bytes(),
                "model_bytes": one.kept_bytes(),
                "model_share": one.kept_bytes() / whole,
                "seconds": statistics.median(seconds[name]),
                "factor": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "device": device.type,
        "base": base,
        "model": recipe.model.name,
        "tokens": sequences * recipe.train.sequence_length,
        "rounds": rounds,
        "figures": figures,
    }


class _Contender:
    """The model in a dtype with some products, and a batch."""

    def __init__(
        self, recipe: Recipe, products: ProductsConfig, sequences: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # without a corpus nobody has said how many tokens there are
        model = replace(recipe.model, vocab_size=recipe.model.vocab_size or VOCABULARY)
        self.products, self.dtype = products, dtype
        self.clock = Clock(0)
        with device:
            self.decoder = Decoder(model, PlainLayers(self.dtype, self.clock, recipe.kernels, products))
        initialise_blocks(iter(self.decoder.blocks), 0)
        generator = torch.Generator().manual_seed(0)
        shape = (sequences, recipe.train.sequence_length)
        self.tokens = torch.randint(0, model.vocab_size, shape, generator=generator).to(device)

    def step(self) -> None:
        """Forward and backward."""
        self._forward().backward()
        self.decoder.zero_grad(set_to_none=True)

    def _forward(self) -> Tensor:
        self.clock.start(0)
        return self.decoder(self.tokens).float().square().mean()

    def kept_bytes(self) -> int:
        """That the whole model holds for backward beyond its parameters."""
        return kept_bytes(self._forward, self.decoder)

    def kept_bits(self) -> float:
        """Of each number of its input that a linear layer holds for backward."""
        if not self.products.quantised:
            return 8.0 * self.dtype.itemsize
        up = PlainLayers(self.dtype, products=self.products).column("up", 256, (256,), bias=False, std=0.02)
        x = torch.randn(128, 1, 256, generator=torch.Generator().manual_seed(0)).to(self.dtype)
        return 8 * kept_bytes(lambda: up(x.requires_grad_()), up) / x.numel()

    def gathered_bytes(self) -> float:
        """That one number of a column layer's input is on its way over the tensor axis, in forward and backward together."""
        if not self.products.quantised:
            return 2.0 * self.dtype.itemsize
        moved: list[int] = []

        class Counting(WholeAxes):
            def gather(self, x: Tensor, dim: int) -> Tensor:
                moved.append(x.nbytes)
                return x

        up = PlainLayers(self.dtype, products=self.products).column("up", 256, (256,), bias=False, std=0.02)
        assert isinstance(up.product, QuantisedProduct)
        up.product.axes = Counting()
        x = torch.randn(128, 1, 256, generator=torch.Generator().manual_seed(0)).to(self.dtype)
        up(x.requires_grad_()).sum().backward()
        return sum(moved) / x.numel()


def kept_bytes(forward: Callable[[], Any], module: torch.nn.Module) -> int:
    """Bytes of the memory that autograd holds from a forward pass on, parameters and buffers apart, each counted once."""
    known = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    held: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        alive.append(x)  # else its place might be given to another
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward()
    return sum(held.values())


def _take_turns(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in each round; the order turns round."""
    names, found = list(ways), {name: list[float]() for name in ways}
    for step in ways.values():
        step()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - begun)
    return found


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as a table."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{figures['model']}, {figures['tokens']} tokens, {figures['base']} beside its products, {figures['device']} with "
        f"{figures['threads']} threads; {machine['cpu']}, {machine['cores']} cores, load {figures['load_before']:.1f} before; "
        f"{figures['rounds']} rounds"
    )
    found = new_table(
        f"Formats beside {figures['base']}",
        "precision",
        "kept, bits a number",
        "gathered, bytes a number",
        "kept by the model",
        "ms",
        f"time, × {figures['base']}",
    )
    for one in figures["figures"]:
        found.add_row(
            one["preset"],
            f"{one['kept_bits']:.2f}",
            f"{one['gathered_bytes']:.2f}",
            f"{one['model_bytes'] / 1e6:.1f} MB ({one['model_share']:.0%})",
            f"{1000 * one['seconds']:.0f}",
            f"{one['factor']:.2f} ({one['low']:.2f}–{one['high']:.2f})",
        )
    console.print(found)


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe, whose model is measured."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench formats", description="What formats of products save and cost."
    )
    parser.add_argument("--presets", default=",".join(PRESETS), help="of precision=, with commas between")
    parser.add_argument("--base", choices=tuple(BASES), default="bf16", help="what all else computes in (default bf16)")
    parser.add_argument(
        "--sequences", type=int, default=4, help="sequences of train.sequence_length at once (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parser.parse_known_args(arguments)
    presets = {}
    for name in flags.presets.split(","):
        products = build_recipe(compose_tree([*overrides, f"precision={name}"])).precision.products
        if not products.quantised:
            raise RecipeError(f"--presets={name}: quantises nothing; choose of {', '.join(PRESETS)}")
        presets[name] = products
    figures = run(presets, build_recipe(compose_tree(overrides)), flags.sequences, flags.rounds, flags.base)
    show(figures)
    write_figures(figures, flags.json)
    return 0
