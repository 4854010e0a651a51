"""`triaxis bench packing`: what ways of reading one corpus are worth, at equal tokens.

    triaxis bench packing [--tokens N] [--seeds 1,2] [--ways "cut; best_fit; …"] [--json FILE] [overrides]

Trains `experiment=tiny` once for each way and seed, one after another, and prints validation loss (the same held-out text in
plain order for all, sequences of 256), the difference from concatenate-and-cut of the same seed, and tokens/s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.bench.show import write_figures
from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console

MASKS = ["model.document_mask=true", "model.reset_position_ids=true", "model.attention_kernel=varlen"]
WAYS: dict[str, list[str]] = {
    "cut": [],
    "cut, documents masked": MASKS,
    "best_fit": ["data=best_fit"],
    "best_fit, documents masked": ["data=best_fit", *MASKS],
    "dataset_decomposition": ["data=decomposition"],
    "grow_length": [],
}
"""Overrides of experiment=tiny; grow_length is three phases."""

LENGTHS = (64, 128, 256)


def recipe_of(way: str, tokens: int, seed: int, place: Path, overrides: list[str]) -> Recipe:
    """The run of one way and seed; all have as many tokens, in batches of as many."""
    tokens = max(3, tokens // 4096) * 4096
    settings = [
        "experiment=tiny",
        "tracker=none",
        f"train.tokens={tokens}",
        f"schedule.warmup_tokens={tokens // 12}",
        "train.validate_every_tokens=0",
        "train.validation_tokens=0",
        "train.sample_length=0",
        "checkpoint.every_tokens=0",
        f"seed={seed}",
        f"run.dir={place}",
        f"run.name={way.replace(', ', '_').replace(' ', '_')}_{seed}",
    ]
    if way == "grow_length":
        each = tokens // 4096 // len(LENGTHS) * 4096
        phases = [
            f"{{name: s{length}, tokens: {each if length != LENGTHS[-1] else tokens - each * (len(LENGTHS) - 1)}, "
            f"train: {{sequence_length: {length}, micro_batch: {8 * LENGTHS[-1] // length}}}}}"
            for length in LENGTHS
        ]
        settings.append(f"phases=[{', '.join(phases)}]")
    return build_recipe(compose_tree([*settings, *WAYS[way], *overrides]))


def run(ways: list[str], tokens: int, seeds: list[int], overrides: list[str], console: Console) -> dict[str, Any]:
    """Every way with every seed; seeds in the outer loop, so that what the machine does meanwhile meets all ways alike."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "tokens": tokens,
        "seeds": seeds,
        "ways": {way: {"loss": [], "speed": []} for way in ways},
    }
    with tempfile.TemporaryDirectory(prefix="triaxis-packing-") as place:
        for seed in seeds:
            for way in ways:
                console.print(f"training {way}, seed {seed}", highlight=False)
                loss, speed = _trained(recipe_of(way, tokens, seed, Path(place), overrides))
                found["ways"][way]["loss"].append(loss)
                found["ways"][way]["speed"].append(speed)
    return found


def _trained(recipe: Recipe) -> tuple[float, float]:
    """(validation loss in nats/token, median tokens/s) of a run, after the first tenth of its steps."""
    from launcher.submit import train_recipe

    os.environ["TRIAXIS_QUIET"] = "1"
    try:
        code = train_recipe(replace(recipe, cluster=replace(recipe.cluster, layout="recipe")))
    finally:
        del os.environ["TRIAXIS_QUIET"]
    if code:
        raise RecipeError(f"bench packing: {recipe.run.name} ended with exit code {code}; see its message above")
    directory = Path(recipe.run.dir) / recipe.run.name
    lines = [parse_line(line) for line in (directory / FILE_NAME).read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if line and line.get("kind") == "step"]
    loss = json.loads((directory / "summary.json").read_text())["validation_loss"]
    return loss, statistics.median(speeds[len(speeds) // 10 :])


def show(figures: dict[str, Any], console: Console) -> None:
    """The table."""
    machine, base = figures["environment"]["machine"], figures["ways"].get("cut")
    console.print(
        f"experiment=tiny, {figures['tokens']:,} tokens, seeds {figures['seeds']}; {machine['cpu']}, {machine['cores']} cores, "
        f"load {figures['load_before']:.1f} before",
        highlight=False,
    )
    table = new_table("Equal tokens", "", "validation, nats/token", "beside cut", "tokens/s", "beside cut")
    for way, found in figures["ways"].items():
        losses = " ".join(f"{loss:.4f}" for loss in found["loss"])
        apart = speed = ""
        if base:
            apart = " ".join(f"{loss - other:+.4f}" for loss, other in zip(found["loss"], base["loss"], strict=True))
            ratios = [own / other for own, other in zip(found["speed"], base["speed"], strict=True)]
            speed = f"{statistics.median(ratios):.2f}"
        table.add_row(way, losses, apart, f"{statistics.median(found['speed']):,.0f}", speed)
    console.print(table)


def main(arguments: list[str]) -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="triaxis bench packing", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=600_000, help="tokens of each run")
    parser.add_argument("--seeds", default="1,2", help="one run of each way for each")
    parser.add_argument("--ways", default="; ".join(WAYS), help="ways, with semicolons between them")
    parser.add_argument("--json", help="write all figures to this file; - for the screen")
    options, overrides = parser.parse_known_args(arguments)
    ways = [way.strip() for way in options.ways.split(";")]
    for way in ways:
        if way not in WAYS:
            raise RecipeError(f"--ways={way}: choose among {'; '.join(WAYS)}")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds={options.seeds}: must be whole numbers with commas, such as 1,2") from None
    console = open_console()
    figures = run(ways, options.tokens, seeds, overrides, console)
    show(figures, console)
    write_figures(figures, options.json)
    return 0
