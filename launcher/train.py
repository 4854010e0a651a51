"""The spine of a run, as every rank executes it.

triaxis train experiment=tiny                                   starts ranks of this file
torchrun --nproc-per-node 8 -m launcher.train experiment=tiny   or they are started by torchrun or srun
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.exits import AGAIN, said_by
from launcher.failure import write_failure
from launcher.marks import mark
from launcher.workers import StopRequest, die_with_parent, end_before_destructors
from parallel.flight import record_flights

if __name__ == "__main__":  # before the heavy imports: a signal then must not be lost, nor a launcher's death
    die_with_parent()
    STOP, ENDS_WITH = StopRequest(), end_before_destructors()
    record_flights()
    mark("start of ranks")

import torch

from launcher.batches import TrainBatches
from launcher.config import Recipe
from launcher.loop import finish, fit, validate
from launcher.optim.build import optimizer_factory
from launcher.rank import code_of, is_users, obtain_recipe
from launcher.run import Run
from parallel.check import check_engine, choose_engine
from parallel.engines.base import EngineSpec, resolve_precision
from parallel.engines.select import build_engine
from parallel.mesh import Mesh


def main(arguments: list[str], stop: StopRequest) -> int:
    """Train one recipe on this rank; returns the exit code."""
    mark("imports of a rank")
    directory = Path(os.environ.get("TRIAXIS_RECIPE", "runs/config.yaml")).parent
    try:
        recipe, device = obtain_recipe(arguments)
        directory = Path(recipe.run.dir) / recipe.run.name
        with Run(recipe, directory, stop) as run:
            return train(recipe, run, device)
    except Exception as error:
        write_failure(directory, int(os.environ.get("RANK", 0)), error, code=code_of(error), users=is_users(error))
        sys.stderr.write(f"{error}\n" if is_users(error) else "")
        if not is_users(error):
            raise
        return code_of(error)


def train(recipe: Recipe, run: Run, device: torch.device) -> int:
    """Every phase that is left: mesh → engine → load or initialise → stream → loop."""
    while True:
        index = run.counters.phase
        phase = run.budget.phases[index]
        mesh = Mesh(phase.parallel, device)
        mark("rendezvous and groups")
        if not run.join(mesh, phase):  # the checkpoint says that this phase is done
            mesh.close()
            continue
        engine = build_engine(engine_spec(phase, mesh), mesh)
        mark("model and engine")
        if run.begin_phase(phase, engine):  # False: a corrupt checkpoint threw the run back into another phase
            batches = TrainBatches(phase, mesh, run.reading, run.counters, run.budget.steps_left(run.counters))
            mark("state and stream")
            try:
                if fit(run, phase, engine, batches):
                    return AGAIN
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
    check_engine(config, precision, mesh.device.type, mesh.world_size, phase.optimizer.master)
    return EngineSpec(
        model=phase.model,
        parallel=config,
        precision=precision,
        # DeepSpeed clips and copies by itself, and its partitions are not ours to step
        optimizer=optimizer_factory(
            phase.optimizer,
            "reference" if config.engine == "deepspeed" else phase.kernels,
            phase.seed,
            phase.model,
        ),
        master=phase.optimizer.master,
        clip_norm=phase.optimizer.clip_norm,
        micro_batch=phase.train.micro_batch,
        micro_batches=phase.train.batch_sequences // (phase.train.micro_batch * mesh.config.data),
        sequence_length=phase.train.sequence_length,
        seed=phase.seed,
        kernels=phase.kernels,
        reweight=phase.objective.reweight,
        loss=phase.loss,
    )


if __name__ == "__main__":
    sys.exit(ENDS_WITH(said_by(int(os.environ.get("RANK", "0")), main(sys.argv[1:], STOP))))
