"""The memory table of `triaxis bench plan`: what a plan says a rank holds, against what real ranks allocate.

Layouts are drawn by chance: models like GPT and Llama, mixtures and encoder-decoders, both engines, all axes, recomputation,
schedules, precisions. Each trains two steps on worlds of one, two and four processes over gloo on CPU, and the second is
counted storage by storage (`launcher.bench.counting`). Weights, gradients and optimizer have to be equal to the byte."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from launcher.bench.counting import Counted, Entry, count
from launcher.bench.plan_layouts import Layout
from launcher.bench.world import join_world
from launcher.optim.build import optimizer_factory
from launcher.plan.memory import Memory, Work, memory_of
from launcher.terminal import new_table
from launcher.workers import free_port
from parallel.check import choose_engine
from parallel.engines.base import Batch, EngineSpec
from parallel.engines.select import build_engine
from parallel.mesh import Mesh

EXACT = ("weights", "gradients", "optimizer")
WITHIN = 0.05
"""How far activations may be off."""
ANSWER_SECONDS = 900.0


@dataclass(frozen=True)
class Found:
    """Of a rank of the pipeline axis: what the plan says, and what its fullest rank allocated; activations are the mean of its
    ranks, since a mixture's tokens are not shared out evenly."""

    layout: Layout
    rank: int
    planned: Memory
    counted: Counted

    @property
    def exact(self) -> bool:
        """Whether state is equal to the byte."""
        return all(getattr(self.planned, part) == getattr(self.counted, part) for part in EXACT)

    @property
    def kept(self) -> int:
        """Activations as they are planned, what the loss keeps among them."""
        return self.planned.activations + self.planned.logits

    @property
    def error(self) -> float:
        """Of activations, as a share of the counted ones."""
        return self.kept / self.counted.activations - 1 if self.counted.activations else 0.0


def work_of(layout: Layout) -> Work:
    """What it trains."""
    return Work(
        layout.model,
        layout.sequence_length,
        layout.micro_batch * layout.micro_batches * layout.parallel.data,
        layout.precision.name,
        layout.precision.products,
        layout.optimizer,
        layout.loss,
        reweighted=False,
        gpu=False,
        kernels=False,
    )


def planned(layout: Layout, rank: int) -> Memory:
    """What the plan says of a rank of the pipeline axis."""
    return memory_of(work_of(layout), layout.parallel, layout.micro_batch, rank)


def measure(layout: Layout) -> tuple[Counted, list[Entry]]:
    """Bytes of this rank, and what its activations are, of a world that was joined."""
    mesh = Mesh(layout.parallel, torch.device("cpu"))
    engine = build_engine(spec_for(layout, mesh), mesh)
    batch = batch_for(layout, mesh)
    engine.step(batch, 1e-4)  # what is made once is there afterwards
    found = count(engine, batch)
    engine.close()
    mesh.close()
    return found


def spec_for(layout: Layout, mesh: Mesh) -> EngineSpec:
    """What the layout's engine is built from."""
    return EngineSpec(
        model=layout.model,
        parallel=choose_engine(mesh.config, mesh.world_size)[0],
        precision=layout.precision,
        optimizer=optimizer_factory(layout.optimizer),
        clip_norm=1.0,
        micro_batch=layout.micro_batch,
        micro_batches=layout.micro_batches,
        sequence_length=layout.sequence_length,
        seed=1,
        loss=layout.loss,
        master=layout.optimizer.master,
    )


def batch_for(layout: Layout, mesh: Mesh) -> Batch:
    """Text that is drawn; what an encoder reads predicts nothing."""
    rows, length = layout.micro_batch * layout.micro_batches, layout.sequence_length
    text = torch.randint(
        1, layout.model.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(mesh.place.data)
    )
    weights = torch.ones(rows, length)
    weights[:, : layout.model.encoder_length] = 0
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), weights, rows * mesh.place.data)


def compare(layout: Layout, counted: list[Counted]) -> list[Found]:
    """A line for each rank of the pipeline axis. counted: of every rank of the world."""
    found = []
    for rank in range(layout.parallel.pipeline):
        own = [one for at, one in enumerate(counted) if layout.parallel.places(at)["pipeline"] == rank]
        state = {part: max(getattr(one, part) for one in own) for part in EXACT}
        kept = sum(one.activations for one in own) // len(own)
        most = Counted(**state, activations=kept, peak=max(one.peak for one in own))
        found.append(Found(layout, rank, planned(layout, rank), most))
    return found


def run(layouts: Iterable[Layout], say: Callable[[Found], None] = lambda found: None) -> list[Found]:
    """Train and count every layout, those of the same world one after another."""
    by_size: dict[int, list[Layout]] = {}
    for layout in layouts:
        by_size.setdefault(layout.world, []).append(layout)
    found: list[Found] = []
    for size, group in sorted(by_size.items()):
        found += _of_world(size, group, say)
    return found


def _of_world(size: int, layouts: list[Layout], say: Callable[[Found], None]) -> list[Found]:
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    arguments = (size, free_port(), os.getpid(), layouts, answers)
    processes: Any = torch.multiprocessing.start_processes(
        _rank, args=arguments, nprocs=size, join=False, daemon=True, start_method="spawn"
    )
    found, deadline = [], time.monotonic() + ANSWER_SECONDS
    try:
        for layout in layouts:
            while answers.empty():
                processes.join(timeout=0.05)  # raises what a process died of
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{layout}: no answer in {ANSWER_SECONDS:.0f} s")
            for one in compare(layout, answers.get()):
                say(one)
                found.append(one)
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    return found


def _rank(rank: int, size: int, port: int, parent: int, layouts: list[Layout], answers: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    join_world(rank, size, port, parent)
    dist.init_process_group("gloo")
    for layout in layouts:
        gathered: list[Any] = [None] * size
        dist.all_gather_object(gathered, measure(layout)[0])
        if rank == 0:
            answers.put(gathered)


def summary(found: list[Found]) -> dict[str, Any]:
    """Mean and worst error of activations, how many lines have exact state, and whether all is as it has to be."""
    errors = [abs(one.error) for one in found]
    exact, worst = sum(one.exact for one in found), max(errors)
    return {
        "layouts": len({str(one.layout) for one in found}),
        "ranks": len(found),
        "exact": exact,
        "mean_error": sum(errors) / len(errors),
        "worst_error": worst,
        "met": exact == len(found) and worst <= WITHIN,
    }


def figures_of(found: list[Found]) -> dict[str, Any]:
    """The summary and every line, planned and counted."""
    ranks = [
        {"layout": str(one.layout), "rank": one.rank, "planned": one.planned.parts(), "counted": vars(one.counted)}
        for one in found
    ]
    return {**summary(found), "ranks": ranks}


def show(found: list[Found], console: Console) -> None:
    """A line for each rank of the pipeline axis; state that is not as planned is marked."""
    table = new_table(
        "bytes of a rank on CPU, counted",
        *("", "rank", "weights", "gradients", "optimizer", "activations", "planned", "error"),
    )
    for one in found:
        state = (
            f"{getattr(one.counted, part):,}"
            + ("" if getattr(one.planned, part) == getattr(one.counted, part) else " ≠")
            for part in EXACT
        )
        kept = f"{one.counted.activations:,}", f"{one.kept:,}", f"{100 * one.error:+.2f} %"
        table.add_row(str(one.layout), str(one.rank), *state, *kept)
    console.print(table)
    told = summary(found)
    console.print(
        f"{told['layouts']} layouts, {told['exact']} of {told['ranks']} ranks with state exact to the byte; activations off by "
        f"{100 * told['mean_error']:.2f} % on average, {100 * told['worst_error']:.2f} % at worst"
    )
