"""`triaxis bench gradients`: what number formats do to the gradient of a trained model, beside the noise of its batches.

    triaxis bench gradients RUN [--presets mxfp8,mxfp6,… | --sweep mx_parity] [--batches N] [--tokens T] [--step N]
                                [--json FILE]

Batches of held-out text go through a checkpoint's model in float32 and in each format, on processors. A format's error of a
batch's gradient has a part that differs from batch to batch, which more tokens average away as they do the batch's own noise,
and a part that does not, its bias. Both are told in the measure of the gradient noise scale (arXiv 1812.06162): what a batch in
the format is worth, and from how many tokens on the bias is larger than what is left of the batches' noise.

A format of forward computes another function. At weights that were trained without it that function's gradient points back to
where it is good: a bias, and a batch worth more than all of its tokens, that training in the format would do away with.

Estimates of squared norms of means take products of different batches alone, so that noise adds nothing to them on average.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from data.open import ordered_stream
from launcher.batches import Sampler, ordered_batch
from launcher.bench.formats import PRESETS
from launcher.bench.show import write_figures
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.generate import load_model
from launcher.machine import environment
from launcher.sweep.config import overrides_of
from launcher.terminal import new_table, open_console
from models.decoder import Decoder, named_parameters
from models.linear import cross_entropy
from models.random import Clock
from parallel.blocks import check_products
from parallel.checkpoint.store import resolve
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.context import start_clock
from parallel.engines.base import Batch, micro_batches

LEAST_BATCHES = 8
"""Fewer tell no bias from chance: a true one is at most 0.87 times the root of their number above what is told of its error."""


class Moments:
    """Of vectors [P] that come one by one: estimates of their mean's squared norm and of their scatter round it."""

    def __init__(self) -> None:
        self.count, self.squares = 0, 0.0
        self.total: Tensor | None = None
        self._crossed: list[float] = []

    def add(self, x: Tensor) -> None:
        """The next vector; it may be written over afterwards."""
        self.count += 1
        self.squares += _dot(x, x)
        if self.total is None:
            self.total = x.clone()
            return
        self._crossed.append(_dot(x, self.total))
        self.total += x

    @property
    def mean_square(self) -> float:
        """Of the squared norm of the mean, unbiased: products of different vectors. It may come out below zero."""
        return math.fsum(self._crossed) / self._pairs

    @property
    def mean_square_error(self) -> float:
        """Standard deviation of `mean_square` if the true mean is zero: its summands are then uncorrelated."""
        return math.sqrt(math.fsum(x * x for x in self._crossed)) / self._pairs

    @property
    def variance(self) -> float:
        """Of the mean squared distance from the true mean, unbiased."""
        return self.squares / self.count - self.mean_square

    @property
    def _pairs(self) -> float:
        return self.count * (self.count - 1) / 2


@dataclass
class Arm:
    """A way to compute gradients, and what they were. error: what they differ by from float32's."""

    name: str
    decoder: Decoder
    clock: Clock
    found: Moments = field(default_factory=Moments)
    error: Moments = field(default_factory=Moments)
    crossed: float = 0.0

    def gradient(self, batch: Batch, recipe: Recipe) -> Tensor:
        """Of the mean loss of a batch's targets, by their weights: float32 [P], all parameters in order."""
        total = batch.weights.sum()
        start_clock(self.clock, recipe.model, batch, torch.device("cpu"))
        # a clock counts micro-batches of one size
        for part in micro_batches(batch, math.gcd(len(batch.inputs), recipe.train.micro_batch)):
            logits = self.decoder(part.inputs)
            first = part.targets.shape[1] - logits.shape[0]  # an encoder's rows predict nothing
            losses = cross_entropy(logits, part.targets[:, first:].t().contiguous(), recipe.loss.terms)
            ((losses * part.weights[:, first:].t()).sum() / total).backward()
        pieces = []
        for _, parameter in named_parameters(iter(self.decoder.blocks)):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            pieces.append(gradient.float().flatten())
        self.decoder.zero_grad(set_to_none=True)
        return torch.cat(pieces)

    def compare(self, gradient: Tensor, base: Tensor) -> None:
        """Count a batch's gradient beside float32's of the same batch; `gradient` is written over."""
        self.found.add(gradient)
        gradient -= base
        self.error.add(gradient)
        self.crossed += _dot(gradient, base)

    def figures(self, base: Moments, tokens: int) -> dict[str, Any]:
        """What the format did to batches of so many tokens."""
        assert self.error.total is not None and base.total is not None
        count, signal = base.count, base.mean_square
        along = (_dot(self.error.total, base.total) - self.crossed) / (count * (count - 1)) / signal
        bias, known = self.error.mean_square, self.error.mean_square_error
        told = bias > 2 * known
        limit = bias if told else max(bias, 0.0) + 2 * known
        return {
            "precision": self.name,
            "error": math.sqrt(self.error.squares / base.squares),
            "worth": (1 + along) ** 2 * base.variance / self.found.variance,
            "along": along,
            "bias": math.sqrt(limit / signal),
            "bias_told": told,
            "bias_squared": bias / signal,
            "bias_squared_error": known / signal,
            "tokens": tokens * base.variance / limit if limit > 0 else math.inf,
        }


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))


def run(
    place: Path, arms: dict[str, PrecisionConfig], batches: int, tokens: int = 0, step: int | None = None
) -> dict[str, Any]:
    """All figures. tokens: of a batch, 0 for the run's own; step: of the checkpoint, None for the newest."""
    if batches < LEAST_BATCHES:
        raise RecipeError(f"--batches={batches}: tells no bias from chance; must be at least {LEAST_BATCHES}")
    loaded, recipe = load_model(place, step)
    length = recipe.train.sequence_length
    tokens = tokens or recipe.train.batch_tokens
    if tokens < length or tokens % length:
        raise RecipeError(f"--tokens={tokens}: must be a multiple of train.sequence_length={length}")
    base = Arm("fp32", loaded.model.train(), loaded.clock)
    tried = [_arm(name, precision, place, step, recipe) for name, precision in arms.items()]
    console = open_console(stderr=True)
    for batch in track(_held_out(recipe, tokens // length, batches), "batches", batches, console=console):
        gradient = base.gradient(batch, recipe)
        base.found.add(gradient)
        for arm in tried:
            arm.compare(arm.gradient(batch, recipe), gradient)
    signal = base.found.mean_square
    if signal <= 2 * base.found.mean_square_error:
        raise RecipeError(
            f"--batches={batches} of --tokens={tokens}: the gradient itself cannot be told from the noise of so few tokens; "
            "raise one of them, or take an earlier --step"
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "run": str(place),
        "checkpoint": resolve(place, step).name,
        "model": recipe.model.name,
        "batches": batches,
        "tokens": tokens,
        "noise_scale": tokens * base.found.variance / signal,
        "figures": [arm.figures(base.found, tokens) for arm in tried],
    }


def _arm(name: str, precision: PrecisionConfig, place: Path, step: int | None, recipe: Recipe) -> Arm:
    check_products(ParallelConfig(), recipe.model, precision.products, recipe.train.sequence_length)
    if precision.name == "fp16":
        raise RecipeError(
            f"{name}: precision.name=fp16: its gradients need a loss scale, which is the run's; leave it out"
        )
    dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
    loaded, _ = load_model(place, step, dtype, precision.products)
    return Arm(name, loaded.model.train(), loaded.clock)


def _held_out(recipe: Recipe, rows: int, batches: int) -> Iterator[Batch]:
    """The first batches of the validation split, in plain order."""
    length = recipe.train.sequence_length
    stream = ordered_stream(recipe.data.home, "validation", length, recipe.data.cache)
    if (there := stream.sources[0].units) < rows * batches:
        raise RecipeError(
            f"--batches={batches} of --tokens={rows * length:,}: {recipe.data.home} holds out {there * length:,} tokens; take "
            "fewer or smaller ones"
        )
    sampler = Sampler(recipe, stream)
    for first in range(0, rows * batches, rows):
        yield ordered_batch(sampler, stream, first, rows, length)


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as a table."""
    console = console or open_console()
    console.print(
        f"{figures['model']}, {figures['run']} at {figures['checkpoint']}: {figures['batches']} batches of "
        f"{figures['tokens']:,} tokens; gradient noise scale {figures['noise_scale']:,.0f} tokens"
    )
    found = new_table(
        "Gradients beside float32's",
        "precision",
        "error of a batch",
        "a batch is worth",
        "along",
        "bias",
        "shows beyond",
    )
    for one in figures["figures"]:
        below, above = ("", "") if one["bias_told"] else ("< ", "> ")
        found.add_row(
            one["precision"],
            f"{one['error']:.2%}",
            f"{one['worth']:.1%}",
            f"{one['along']:+.2%}",
            f"{below}{one['bias']:.2%}",
            f"{above}{_count(one['tokens'])}",
        )
    found.caption = (
        "error: root mean square, of the gradient's size; worth: of as many tokens in float32; along: how much longer the mean "
        "gradient is; bias: of the mean gradient's size; shows beyond: tokens that average the batches' noise to it"
    )
    console.print(found)


def _count(tokens: float) -> str:
    if not math.isfinite(tokens):
        return "any"
    power = max(0, min(4, int(math.log10(max(tokens, 1)) // 3)))
    return f"{tokens / 1000**power:.3g} {('tokens', 'k', 'M', 'B', 'T')[power]}"


def arms_of(presets: str, sweep: str) -> dict[str, PrecisionConfig]:
    """What to measure: presets of `precision=`, or the arms of a sweep's recipe but the one that is float32 throughout."""
    if not sweep:
        found = {name: build_recipe(compose_tree([f"precision={name}"])).precision for name in presets.split(",")}
    else:
        config = build_recipe(compose_tree([f"experiment={sweep}"])).sweep
        axis = config.compare or next(reversed(config.axes), "")
        if not axis:
            raise RecipeError(f"--sweep={sweep}: has no axes, so no arms; choose another experiment, or --presets")
        arms = overrides_of(axis, config.axes[axis])
        found = {
            name: build_recipe(compose_tree([f"experiment={sweep}", *overrides])).precision
            for name, overrides in arms.items()
        }
    found = {name: one for name, one in found.items() if one.products.quantised or one.name == "bf16"}
    if not found:
        named = f"--sweep={sweep}" if sweep else f"--presets={presets}"
        raise RecipeError(f"{named}: nothing in it differs from float32; choose of bf16, {', '.join(PRESETS)}")
    return found


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench gradients", description="What formats do to the gradient of a trained model."
    )
    parser.add_argument("run", type=Path, help="a run or checkpoint")
    parser.add_argument("--presets", default="bf16," + ",".join(PRESETS), help="of precision=, with commas between")
    parser.add_argument("--sweep", default="", help="the arms of this experiment's sweep instead, such as mx_parity")
    parser.add_argument("--batches", type=int, default=32, help="of held-out text (default 32)")
    parser.add_argument("--tokens", type=int, default=0, help="of a batch (default: the run's train.batch_tokens)")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags = parser.parse_args(arguments)
    figures = run(flags.run, arms_of(flags.presets, flags.sweep), flags.batches, flags.tokens, flags.step)
    show(figures)
    write_figures(figures, flags.json)
    return 0
