"""`triaxis plan`: parameters and memory of a layout; where the machines are known, seconds, cost and failures; and the
best layout.

    triaxis plan experiment=… cluster=… gpus=N [option=value …] [--search] [--json] [--out=DIR] [--stack=NAME]
    [--simulate=PLAYS]

Without `cluster.chip` it prints what needs no machine. `--json` prints one object, whose keys stay: model, parameters,
active_parameters, tokens, flops_per_token (by part), cluster, layout, memory (by part), step (seconds by part, bubble),
traffic (a list), run, checkpoint, goodput, and where asked for search and simulation. Bytes, seconds and days are so
named; shares are of one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.check import check_budget
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe
from launcher.plan import simulate as playing
from launcher.plan.errors import PlanError
from launcher.plan.evaluate import Plan, Task, cluster_table, judge, run_of, task_of
from launcher.plan.products import flops_by_part
from launcher.plan.search import Found, search
from launcher.plan.show import planned, show_plain, with_known_vocabulary
from launcher.plan.tell import tell
from models.config import count_active_parameters, count_parameters
from parallel.config import ParallelConfig

USAGE = "triaxis plan experiment=… cluster=… gpus=N [--search] [--json] [--out=DIR] [--stack=NAME] [--simulate=PLAYS]"
SPARES = 0.01
"""Spare nodes of a simulated run, as a share of its nodes; at least one."""


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for. gpus: 0 where it does not say."""

    overrides: tuple[str, ...]
    gpus: int = 0
    search: bool = False
    json: bool = False
    out: str = ""
    stack: str = ""
    plays: int = 0

    @property
    def fixed(self) -> bool:
        """Whether the layout is said on the command line."""
        return any(word.startswith(("parallel=", "parallel.")) for word in self.overrides)


def plan_command(arguments: list[str]) -> int:
    """Plan and print."""
    wanted = wanted_of(arguments)
    recipe = build_recipe(compose_tree(list(wanted.overrides)))
    if not recipe.cluster.chip:
        if wanted.search or wanted.out or wanted.plays or wanted.stack or wanted.json:
            raise PlanError(
                "cluster.chip=: seconds need a chip; choose a profile such as cluster=h100_8x64, or name the chip"
            )
        return show_plain([*wanted.overrides, *([f"--world={wanted.gpus}"] if wanted.gpus else [])])
    recipe = with_known_vocabulary(recipe)
    check_budget(recipe)
    task, given = given_plan(recipe, wanted)
    found = search(task) if given is None or wanted.search else None
    plan = found.best[0] if found else given
    assert plan is not None
    figures = figures_of(task, plan, found, wanted.plays)
    if wanted.json:
        print(json.dumps(figures, indent=1))
    else:
        tell(task, plan, given, found, figures)
    if wanted.out:
        from launcher.plan.draw import draw_all

        paths = draw_all(Path(wanted.out), task, plan, found)
        if not wanted.json:
            print("\n".join(f"picture {path}" for path in paths))
    return 0


def wanted_of(arguments: list[str]) -> Wanted:
    """Flags and overrides of a command line."""
    wanted = Wanted(tuple(word for word in arguments if not word.startswith(("--", "gpus="))))
    for word in arguments:
        name, _, value = word.partition("=")
        if name in ("gpus", "--world"):
            if not value.isdigit() or int(value) < 1:
                raise PlanError(f"{word}: must be a number of GPUs, at least 1")
            wanted = replace(wanted, gpus=int(value))
        elif word == "--search":
            wanted = replace(wanted, search=True)
        elif word == "--json":
            wanted = replace(wanted, json=True)
        elif name == "--out" and value:
            wanted = replace(wanted, out=value)
        elif name == "--stack" and value:
            wanted = replace(wanted, stack=value)
        elif name == "--simulate" and value.isdigit() and int(value) > 0:
            wanted = replace(wanted, plays=int(value))
        elif name.startswith("--"):
            raise PlanError(f"{word}: not an option of `{USAGE}`")
    return wanted


def given_plan(recipe: Recipe, wanted: Wanted) -> tuple[Task, Plan | None]:
    """The task, and the plan of the layout that the recipe has for so many GPUs; None where it has none, and one is to
    be found."""
    parallel = recipe.parallel
    plain = (parallel.model_parallel, parallel.expert) == (1, 1) and not wanted.fixed
    gpus = wanted.gpus or parallel.model_parallel * parallel.least_data
    task = task_of(recipe, gpus, wanted.stack)
    fitting = parallel.data in (0, gpus // parallel.model_parallel) and gpus % parallel.model_parallel == 0
    if wanted.gpus and not wanted.fixed and (plain or not fitting):
        return task, None
    laid, _ = planned([*wanted.overrides, f"--world={gpus}"])
    plan = judge(task, laid.parallel, laid.train.micro_batch)
    if not plan.fits and not wanted.search:
        raise PlanError(
            f"cluster.chip={task.machine.chip.name}: {plan.parallel.degrees} needs {plan.memory.total / 1e9:.1f} GB "
            f"on pipeline rank "
            f"{plan.fullest}, and has {task.room / 1e9:.1f}; choose another layout, or let --search find one"
        )
    return task, plan


def figures_of(task: Task, plan: Plan, found: Found | None, plays: int) -> dict[str, Any]:
    """Everything as plain data: the object that --json prints."""
    recipe, model, run = task.recipe, task.recipe.model, run_of(task, plan)
    told = asdict(run)
    checkpoint, goodput = told.pop("checkpoint"), told.pop("goodput")
    figures: dict[str, Any] = {
        "model": model.name,
        "parameters": count_parameters(model),
        "active_parameters": count_active_parameters(model),
        "tokens": sum(phase.tokens for phase in recipe.phases) or recipe.train.tokens,
        "flops_per_token": flops_by_part(model, task.work.sequence, plan.parallel.recompute),
        "cluster": cluster_table(recipe.cluster, task.gpus),
        "stack": task.machine.software.name,
        "layout": layout_table(plan.parallel, plan.micro_batch),
        "memory": {"parts": plan.memory.parts(), "total": plan.memory.total, "room": plan.room, "fits": plan.fits},
        "step": {"seconds": plan.step.seconds, "parts": plan.step.parts, "bubble": plan.step.bubble},
        "traffic": [asdict(line) for line in plan.step.traffic],
        "run": told,
        "checkpoint": checkpoint,
        "goodput": goodput,
    }
    if found:
        figures["search"] = {
            "judged": found.judged,
            "refused": found.refused,
            "best": [_line(task, one) for one in found.best],
            "too_large": [_line(task, one) for one in found.near],
            "front": [_line(task, one) for one in found.front],
        }
    if plays:
        figures["simulation"] = simulation(task, plan, plays)
    return figures


def simulation(task: Task, plan: Plan, plays: int) -> dict[str, Any]:
    """A run played so many times, under failures, with a hundredth of its nodes to spare."""
    run, nodes = run_of(task, plan), max(1, task.gpus // task.machine.fabric.node)
    spares = max(1, round(SPARES * nodes))
    play = playing.Run(run.days * 86400, task.gpus, run.checkpoint, run.goodput.interval, spares)
    outcome = playing.simulate(play, plays, task.recipe.seed)
    days = {name: outcome.quantile(share) / 86400 for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))}
    return {
        "plays": plays,
        "seed": task.recipe.seed,
        "spare_nodes": spares,
        "days": days,
        "goodput": outcome.goodput,
        "failures": outcome.failures,
        "waiting_hours": outcome.waiting / 3600,
    }


def layout_table(parallel: ParallelConfig, micro_batch: int) -> dict[str, Any]:
    """A layout by the names of its options."""
    names = ("engine", "tensor", "pipeline", "data", "context", "expert", "sequence_parallel", "zero_stage", "schedule")
    found = {name: getattr(parallel, name) for name in (*names, "virtual_stages", "recompute")}
    return found | {"micro_batch": micro_batch}


def _line(task: Task, plan: Plan) -> dict[str, Any]:
    return {
        "layout": layout_table(plan.parallel, plan.micro_batch),
        "seconds": plan.step.seconds,
        "tokens_per_second": task.work.tokens / plan.step.seconds,
        "bytes": plan.memory.total,
        "bound": plan.bound,
    }
