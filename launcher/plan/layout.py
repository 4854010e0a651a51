"""`triaxis plan layout`: which rank is where, and what each stage does when, as a table and a picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from launcher.config import Recipe, RecipeError
from launcher.plan.show import planned, span_text
from launcher.report.theme import LIGHT
from parallel.check import choose_engine
from parallel.config import ParallelConfig, describe_sharding
from parallel.schedule import bubble, stage_count, stages_of
from parallel.stages import stage_bounds, stage_costs
from parallel.timeline import BACKWARD, FORWARD, INPUT, WEIGHT, Slot, idle_share, timeline

USAGE = "triaxis plan layout experiment=… [option=value …] [--world=N] [--png=FILE]"
COLOURS = {FORWARD: LIGHT.series[0], BACKWARD: LIGHT.series[2], INPUT: LIGHT.series[2], WEIGHT: LIGHT.series[4]}
MOST_RANKS = 32  # lines of the table
MOST_NUMBERED = 600  # actions that still get their micro-batch's number


def layout_command(arguments: list[str]) -> int:
    """Print the rank table and the bubble, draw the timeline of one step."""
    pictures = [argument for argument in arguments if argument.startswith("--png=")]
    recipe, world = planned([argument for argument in arguments if argument not in pictures])
    parallel = recipe.parallel
    print(rank_table(recipe, world))
    if parallel.pipeline == 1:
        if pictures:
            raise RecipeError(f"{pictures[0]}: nothing to draw with parallel.pipeline=1; set parallel.pipeline above 1")
        return 0
    micro = recipe.train.batch_sequences // (recipe.train.micro_batch * parallel.data)
    costs = stage_costs(recipe.model, stage_count(parallel), recipe.train.sequence_length)
    even, real = timeline(parallel, micro), timeline(parallel, micro, costs)
    theory, idle, ours = (100 * share for share in (bubble(parallel, micro), idle_share(even), idle_share(real)))
    print(
        f"bubble  {idle:.1f} % of a step with equal stages (in theory {theory:.1f} %), {ours:.1f} % with this model's stages"
    )
    path = Path(pictures[-1].removeprefix("--png=")) if pictures else Path("layout.png")
    path.write_bytes(draw(real, parallel, micro))
    print(f"picture {path}")
    return 0


def rank_table(recipe: Recipe, world: int) -> str:
    """The layout in words, then a line a rank: its place on each axis, and its blocks of the decoder."""
    parallel, length = recipe.parallel, recipe.train.sequence_length
    bounds = stage_bounds(recipe.model, stage_count(parallel), length)
    engine, why = choose_engine(parallel, world)
    lines = [
        f"{recipe.model.name}: {parallel.degrees} = {world} processes",
        f"engine {engine.engine}{describe_sharding(engine, world)} ({why})",
        "  ".join(("rank", *parallel.places(0), "blocks")),
    ]
    for rank in range(min(world, MOST_RANKS)):
        places = parallel.places(rank)
        blocks = span_text((bounds[stage], bounds[stage + 1]) for stage in stages_of(parallel, places["pipeline"]))
        lines.append("  ".join((f"{rank:4d}", *(f"{at:{len(axis)}d}" for axis, at in places.items()), blocks)))
    if world > MOST_RANKS:
        lines.append(f"… and {world - MOST_RANKS} more")
    return "\n".join(lines)


def _corners(slot: Slot) -> tuple[tuple[float, float], ...]:
    """Of its box: time, and how far from the middle of its row."""
    return (slot.begin, -0.42), (slot.end, -0.42), (slot.end, 0.42), (slot.begin, 0.42)


def draw(slots: list[Slot], parallel: ParallelConfig, micro_batches: int) -> bytes:
    """A PNG: a row a rank of the pipeline axis, time to the right; later stages of a rank are lighter."""
    end, ranks = max(slot.end for slot in slots), parallel.pipeline
    figure = Figure(figsize=(min(24.0, max(8.0, end * 0.22)), 1.4 + 0.42 * ranks), dpi=130, layout="constrained")
    axes = figure.subplots()
    turns = [{stage: turn for turn, stage in enumerate(stages_of(parallel, rank))} for rank in range(ranks)]
    corners = [[(at, slot.rank + y) for at, y in _corners(slot)] for slot in slots]
    faces = [to_rgba(COLOURS[slot.kind], max(0.35, 1 - 0.4 * turns[slot.rank][slot.stage])) for slot in slots]
    axes.add_collection(PolyCollection(corners, facecolors=faces, edgecolors=LIGHT.paper, linewidths=0.6))
    if len(slots) <= MOST_NUMBERED:
        for slot in slots:
            centre = (slot.begin + slot.end) / 2
            axes.text(centre, slot.rank, str(slot.micro_batch), ha="center", va="center", fontsize=6, color=LIGHT.ink)
    axes.set_xlim(0, end)
    axes.set_ylim(ranks - 0.5, -0.5)
    axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    axes.set_xlabel("time, in forwards of the mean stage", color=LIGHT.quiet)
    axes.set_title(
        f"{parallel.schedule}, {ranks} ranks x {len(stages_of(parallel, 0))} stages, {micro_batches} micro-batches: "
        f"idle {100 * idle_share(slots):.1f} %",
        loc="left",
        color=LIGHT.ink,
        fontsize=10,
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=LIGHT.quiet)
    kinds = [kind for kind in COLOURS if any(slot.kind == kind for slot in slots)]
    figure.legend(
        handles=[Patch(color=COLOURS[kind], label=kind) for kind in kinds],
        loc="outside lower right",
        ncols=len(kinds),
        frameon=False,
        fontsize=8,
    )
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
