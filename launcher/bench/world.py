"""Worlds of processes that live side by side and take turns: one works while the other waits for its next command."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from launcher.bench.stepper import engine_and_batch
from launcher.bench.turns import Turn
from launcher.config import Recipe
from launcher.workers import die_with_parent, free_port
from parallel.config import ParallelConfig
from parallel.mesh import Mesh

RANKS = 2  # of a world that takes turns
ANSWER_SECONDS = 600.0  # that a world may take for one command


def join_world(rank: int, ranks: int, port: int, parent: int) -> None:
    """What a spawned process does before anything else; it ends when its parent does."""
    os.environ.update(TRIAXIS_PARENT=str(parent), DS_ACCELERATOR="cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    die_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))


class World:
    """Two processes that train a recipe's model under one engine, layout after layout, in turns that they are told."""

    def __init__(self, recipe: Recipe) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._commands = [context.SimpleQueue() for _ in range(RANKS)]
        self._answers = context.SimpleQueue()
        arguments = (recipe, free_port(), os.getpid(), self._commands, self._answers)
        self._processes: Any = torch.multiprocessing.start_processes(
            _rank, args=arguments, nprocs=RANKS, join=False, daemon=True, start_method="spawn"
        )

    def open(self, config: ParallelConfig) -> None:
        """Build the engine of a layout, in place of the one before."""
        self._ask(config)

    def turn(self, steps: int) -> Turn:
        """Train some steps."""
        turn: Turn = self._ask(steps)
        return turn

    def close(self) -> None:
        """End all processes."""
        for commands in self._commands:
            commands.put(None)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self._processes.join(timeout=1):
            pass
        for process in self._processes.processes:
            process.kill()

    def _ask(self, command: Any) -> Any:
        for commands in self._commands:
            commands.put(command)
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._answers.empty():
            self._processes.join(timeout=0.01)  # raises what a process died of
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"a world of {RANKS} processes gave no answer to {command} in {ANSWER_SECONDS:.0f} s"
                )
        return self._answers.get()


def _rank(rank: int, recipe: Recipe, port: int, parent: int, commands: list[Any], answers: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # DeepSpeed tells much; what a process dies of travels apart
        os.dup2(nowhere, stream)
    join_world(rank, RANKS, port, parent)
    mesh = engine = batch = None
    while (command := commands[rank].get()) is not None:
        answer: Any = None
        if isinstance(command, ParallelConfig):
            if engine is not None and mesh is not None:
                engine.close()
                mesh.close()
            mesh = Mesh(command, torch.device("cpu"))
            micro_batches = recipe.train.batch_sequences // (recipe.train.micro_batch * mesh.config.data)
            spec = replace(recipe, parallel=mesh.config)
            engine, batch = engine_and_batch(spec, recipe.model, mesh.config, mesh, micro_batches=micro_batches)
        else:
            assert engine is not None and batch is not None, "a layout must be opened first"
            answer = Turn()
            for _ in range(command):
                began = time.perf_counter()
                answer.losses.append(engine.step(batch, 1e-4).loss)
                answer.seconds.append(time.perf_counter() - began)
        if rank == 0:
            answers.put(answer)
    dist.destroy_process_group()
