"""The layouts that a number of GPUs allows, judged one and all: which fit, which is quickest, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from launcher.check import check_recipe
from launcher.plan.errors import PlanError
from launcher.plan.evaluate import Plan, Task, timed, weighed
from launcher.plan.step import Step
from parallel.check import check_micro_batches, check_model, choose_engine
from parallel.config import ParallelConfig, ParallelError
from parallel.schedule import SCHEDULES

MICRO_BATCHES = (1, 2, 4, 8, 16)
VIRTUAL = (2, 3, 4, 6, 8)
LEAST_TOKENS = 1024
"""Tokens of a sequence that the context axis leaves to a rank, at least."""


WEIGHED = 1500
"""Layouts whose memory is worked out beside those that are looked at in order of time: for the picture."""

Timed = tuple[Step, ParallelConfig, int]


@dataclass(frozen=True)
class Found:
    """What a search found. best: those that fit, quickest first, each cut with its quickest schedule, checked as a run
    would be. near: the quickest that do not fit. seen: every layout whose memory was worked out, by time. judged: how
    many were; refused: how many never were, by reason."""

    best: tuple[Plan, ...]
    near: tuple[Plan, ...]
    seen: tuple[Plan, ...]
    judged: int
    refused: dict[str, int]

    @property
    def front(self) -> list[Plan]:
        """Those of `seen` that need less memory than all that are quicker."""
        found: list[Plan] = []
        for plan in self.seen:
            if not found or plan.memory.total < found[-1].memory.total:
                found.append(plan)
        return found


def search(task: Task, keep: int = 10, most: int = 0) -> Found:
    """Time all layouts of a task, or the first `most`; from the quickest on, work out memory until `keep` fit and pass
    the checks."""
    refused: Counter[str] = Counter()
    steps: list[Timed] = []
    for parallel, micro_batch in candidates(task, refused):
        steps.append((timed(task, parallel, micro_batch), parallel, micro_batch))
        if len(steps) == most:
            break
    steps.sort(key=lambda one: one[0].seconds)
    seen: list[Plan] = []
    best: list[Plan] = []
    kinds: set[tuple[str, str, int]] = set()
    stride = max(1, len(steps) // WEIGHED)
    for index, (step, parallel, micro_batch) in enumerate(steps):
        if len(best) < keep or index % stride == 0:
            plan = weighed(task, parallel, micro_batch, step)
            seen.append(plan)
            like = (parallel.degrees, parallel.recompute, micro_batch)  # with a schedule that is as quick
            if len(best) < keep and plan.fits and like not in kinds and _runs(task, plan, refused):
                best.append(plan)
                kinds.add(like)
    if not best:
        raise PlanError(_nothing(task, seen, refused))
    near = [plan for plan in seen if not plan.fits and plan.step.seconds < best[0].step.seconds]
    return Found(tuple(best), tuple(near[:3]), tuple(seen), len(steps), dict(refused))


def candidates(task: Task, refused: Counter[str]) -> Iterator[tuple[ParallelConfig, int]]:
    """Every layout that the world, the model and the batch allow, and sequences of a micro-batch. refused: is told of
    the others."""
    model, gpus, work, base = task.recipe.model, task.gpus, task.work, task.recipe.parallel
    for tensor in _divisors(gpus, most=task.machine.fabric.node):
        for context in _divisors(gpus // tensor, most=work.sequence // LEAST_TOKENS):
            for pipeline in _divisors(gpus // tensor // context, most=model.layers + model.encoder_layers):
                data = gpus // tensor // context // pipeline
                if work.batch % data:
                    refused["the batch does not divide over the data axis"] += 1
                    continue
                experts = _divisors(data * context, most=model.moe.experts) if model.moe.experts else [1]
                for expert in experts:
                    cut = replace(
                        base,
                        engine="auto",
                        tensor=tensor,
                        context=context,
                        context_method="ring",
                        pipeline=pipeline,
                        data=data,
                        expert=expert,
                        sequence_parallel=tensor > 1,
                        schedule="1f1b",
                        virtual_stages=1,
                        data_replicas=1,
                        offload_optimizer=False,
                        compile="none",
                        recompute="none",
                        zero_stage=1,
                    )
                    try:
                        check_model(cut, model, work.sequence)
                    except ParallelError as error:
                        refused[str(error).split(";")[0].split(": ", 1)[-1][:90]] += 1
                        continue
                    yield from _variants(task, cut, refused)


def _variants(task: Task, cut: ParallelConfig, refused: Counter[str]) -> Iterator[tuple[ParallelConfig, int]]:
    """Micro-batches, schedules, stages of ZeRO and recomputation of one set of degrees."""
    model, work = task.recipe.model, task.work
    for micro_batch in MICRO_BATCHES:
        if work.batch % (cut.data * micro_batch):
            continue
        count = work.batch // (cut.data * micro_batch)
        for schedule, virtual in _schedules(cut.pipeline, model.layers + model.encoder_layers):
            for zero in _zeros(cut, schedule):
                laid = replace(cut, schedule=schedule, virtual_stages=virtual, zero_stage=zero)
                laid = choose_engine(laid, task.gpus)[0]
                try:
                    check_micro_batches(laid, count)
                except ParallelError:
                    refused[f"{schedule} with so few micro-batches"] += 1
                    break
                for recompute in ("none", "selective", "block"):
                    yield replace(laid, recompute=recompute), micro_batch


def _schedules(pipeline: int, layers: int) -> list[tuple[str, int]]:
    if pipeline == 1:
        return [("1f1b", 1)]
    found = [("1f1b", 1)]
    found += [("interleaved_1f1b", virtual) for virtual in VIRTUAL if pipeline * virtual <= layers]
    found += [(name, 1) for name in ("zbv", "dualpipev") if pipeline * 2 <= layers]
    return found


def _zeros(cut: ParallelConfig, schedule: str) -> tuple[int, ...]:
    """Stages of ZeRO that are worth judging: one that shards nothing more than another is left out."""
    if cut.replicas == 1:
        return (1,)
    if cut.pipeline == 1:
        return (1, 2, 3)
    if cut.expert > 1 or SCHEDULES[schedule].splits_backward:
        return (1,)
    return (1,) if schedule == "1f1b" else (1, 2)


def _divisors(number: int, most: int) -> list[int]:
    return [each for each in range(1, min(number, max(1, most)) + 1) if number % each == 0]


def _runs(task: Task, plan: Plan, refused: Counter[str]) -> bool:
    """Whether the checks before a run let it pass."""
    train = replace(task.recipe.train, micro_batch=plan.micro_batch)
    recipe = replace(task.recipe, parallel=plan.parallel, train=train)
    try:
        check_recipe(recipe, task.gpus, "cuda")
    except ValueError as error:
        refused[str(error).split(";")[0].split(": ", 1)[-1][:90]] += 1
        return False
    return True


def _nothing(task: Task, plans: list[Plan], refused: Counter[str]) -> str:
    if plans:
        least = min(plans, key=lambda plan: plan.memory.total)
        return (
            f"gpus={task.gpus}: of {len(plans)} layouts none fits into the {task.room / 1e9:.0f} GB of a "
            f"{task.machine.chip.name}; the "
            f"smallest needs {least.memory.total / 1e9:.0f} GB ({least.parallel.degrees}); take more GPUs"
        )
    why = ", ".join(f"{reason} ({count})" for reason, count in refused.most_common(3))
    return f"gpus={task.gpus}: no layout divides model and batch: {why}; choose another number, or train.batch_tokens"
