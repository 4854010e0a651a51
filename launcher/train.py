"""The spine of a run, as every rank executes it.

triaxis train experiment=tiny                                   starts ranks of this file
torchrun --nproc-per-node 8 -m launcher.train experiment=tiny   or they are started by torchrun or srun
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from data.stream import Stream
from launcher.batches import TrainBatches
from launcher.check import check_corpus, check_directory, check_recipe
from launcher.compose import build_recipe, compose_tree, load_recipe, save_recipe
from launcher.config import Recipe, RecipeError
from launcher.loop import finish, fit, validate
from launcher.machine import choose_device, threads_for
from launcher.optim.build import optimizer_factory
from launcher.run import Run
from launcher.schema import to_plain
from launcher.workers import INTERRUPTED, StopRequest, die_with_parent, write_failure
from parallel.check import check_engine, choose_engine
from parallel.engines.base import EngineSpec, resolve_precision
from parallel.engines.select import build_engine
from parallel.mesh import Mesh


def main(arguments: list[str]) -> int:
    """Train one recipe on this rank; returns the exit code."""
    stop = StopRequest()  # before anything slow: a signal during start-up must not be lost
    directory = Path("runs")
    try:
        recipe, device = obtain_recipe(arguments)
        directory = Path(recipe.run.dir) / recipe.run.name
        with Run(recipe, directory, stop) as run:
            return train(recipe, run, device)
    except Exception as error:
        write_failure(directory, int(os.environ.get("RANK", 0)), error, users=is_users(error))
        sys.stderr.write(f"{error}\n" if is_users(error) else "")
        if not is_users(error):
            raise
        return 1


def train(recipe: Recipe, run: Run, device: torch.device) -> int:
    """Every phase that is left: mesh → engine → load or initialise → stream → loop."""
    while True:
        index = run.counters.phase
        phase = run.budget.phases[index]
        mesh = Mesh(phase.parallel, device)
        if not run.join(mesh, phase):  # the checkpoint says that this phase is done
            mesh.close()
            continue
        engine = build_engine(engine_spec(phase, mesh), mesh)
        stream = Stream(phase.data.path, "train", recipe.seed, span_tokens=phase.data.span_tokens)
        if run.begin_phase(phase, engine, stream):  # False: a corrupt checkpoint threw the run back into another phase
            batches = TrainBatches(phase, mesh, stream, run.counters, run.budget.steps_left(run.counters))
            try:
                if fit(run, phase, engine, batches):
                    return INTERRUPTED
            finally:
                batches.close()
            if run.budget.spent(run.counters):
                return finish(run, phase, engine)
            validate(run, phase, engine)
            run.end_phase(engine)
        engine.close()
        mesh.close()


def engine_spec(phase: Recipe, mesh: Mesh) -> EngineSpec:
    """What the engine of a phase is built from."""
    config, _ = choose_engine(mesh.config, mesh.world_size)
    precision = resolve_precision(phase.precision, mesh.device)
    check_engine(config, precision, mesh.device.type, mesh.world_size)
    return EngineSpec(
        model=phase.model,
        parallel=config,
        precision=precision,
        optimizer=optimizer_factory(phase.optimizer),
        clip_norm=phase.optimizer.clip_norm,
        micro_batch=phase.train.micro_batch,
        micro_batches=phase.train.batch_sequences // (phase.train.micro_batch * mesh.config.data),
        sequence_length=phase.train.sequence_length,
        seed=phase.seed,
    )


def obtain_recipe(arguments: list[str]) -> tuple[Recipe, torch.device]:
    """The frozen recipe: read where a launcher wrote it; under torchrun or srun composed by rank 0 and handed round."""
    if "TRIAXIS_RECIPE" in os.environ:
        die_with_parent()
        recipe = load_recipe(Path(os.environ["TRIAXIS_RECIPE"]))
        return recipe, claim_device(recipe)
    if "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise RecipeError("python -m launcher.train: is one rank; use `triaxis train`, torchrun or srun to start it")
    for ours, slurms in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        os.environ.setdefault(ours, os.environ.get(slurms, "0"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    told: list = [None]
    if dist.get_rank() == 0:
        try:
            told = [compose_and_check(arguments, dist.get_world_size())]
        except ValueError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], Exception):
        raise told[0]
    recipe = build_recipe(told[0])
    return recipe, claim_device(recipe)


def compose_and_check(arguments: list[str], world_size: int) -> dict:
    """Compose, refuse what cannot be, write `config.yaml`; returns the resolved recipe as plain data."""
    recipe = check_corpus(build_recipe(compose_tree(arguments)))
    check_recipe(recipe, world_size, choose_device(recipe.cluster))
    save_recipe(recipe, check_directory(recipe) / "config.yaml")
    return to_plain(recipe)


def claim_device(recipe: Recipe) -> torch.device:
    """This rank's device, and its share of CPU threads."""
    torch.set_num_threads(threads_for(recipe.cluster, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if choose_device(recipe.cluster) == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def is_users(error: BaseException) -> bool:
    """Whether a message is enough for an error: a mistake in a recipe, corpus or checkpoint, not in the code."""
    return type(error).__name__ in ("RecipeError", "ModelError", "ParallelError", "DataError", "TrainingError") or any(
        kind.__name__ == "CheckpointError" for kind in type(error).__mro__
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
