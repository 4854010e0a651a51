"""`triaxis bench coordinates`: the coordinate check, how large activations are after a few steps at several widths or depths.

    triaxis bench coordinates [overrides] [--widths 64,128,256,512 | --depths 2,4,8,16] [--steps N] [--rate R] [--seeds N]
                              [--png FILE] [--json FILE]

The recipe's model is trained at every size on one batch, in float32 in this process, as `standard` has it and as mup (widths)
or completep (depths) does with the first size as base, at one learning rate. Where what is learned grows or shrinks with the
size, so does the best learning rate (arXiv 2203.03466, appendix D.1). Counted is the root mean square over all elements of how
far activations have moved since the first step, and its slope: log of it over log of the size. 0 is flat.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from launcher.bench.show import write_figures
from launcher.bench.stepper import VOCABULARY
from launcher.compose import build_recipe, compose_tree
from launcher.config import OptimizerConfig, Recipe, RecipeError
from launcher.optim.build import optimizer_factory
from launcher.terminal import new_table, open_console
from models.config import ModelConfig
from models.decoder import Decoder, DecoderLayer, initialise_blocks, named_parameters
from models.layers import PlainLayers
from models.linear import cross_entropy
from models.parametrization import ParametrizationConfig
from models.random import Clock
from parallel.engines.base import set_learning_rate

PARTS = ("attention", "feed-forward", "residual stream", "logits")
"""Branches of the last layer, what leaves it, and what leaves the model."""
Moved = dict[str, list[float]]
"""Root mean square of each part's change after each step."""


def sized(model: ModelConfig, width: int, depth: int) -> ModelConfig:
    """The model at another size: more heads of the same size, feed-forward layers and experts in proportion."""
    head, grown = model.head_width, width / model.hidden_size
    if width % head or width // head % (model.heads // model.key_value_heads):
        groups = model.heads // model.key_value_heads
        raise RecipeError(
            f"--widths={width}: heads of model.head_size={head} in groups of {groups} do not fill it; choose multiples of "
            f"{head * groups}, or other heads"
        )
    heads = width // head
    moe = model.moe
    if moe.expert_size:
        moe = replace(moe, expert_size=_multiple(moe.expert_size * grown))
    return replace(
        model,
        hidden_size=width,
        layers=depth,
        heads=heads,
        kv_heads=heads * model.key_value_heads // model.heads,
        head_size=head,
        ffn_size=_multiple(model.ffn_width * grown),
        moe=moe,
    )


def _multiple(size: float) -> int:
    return max(8, round(size / 8) * 8)


def check(model: ModelConfig, optimizer: OptimizerConfig, rate: float, steps: int, seed: int) -> Moved:
    """Train a model on one batch, and note after each of some steps how far each part has moved."""
    layers = PlainLayers(torch.float32, Clock(seed))
    decoder = Decoder(model, layers)
    initialise_blocks(iter(decoder.blocks), seed)
    named = list(named_parameters(iter(decoder.blocks)))
    stepper = optimizer_factory(optimizer, model=model)(named)
    set_learning_rate(stepper, rate)
    tokens = _text(model.vocab_size, seed)
    found: dict[str, Tensor] = {}
    _watch(decoder, found)
    begin: dict[str, Tensor] = {}
    moved: Moved = {part: [] for part in PARTS}
    for step in range(steps + 1):
        loss = cross_entropy(decoder(tokens[:, :-1]), tokens[:, 1:].t()).mean()
        if step == 0:
            begin = dict(found)
        else:
            for part in PARTS:
                moved[part].append(float((found[part] - begin[part]).square().mean().sqrt()))
        loss.backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    return moved


def _text(vocabulary: int, seed: int) -> Tensor:
    """Tokens int64 [4, 65]; each second one follows from the one before it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (4, 65), generator=generator)
    tokens[:, 1::2] = (tokens[:, 0:-1:2] * 3 + 1) % vocabulary
    return tokens


def _watch(decoder: Decoder, found: dict[str, Tensor]) -> None:
    """Note the outputs of the parts whenever the decoder runs."""
    last = [block for block in decoder.blocks if isinstance(block, DecoderLayer)][-1]
    watched = (last.attention, last.feed_forward, last, decoder)
    for part, module in zip(PARTS, watched, strict=True):
        module.register_forward_hook(lambda module, inputs, output, part=part: found.update({part: output.detach()}))


def run(recipe: Recipe, sizes: list[int], along: str, *, steps: int, rate: float, seeds: int) -> dict[str, Any]:
    """All figures. sizes: widths or depths, the first of them the base; along: `width` or `depth`."""
    base = replace(recipe.model, vocab_size=recipe.model.vocab_size or VOCABULARY)
    size_of = partial(_at, base, along)
    small = size_of(sizes[0])
    kind = "mup" if along == "width" else "completep"
    options = {} if along == "width" else {"base_depth": small.layers}
    followed = ParametrizationConfig(kind, small.hidden_size, small.head_width, **options)
    arms: dict[str, Any] = {}
    for name, parametrization in (("standard", ParametrizationConfig()), (kind, followed)):
        arms[name] = {}
        for size in sizes:
            model = replace(size_of(size), parametrization=parametrization)
            runs = [check(model, recipe.optimizer, rate, steps, seed) for seed in range(1, seeds + 1)]
            arms[name][size] = {
                part: [statistics.fmean(one[part][step] for one in runs) for step in range(steps)] for part in PARTS
            }
    slopes = {
        name: {part: slope({s: one[part][-1] for s, one in arm.items()}) for part in PARTS}
        for name, arm in arms.items()
    }
    return {
        "model": base.name,
        "along": along,
        "optimizer": recipe.optimizer.name,
        "learning_rate": rate,
        "steps": steps,
        "seeds": seeds,
        "moved": arms,
        "slopes": slopes,
    }


def _at(model: ModelConfig, along: str, size: int) -> ModelConfig:
    return sized(model, size, model.layers) if along == "width" else sized(model, model.hidden_size, size)


def slope(values: dict[int, float]) -> float:
    """Of the line of least squares through log value over log size."""
    return statistics.linear_regression([math.log(x) for x in values], [math.log(y) for y in values.values()]).slope


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as a table."""
    console = console or open_console()
    console.print(figures["model"], style="bold", end=", ")
    console.print(
        f"{figures['optimizer']} at learning rate {figures['learning_rate']:g}, "
        f"{figures['seeds']} seeds; how far activations moved in {figures['steps']} steps, root mean square"
    )
    sizes = [str(size) for size in next(iter(figures["moved"].values()))]
    for name, arm in figures["moved"].items():
        table = new_table(f"{name}, by {figures['along']}", "", *sizes, "slope")
        for part in PARTS:
            values = [f"{one[part][-1]:.4g}" for one in arm.values()]
            table.add_row(part, *values, f"{figures['slopes'][name][part]:+.2f}")
        console.print(table)


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench coordinates", description="The coordinate check: activations over width or depth."
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--widths", help="hidden sizes, the first of them the base (default 64,128,256,512)")
    sizes.add_argument("--depths", help="layers instead, at the recipe's width; the first is the base")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps (default 4)")
    parser.add_argument("--rate", type=float, default=0.0, help="learning rate (default the recipe's)")
    parser.add_argument(
        "--seeds", type=int, default=2, help="initial weights and batches that are averaged (default 2)"
    )
    parser.add_argument("--png", metavar="FILE", help="draw the picture there")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parser.parse_known_args(arguments)
    recipe = build_recipe(compose_tree(overrides))
    figures = run(
        recipe,
        _sizes(flags),
        "depth" if flags.depths else "width",
        steps=flags.steps,
        rate=flags.rate or recipe.optimizer.learning_rate,
        seeds=flags.seeds,
    )
    show(figures)
    write_figures(figures, flags.json)
    if flags.png:
        from launcher.bench.coordinates_picture import picture

        Path(flags.png).write_bytes(picture(figures))
    return 0


def _sizes(flags: argparse.Namespace) -> list[int]:
    option = "--depths" if flags.depths else "--widths"
    text = flags.depths or flags.widths or "64,128,256,512"
    parts = text.split(",")
    if not all(part.isdigit() and int(part) > 0 for part in parts) or len({*parts}) < 2:
        raise RecipeError(f"{option}={text}: must be at least two numbers above 0, as 64,128,256")
    if flags.steps < 1 or flags.seeds < 1:
        raise RecipeError(f"--steps={flags.steps} --seeds={flags.seeds}: must be at least 1")
    return [int(part) for part in parts]
