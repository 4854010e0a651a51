"""`triaxis submit`: a recipe becomes a batch script with all that it needs beside it, is checked, shown and queued."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from launcher.budget import Budget
from launcher.callbacks.units import count, duration
from launcher.check import check_corpus, check_directory, check_same_run, check_streams, with_budget, with_vocabulary
from launcher.compose import build_recipe, compose_tree, save_recipe
from launcher.config import Recipe
from launcher.jobs.allocation import Allocation, allocate
from launcher.jobs.config import JobError
from launcher.jobs.folder import Folder, Submission, new_folder
from launcher.jobs.scheduler import Job, Scheduler, scheduler_of
from launcher.jobs.script import chain_options, container_options, environment, render
from launcher.jobs.snapshot import take_snapshot
from launcher.submit import build_corpus, config_dir_of, progress_bar
from launcher.sweep.config import SweepConfig
from launcher.terminal import open_console
from models.config import count_parameters

console = open_console(soft_wrap=True)

HELP = """triaxis submit [group=recipe …] [option=value …] [--dry-run]

Queues a recipe as a job: under SLURM where its cluster says so (a profile of slurm/profiles), else on this machine.
  triaxis submit experiment=llama_1b cluster=h100_8x64 job.nodes=8 job.time=1-00:00:00 run.name=first
  triaxis submit experiment=tiny cluster=local run.name=first

  --dry-run          show the batch script and what would be queued, and write nothing
  --config-dir DIR   recipes of your own, found before ours

`triaxis train --help` lists every option; those of `cluster.` describe the site, those of `job.` this job.
Then: triaxis jobs, triaxis logs NAME [-f], triaxis cancel NAME."""


def submit_command(arguments: list[str]) -> int:
    """`triaxis submit …`."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    dry = "--dry-run" in arguments
    overrides, config_dir = config_dir_of([word for word in arguments if word != "--dry-run"])
    recipe = replace(build_recipe(compose_tree(overrides, config_dir)), sweep=SweepConfig())
    submit(recipe, dry=dry)
    return 0


def submit(recipe: Recipe, *, dry: bool = False) -> list[str]:
    """Check, show and queue a recipe; returns the ids of its jobs, none where `dry`."""
    device = device_of(recipe)
    recipe = _with_corpus(recipe, dry)
    allocation = allocate(recipe, device)
    run = (Path(recipe.run.dir) / recipe.run.name).absolute()
    _check_resume(allocation.recipe, run)
    if dry:
        show(allocation, run, device)
        folder = Folder(run / "jobs" / "001")
        print(render(folder, recipe.run.name, allocation, Path.cwd(), controller_python(recipe)))
        return []
    scheduler = scheduler_of(recipe.cluster.scheduler)
    _refuse_second(scheduler.jobs(), run)
    check_directory(recipe)
    folder = prepare(allocation, run, device)
    show(allocation, run, device)
    ids = queue(scheduler, folder, allocation.recipe)
    console.print(f"queued  {recipe.run.name} as job {', '.join(ids)}; `triaxis logs {recipe.run.name} -f` follows it")
    return ids


def device_of(recipe: Recipe) -> str:
    """What ranks will run on: by the profile of the site, since a login node has no GPU; here by what there is."""
    if recipe.cluster.scheduler == "local":
        from launcher.machine import choose_device

        return choose_device(recipe.cluster)
    return "cuda" if recipe.cluster.gpus_per_node and recipe.cluster.device != "cpu" else "cpu"


def _with_corpus(recipe: Recipe, dry: bool) -> Recipe:
    """The recipe with vocabulary and budget from its corpus, all of whose streams were opened."""
    home = Path(recipe.data.home)
    missing = "://" not in recipe.data.home and not (home / "manifest.json").exists()
    if missing and dry:
        console.print(f"{home}: is not built yet, so its streams are not checked; `triaxis data build` makes it")
        return with_vocabulary(recipe, recipe.model.vocab_size or recipe.tokenizer.vocab_size)
    if missing and recipe.cluster.scheduler == "slurm":
        raise JobError(
            f"data.path={home}: there is no corpus, and ranks do not build one; run `triaxis data build` first"
        )
    if missing:
        build_corpus(recipe)
    recipe = with_budget(check_corpus(recipe))
    with progress_bar("data", "opening") as progress:
        check_streams(recipe, progress)
    return recipe


def _check_resume(recipe: Recipe, run: Path) -> None:
    """Where the run has checkpoints: refuse another model, tell of other differences."""
    import yaml

    frozen = run / "config.yaml"
    if not frozen.exists() or not any((run / "checkpoints").glob("step_*")):
        return
    for difference in check_same_run(recipe, yaml.safe_load(frozen.read_text()), str(run)):
        if not difference.startswith(("job.", "cluster.", "sweep.")):
            console.print(f"changed since the last attempt: {difference}")


def _refuse_second(jobs: list[Job], run: Path) -> None:
    """Two jobs must not write into one run."""
    for job in jobs:
        if job.alive and job.folder is not None and job.folder.parent.parent == run:
            raise JobError(
                f"run.name={run.name}: job {job.id} of this run is {job.state.lower()}; wait for it, `triaxis cancel "
                f"{run.name}`, or choose another run.name"
            )


def controller_python(recipe: Recipe) -> str:
    """What runs the controller, on the batch host and outside any container. It needs no package."""
    if recipe.cluster.container:
        return "python3"
    return recipe.cluster.python or sys.executable


def prepare(allocation: Allocation, run: Path, device: str) -> Folder:
    """Write the folder of a submission: script, recipes, code."""
    recipe = allocation.recipe
    cluster, job = recipe.cluster, recipe.job
    folder = new_folder(run)
    try:
        for nodes, frozen in allocation.recipes.items():
            save_recipe(frozen, folder.recipe(nodes))
        revision = take_snapshot(folder.path)
        work, budget = Path.cwd(), Budget(recipe)
        seen = [str(work), str(run), *([recipe.data.home] if recipe.data.home.startswith("/") else [])]
        folder.script.write_text(render(folder, recipe.run.name, allocation, work, controller_python(recipe)))
        folder.write(
            Submission(
                name=recipe.run.name,
                run=str(run),
                scheduler=cluster.scheduler,
                nodes=allocation.nodes,
                tasks=allocation.tasks,
                sizes=tuple(allocation.recipes),
                model_parallel=recipe.parallel.model_parallel,
                threads=cluster.threads,
                device=device,
                python=cluster.python or ("python" if cluster.container else sys.executable),
                total_steps=budget.total_steps,
                total_tokens=budget.total_tokens,
                restarts=job.restarts,
                requeue=job.requeue and job.chain == 1,
                chain=job.chain,
                signal_seconds=job.signal_seconds,
                seconds=job.seconds,
                revision=revision,
                submitted=time.time(),
                work=str(work),
                partition=cluster.partition,
                srun=(*container_options(cluster, seen, str(work)), *cluster.srun),
                environment=environment(cluster),
            )
        )
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return folder


def queue(scheduler: Scheduler, folder: Folder, recipe: Recipe) -> list[str]:
    """Hand the script over, once for each link of its chain; what was queued is taken back where a later link fails."""
    job = recipe.job
    ids: list[str] = []
    try:
        for index in range(1 if job.chain_as == "array" else job.chain):
            ids.append(scheduler.submit(folder.script, chain_options(job, index, ids[-1] if ids else "")))
            folder.add_link(ids[-1])
    except BaseException as error:
        scheduler.cancel(ids)
        folder.stop(1, f"was not queued: {error}")
        raise
    return ids


def show(allocation: Allocation, run: Path, device: str) -> None:
    """What is queued, for people."""
    recipe = allocation.recipe
    cluster, job, parallel = recipe.cluster, recipe.job, recipe.parallel
    budget = Budget(recipe)
    degrees = {name: getattr(parallel, name) for name in ("data", "tensor", "pipeline", "context")}
    axes = " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1) or "one process"
    fewer = f", at least {min(allocation.recipes)}" if len(allocation.recipes) > 1 else ""
    nodes = f"{allocation.nodes} node{'s' * (allocation.nodes > 1)}{fewer} of {allocation.tasks} ranks on {device}"
    limit = duration(job.seconds) if job.seconds else "no limit of its own"
    again = f"then requeued; given up after {job.restarts} attempts in a row without progress"
    table = Table.grid(padding=(0, 2))
    rows = {
        "run": f"{recipe.run.name} in {os.path.relpath(run)}",
        "model": f"{recipe.model.name}, {count_parameters(recipe.model):,} parameters",
        "budget": f"{count(budget.total_tokens)} tokens in {budget.total_steps:,} steps",
        "machine": nodes if cluster.scheduler == "slurm" else f"this one, {allocation.world} ranks on {device}",
        "mesh": f"{axes} = {allocation.world} ranks",
        "time": f"{limit}, ranks save {duration(job.signal_seconds)} before it, {again}" if job.seconds else limit,
        "chain": f"{job.chain} jobs, one after another" if job.chain > 1 else "",
        "partition": cluster.partition,
    }
    for name, text in rows.items():
        if text:
            table.add_row(Text(name, "bold"), text)
    console.print(table)
