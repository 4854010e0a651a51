"""Pictures of plans: seconds and memory of the best layouts as stacked bars, all of them on one plane, and the timeline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from launcher.plan.evaluate import Plan, Task
from launcher.plan.layout import draw
from launcher.plan.search import Found
from launcher.plan.step import PARTS
from launcher.plan.tell import short_text
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme
from parallel.timeline import timeline

MOST_SLOTS = 20_000  # actions of a timeline that is still drawn


def draw_all(folder: Path, task: Task, plan: Plan, found: Found | None) -> list[Path]:
    """Write the pictures of a plan into a folder, which is made; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = list(found.best) if found else [plan]
    pictures = {"bars.png": bars(task, plans)}
    if found:
        pictures["front.png"] = front(task, found)
    parallel, micro_batches = plan.parallel, task.work.batch // (plan.micro_batch * plan.parallel.data)
    if parallel.pipeline > 1 and 2 * micro_batches * len(plan.step.stages) <= MOST_SLOTS:
        mean = sum(forward for forward, _ in plan.step.stages) / len(plan.step.stages)
        slots = timeline(parallel, micro_batches, [forward / mean for forward, _ in plan.step.stages])
        pictures["timeline.png"] = draw(slots, parallel, micro_batches)
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    return [folder / name for name in pictures]


def bars(task: Task, plans: list[Plan], theme: Theme = LIGHT) -> bytes:
    """A row for each layout: to the left its seconds by part, to the right its bytes by part with the room that there is."""
    seconds = [{part: plan.step.parts[part] for part in PARTS} for plan in plans]
    sizes = [{part: size / 1e9 for part, size in plan.memory.parts().items()} for plan in plans]
    labels = [f"{short_text(plan)}\n{_details(plan)}" for plan in plans]
    with in_style(theme):
        figure = Figure(figsize=(13.0, 2.6 + 0.52 * len(plans)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _stack(left, seconds, theme)
        _stack(right, sizes, theme)
        left.set_yticks(range(len(plans)), labels, fontsize=9)
        left.set_ylim(len(plans) - 0.4, -0.6)
        right.axvline(task.room / 1e9, color=theme.ink, linewidth=1.2, linestyle="--")
        title(left, theme, f"{task.recipe.model.name} on {task.gpus:,} {task.machine.chip.name}: seconds of a step")
        title(right, theme, "memory of the fullest rank, GB", f"dashed: {task.room / 1e9:.0f} GB")
        return file_of(figure, theme, "png")


def _details(plan: Plan) -> str:
    parallel = plan.parallel
    schedule = f"{parallel.schedule}, " if parallel.pipeline > 1 else ""
    return f"{schedule}ZeRO {parallel.zero_stage}, {parallel.recompute}, mb {plan.micro_batch}"


def _stack(axes: Axes, rows: list[dict[str, float]], theme: Theme) -> None:
    """Stacked bars with a legend below; parts below half a percent of all are left out of it."""
    whole = max(sum(row.values()) for row in rows)
    ends = [0.0] * len(rows)
    for index, part in enumerate(rows[0]):
        values = [row[part] for row in rows]
        if max(values) <= 0:
            continue
        hatch = "//" if index >= len(theme.series) else ""
        name = part if max(values) > 0.005 * whole else f"_{part}"
        axes.barh(
            range(len(rows)),
            values,
            left=ends,
            height=0.62,
            color=theme.series[index % len(theme.series)],
            edgecolor=theme.paper,
            linewidth=0.5,
            hatch=hatch,
            label=name,
        )
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for index, end in enumerate(ends):
        plain = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        axes.text(
            end + 0.012 * whole, index, f"{end:.3g}", va="center", fontsize=9, color=theme.ink, bbox=plain, zorder=3
        )
    axes.set_xlim(0, 1.14 * whole)
    axes.grid(visible=False, axis="y")
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.06), ncols=4, frameon=False, fontsize=8.5, labelcolor=theme.quiet
    )


def front(task: Task, found: Found, theme: Theme = LIGHT) -> bytes:
    """Every layout whose memory is known as a point: memory to the right, seconds up; those that nothing beats are joined."""
    with in_style(theme):
        figure = Figure(figsize=(10.0, 5.6), layout="constrained")
        axes = figure.subplots()
        colours = dict(zip(("none", "selective", "block"), theme.series, strict=False))
        for recompute, colour in colours.items():
            some = [plan for plan in found.seen if plan.parallel.recompute == recompute]
            sizes, seconds = [plan.memory.total / 1e9 for plan in some], [plan.step.seconds for plan in some]
            axes.scatter(sizes, seconds, s=9, color=colour, alpha=0.5, linewidths=0, label=f"recompute {recompute}")
        best = found.front
        axes.step(
            [plan.memory.total / 1e9 for plan in best],
            [plan.step.seconds for plan in best],
            where="pre",
            color=theme.ink,
            linewidth=1.2,
            label="none is quicker and smaller",
        )
        axes.axvline(task.room / 1e9, color=theme.ink, linewidth=1.2, linestyle="--")
        quickest = found.best[0]
        axes.plot([quickest.memory.total / 1e9], [quickest.step.seconds], "D", color=theme.series[1], markersize=8)
        axes.annotate(
            short_text(quickest),
            (quickest.memory.total / 1e9, quickest.step.seconds),
            (-8, -16),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            color=theme.ink,
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("memory of the fullest rank, GB", color=theme.quiet)
        axes.set_ylabel("seconds of a step", color=theme.quiet)
        title(
            axes,
            theme,
            f"{task.recipe.model.name} on {task.gpus:,} {task.machine.chip.name}",
            f"{found.judged:,} layouts",
        )
        axes.legend(frameon=False, fontsize=9, labelcolor=theme.quiet, markerscale=2)
        return file_of(figure, theme, "png")
