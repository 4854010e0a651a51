"""A layout judged: memory, seconds, and what the whole run takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launcher.cluster import ClusterConfig
from launcher.config import Recipe
from launcher.plan.goodput import Checkpoint, Goodput, checkpoint_of, goodput_of
from launcher.plan.machine import Machine, machine_of
from launcher.plan.memory import Memory, fullest
from launcher.plan.memory import Work as Held
from launcher.plan.products import flops_by_part
from launcher.plan.step import Step, Work, step_of
from models.config import count_parameters
from parallel.check import choose_engine
from parallel.config import ParallelConfig


@dataclass(frozen=True)
class Task:
    """What is to be planned, whatever the layout. held: the same as `work`, as memory sees it."""

    recipe: Recipe
    gpus: int
    machine: Machine
    work: Work
    held: Held

    @property
    def room(self) -> int:
        """Bytes of a GPU."""
        return self.machine.chip.memory


def task_of(recipe: Recipe, gpus: int, stack: str = "") -> Task:
    """The task of a recipe whose vocabulary is resolved."""
    size = 4 if recipe.precision.name == "fp32" else 2
    products = recipe.precision.products
    eight = size == 2 and products.forward.weight.startswith("fp8")
    stack = stack or ("triaxis_reference" if recipe.kernels == "reference" else "triaxis")
    machine = machine_of(recipe.cluster, stack, size, eight)
    machine.check_nodes(gpus)
    train = recipe.train
    work = Work(recipe.model, train.sequence_length, train.batch_sequences, train.micro_batch, recipe.loss.fused)
    return Task(recipe, gpus, machine, work, Held.of(recipe, "fp32" if size == 4 else "bf16"))


@dataclass(frozen=True)
class Plan:
    """A layout of a task, judged. fullest: the pipeline rank that needs most memory."""

    parallel: ParallelConfig
    micro_batch: int
    step: Step
    memory: Memory
    fullest: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether it fits into a GPU."""
        return self.memory.total <= self.room

    @property
    def bound(self) -> str:
        """Where the time goes that is not products: the two parts that take longest, in words."""
        parts = sorted(
            ((seconds, name) for name, seconds in self.step.parts.items() if name != "products"), reverse=True
        )
        return ", ".join(f"{name} {100 * seconds / self.step.seconds:.0f} %" for seconds, name in parts[:2])


def timed(task: Task, parallel: ParallelConfig, micro_batch: int) -> Step:
    """The step of a resolved layout of a task."""
    return step_of(replace(task.work, micro_batch=micro_batch), parallel, task.machine)


def weighed(task: Task, parallel: ParallelConfig, micro_batch: int, step: Step) -> Plan:
    """The layout of a step, its memory told."""
    rank, memory = fullest(task.held, parallel, micro_batch)
    return Plan(parallel, micro_batch, step, memory, rank, task.room)


def judge(task: Task, parallel: ParallelConfig, micro_batch: int) -> Plan:
    """A resolved layout of a task."""
    parallel = choose_engine(parallel, task.gpus)[0]
    return weighed(task, parallel, micro_batch, timed(task, parallel, micro_batch))


@dataclass(frozen=True)
class Run:
    """What the whole run takes. Utilisations are of the chip's bf16 peak: of the model's FLOPs, and with those computed
    again."""

    tokens_per_second: float
    model_utilisation: float
    hardware_utilisation: float
    steps: int
    days: float
    checkpoint: Checkpoint
    goodput: Goodput
    days_with_failures: float
    megawatt_hours: float
    cost: float


def run_of(task: Task, plan: Plan) -> Run:
    """The run of a plan: its budget of tokens at this speed, without and with failures; energy and cost are of the time
    with them."""
    recipe, machine, gpus = task.recipe, task.machine, task.gpus
    seconds, tokens = plan.step.seconds, task.work.tokens
    flops = flops_by_part(recipe.model, task.work.sequence, plan.parallel.recompute)
    whole = sum(flops.values())
    speed = tokens / seconds
    peak = gpus * machine.chip.flops / (2 if machine.size == 4 and machine.chip.name != "cpu" else 1)
    budget = sum(phase.tokens for phase in recipe.phases) or recipe.train.tokens
    days = budget / speed / 86400
    parameters = count_parameters(recipe.model)
    checkpoint = checkpoint_of(parameters, gpus, machine.fabric.node, recipe.checkpoint.asynchronous)
    goodput = goodput_of(checkpoint, gpus)
    longer = days / goodput.share
    return Run(
        tokens_per_second=speed,
        model_utilisation=speed * (whole - flops["recompute"]) / peak if "recompute" in flops else speed * whole / peak,
        hardware_utilisation=speed * whole / peak,
        steps=-(-budget // tokens),
        days=days,
        checkpoint=checkpoint,
        goodput=goodput,
        days_with_failures=longer,
        megawatt_hours=longer * 24 * gpus * machine.chip.node_watts / 1e6,
        cost=longer * 24 * gpus * recipe.cluster.price,
    )


def cluster_table(cluster: ClusterConfig, gpus: int) -> dict[str, Any]:
    """The machines of a plan as plain data."""
    node = max(1, cluster.gpus_per_node)
    return {
        "chip": cluster.chip,
        "fabric": cluster.fabric,
        "gpus": gpus,
        "gpus_per_node": node,
        "nodes": -(-gpus // node),
    }
