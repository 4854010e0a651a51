"""A plan in words and tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from launcher.plan.evaluate import Plan, Task
from launcher.plan.memory import human
from launcher.plan.search import Found
from launcher.plan.step import PARTS
from launcher.terminal import open_console
from parallel.config import describe_sharding

SHOWN = 8  # layouts of a search
LEAST_WIDTH = 124  # columns of its table, which says nothing when it is cut
SHORT = {"interleaved_1f1b": "interleaved", "interleaved_zero_bubble": "zero bubble"}


def tell(task: Task, plan: Plan, given: Plan | None, found: Found | None, figures: dict[str, Any]) -> None:
    """Print it. given: as the recipe lays it out, where that is not what was found."""
    console = open_console()
    console.width = max(console.width, LEAST_WIDTH)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(_head(task, figures))
    say(f"layout  {layout_text(plan, task.gpus)}")
    console.print(_seconds(plan))
    for line in plan.step.traffic:
        say(f"traffic {line.axis}: {human(line.bytes)} a step by each rank, {line.what}, over the {line.link}")
    say(f"memory  {human(plan.memory.total)} of {human(plan.room)} on pipeline rank {plan.fullest}: {_parts(plan)}")
    say(_run(task, figures))
    if "simulation" in figures:
        say(_played(figures["simulation"]))
    if found:
        console.print(_found(found))
        say(_why(found, given, task.gpus))


def layout_text(plan: Plan, gpus: int) -> str:
    """A layout in a line."""
    parallel = plan.parallel
    told = f"{parallel.degrees} = {gpus:,} GPUs, {parallel.engine}{describe_sharding(parallel, gpus)}"
    told += f" x {parallel.virtual_stages}" if parallel.virtual_stages > 1 else ""
    told += ", sequence parallel" if parallel.sequence_parallel else ""
    return f"{told}, recompute {parallel.recompute}, micro-batches of {plan.micro_batch}"


def short_text(plan: Plan) -> str:
    """A layout in few letters, as tables and pictures have it: tensor, pipeline x virtual stages, data, context, expert."""
    parallel = plan.parallel
    stages = f"x{parallel.virtual_stages}" if parallel.virtual_stages > 1 else ""
    told = f"t{parallel.tensor} p{parallel.pipeline}{stages} d{parallel.data}"
    told += f" c{parallel.context}" if parallel.context > 1 else ""
    return told + (f" e{parallel.expert}" if parallel.expert > 1 else "")


def _head(task: Task, figures: dict[str, Any]) -> str:
    flops, cluster = figures["flops_per_token"], figures["cluster"]
    used = figures["active_parameters"]
    active = f", {used:,} used by a token" if used != figures["parameters"] else ""
    parts = ", ".join(f"{name} {value / 1e9:,.2f}" for name, value in flops.items() if value)
    nodes = f"{cluster['nodes']:,} nodes of {cluster['gpus_per_node']} {cluster['chip']}"
    return "\n".join(
        (
            f"{figures['model']}: {figures['parameters']:,} parameters{active}, {figures['tokens']:,} tokens",
            f"GFLOP a token: {parts}",
            f"machine {nodes}, {cluster['fabric'] or 'no network'}; stack {figures['stack']}",
        )
    )


def _seconds(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, side in (("a step", "left"), ("seconds", "right"), ("share", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for name, seconds in plan.step.parts.items():
        if seconds:
            table.add_row(f"{name}: {PARTS[name]}", f"{seconds:.3f}", f"{100 * seconds / plan.step.seconds:.1f} %")
    table.add_row("all", f"{plan.step.seconds:.3f}", "")
    return table


def _parts(plan: Plan) -> str:
    return ", ".join(f"{name} {human(size)}" for name, size in plan.memory.parts().items() if size)


def _run(task: Task, figures: dict[str, Any]) -> str:
    run, checkpoint, goodput = figures["run"], figures["checkpoint"], figures["goodput"]
    cost = f", {run['cost']:,.0f} dollars" if task.recipe.cluster.price else ""
    return "\n".join(
        (
            f"speed   {run['tokens_per_second']:,.0f} tokens/s, {run['tokens_per_second'] / task.gpus:,.0f} a GPU; utilisation "
            f"{100 * run['model_utilisation']:.1f} % of the model's FLOPs, {100 * run['hardware_utilisation']:.1f} % "
            f"with those computed again",
            f"run     {run['days']:.2f} days in {run['steps']:,} steps; with failures {run['days_with_failures']:.2f} days, "
            f"{run['megawatt_hours']:,.0f} MWh{cost}",
            f"saving  {human(checkpoint['size'])} a checkpoint, training waits {checkpoint['stall']:.1f} s, safe after "
            f"{checkpoint['write']:.0f} s; best every {goodput['interval'] / 60:.1f} minutes",
            f"goodput {100 * goodput['share']:.1f} % with a failure every {goodput['between'] / 3600:.1f} hours",
        )
    )


def _played(told: dict[str, Any]) -> str:
    days = told["days"]
    return (
        f"played  {told['plays']} times: {days['p50']:.2f} days ({days['p5']:.2f} to {days['p95']:.2f} in nine of "
        f"ten), goodput "
        f"{100 * told['goodput']:.1f} %, {told['failures']:.0f} failures, {told['waiting_hours']:.1f} hours waiting "
        f"for nodes with "
        f"{told['spare_nodes']} to spare"
    )


def _found(found: Found) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title="layouts, quickest first", title_justify="left")
    columns = ("layout", "schedule, ZeRO, recompute, micro-batch", "seconds", "memory", "besides products")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if 2 <= index <= 3 else "left", no_wrap=True)
    for plan in found.best[:SHOWN]:
        parallel = plan.parallel
        table.add_row(
            short_text(plan),
            f"{SHORT.get(parallel.schedule, parallel.schedule)}, {parallel.zero_stage}, {parallel.recompute}, "
            f"{plan.micro_batch}",
            f"{plan.step.seconds:.3f}",
            f"{plan.memory.total / 1e9:.1f} GB",
            plan.bound,
        )
    return table


def _why(found: Found, given: Plan | None, gpus: int) -> str:
    lines = [f"{found.judged:,} layouts judged"]
    if found.near:
        quick = found.near[0]
        lines.append(
            f"quicker but too large: {short_text(quick)}, recompute {quick.parallel.recompute}, micro-batches of "
            f"{quick.micro_batch}: "
            f"{quick.step.seconds:.3f} s with {human(quick.memory.total)}"
        )
    if given:
        fits = "" if given.fits else " and does not fit"
        lines.append(
            f"the recipe's own: {layout_text(given, gpus)} takes {given.step.seconds:.3f} s, {human(given.memory.total)}{fits}"
        )
    if found.refused:
        most = sorted(found.refused.items(), key=lambda one: -one[1])[:3]
        lines.append("refused: " + "; ".join(f"{reason} ({count})" for reason, count in most))
    return "\n".join(lines)
