"""`triaxis plan`: what a recipe would lay where, built rank by rank on paper and printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rich.table import Table

from data.manifest import Manifest
from data.remote import home_of
from launcher.check import check_budget, check_layout, with_vocabulary
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.derive import settle
from launcher.plan.memory import Memory, Work, human, memory_of
from launcher.terminal import open_console
from models.config import count_active_parameters, count_parameters
from models.flops import flops_per_token
from parallel.check import resolve_world
from parallel.config import ParallelConfig
from parallel.paper import PaperRank, build_rank
from parallel.schedule import bubble

USAGE = "triaxis plan experiment=… [option=value …] [--world=N]"
MOST_STAGES = 12  # rows of the table; more stages are shown from both ends


def show_plain(arguments: list[str]) -> int:
    """Compose, check, build one rank of every stage on paper, print: what needs no machine."""
    recipe, world = planned(arguments)
    parallel = recipe.parallel
    check_budget(recipe)
    precision = "fp32" if recipe.precision.name == "fp32" else "bf16"
    console = open_console()
    console.print(_summary(recipe, parallel, world, precision), soft_wrap=True)
    console.print("a rank of each stage: blocks of the decoder, parameters held, and bytes")
    console.print(_stages(recipe, parallel, world, precision))
    return 0


def planned(arguments: list[str]) -> tuple[Recipe, int]:
    """(recipe with its layout and vocabulary resolved and checked, processes) of a command line."""
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    recipe = settle(with_known_vocabulary(build_recipe(compose_tree(overrides))))
    world = _world(arguments, recipe.parallel)
    recipe = replace(recipe, parallel=resolve_world(recipe.parallel, world))
    check_layout(recipe, world)
    return recipe, world


def _world(arguments: list[str], parallel: ParallelConfig) -> int:
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--world" and value.isdigit():
            return int(value)
        if name.startswith("--"):
            raise RecipeError(f"{argument}: not an option of `{USAGE}`")
    return parallel.model_parallel * parallel.least_data


def with_known_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with a vocabulary: the model's own, the built corpus's, or what the tokenizer will be trained to."""
    if recipe.model.vocab_size:
        return with_vocabulary(recipe, 0)
    try:
        manifest = Manifest.load(home_of(recipe.data.home, recipe.data.cache))
        return with_vocabulary(recipe, manifest.vocab_size, manifest.eod)
    except ValueError:
        return with_vocabulary(recipe, recipe.tokenizer.vocab_size or 257)


def _summary(recipe: Recipe, parallel: ParallelConfig, world: int, precision: str) -> str:
    model, train = recipe.model, recipe.train
    count = count_parameters(model)
    used = f", {count_active_parameters(model):,} used by a token" if model.moe.experts else ""
    micro = train.batch_sequences // (train.micro_batch * parallel.data)
    sharding = f"ZeRO {parallel.zero_stage}" + (
        f" in {parallel.data_replicas} replicas" if parallel.data_replicas > 1 else ""
    )
    flops = flops_per_token(model, train.sequence_length)
    return "\n".join(
        (
            f"{model.name}: {count:,} parameters{used}, {flops / 1e9:,.2f} GFLOP a token, "
            f"{flops * recipe.train.tokens:.3g} FLOP for {train.tokens:,} tokens",
            f"mesh  {parallel.degrees} = {world} processes, "
            f"{sharding}, {precision}, recompute {parallel.recompute}"
            + (", sequence parallel" if parallel.sequence_parallel else ""),
            f"batch  {train.batch_tokens:,} tokens: {micro} micro-batches of {train.micro_batch} sequences of "
            f"{train.sequence_length} on each data rank; {train.tokens // train.batch_tokens:,} steps",
            f"bubble  {100 * bubble(parallel, micro):.1f} % of a step ({parallel.schedule})",
        )
    )


def _stages(recipe: Recipe, parallel: ParallelConfig, world: int, precision: str) -> Table:
    columns = ("stage", "blocks", "held", "weights", "gradients", "optimizer", "activations", "total")
    work = Work.of(recipe, precision)
    table = Table(*(columns), box=None, header_style="bold", pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for stage in _shown(parallel.pipeline):
        if stage < 0:
            table.add_row("…")
            continue
        rank = stage * parallel.tensor * parallel.replicas
        built = build_rank(recipe.model, parallel, world, rank, recipe.train.sequence_length)
        table.add_row(*_row(stage, built, memory_of(work, parallel, recipe.train.micro_batch, stage)))
    return table


def _shown(stages: int) -> list[int]:
    """Stages to show; -1 stands for those left out."""
    if stages <= MOST_STAGES:
        return list(range(stages))
    half = MOST_STAGES // 2
    return [*range(half), -1, *range(stages - half, stages)]


def span_text(spans: Iterable[tuple[int, int]]) -> str:
    """Blocks [start, stop) of a rank's stages: `0–3, 12`."""
    return ", ".join(str(start) if stop == start + 1 else f"{start}–{stop - 1}" for start, stop in spans)


def _row(stage: int, built: PaperRank, memory: Memory) -> list[str]:
    blocks = span_text(built.blocks)
    sizes = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
    return [str(stage), blocks, f"{built.held / 1e6:,.1f}M", *(human(size) for size in sizes)]
