"""`triaxis train` on this machine: compose, build what is missing, refuse what cannot be, start ranks, report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data.build import build
from data.clean.base import Scorer, Seams
from data.manifest import Manifest
from data.remote import home_of
from launcher.check import check_corpus, check_directory, check_recipe, check_same_run, check_streams, with_budget
from launcher.compose import (
    ENTRY,
    RECIPES,
    at_home,
    build_recipe,
    check_overrides,
    compose_tree,
    load_recipe,
    plain,
    refuse_decided,
    register_base,
    save_recipe,
)
from launcher.config import Recipe, RecipeError
from launcher.exits import AGAIN
from launcher.help import train_help
from launcher.jobs.config import JobError
from launcher.machine import choose_device, gpu_count, threads_for
from launcher.marks import begin, mark
from launcher.plan.choose import choose_layout
from launcher.restarts import run_attempts
from launcher.sweep.config import SweepConfig, SweepError
from launcher.terminal import open_console
from launcher.workers import run_workers

console = open_console(soft_wrap=True)
ONE_OF_MANY = "TRIAXIS_SWEEP"  # set in the environment of a sweep's runs
HYDRA_ONLY = (
    "--cfg",
    "-c",
    "--multirun",
    "-m",
    "--info",
    "--hydra-help",
    "--shell-completion",
    "-sc",
    "--resolve",
    "--package",
)


def train_command(arguments: list[str]) -> int:
    """`triaxis train …`: help is ours, Hydra's own flags go to Hydra, everything else is one run."""
    if "--help" in arguments or "-h" in arguments:
        print(train_help())
        return 0
    overrides, config_dir = config_dir_of(arguments)
    for argument in overrides:
        if argument.lstrip("+~").startswith("sweep."):
            raise SweepError(f"{argument}: has no effect on one run; leave it out, or use `triaxis sweep`")
        if argument.lstrip("+~").startswith("job."):
            raise JobError(
                f"{argument}: has no effect on a run that starts here and now; leave it out, or use `triaxis submit`"
            )
    if any(argument.split("=")[0] in HYDRA_ONLY for argument in overrides):
        return _through_hydra(overrides, config_dir)
    begin()
    recipe = build_recipe(compose_tree(overrides, config_dir))
    mark("compose")
    if recipe.sweep.axes and ONE_OF_MANY not in os.environ:
        axes = ", ".join(recipe.sweep.axes)
        console.print(f"one run, by the recipe as it stands; `triaxis sweep` runs all of its axes: {axes}")
    return train_recipe(recipe)


def config_dir_of(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split off `--config-dir DIR`."""
    if "--config-dir" not in arguments:
        return list(arguments), None
    at = arguments.index("--config-dir")
    if at + 1 == len(arguments) or not Path(arguments[at + 1]).is_dir():
        raise RecipeError("--config-dir: needs a directory laid out like recipes/")
    return arguments[:at] + arguments[at + 2 :], arguments[at + 1]


def _through_hydra(arguments: list[str], config_dir: str | None) -> int:
    """Hydra's command line: --cfg, --multirun and the like."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    takes_value = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--shell-completion", "-sc"}
    values = {index + 1 for index, argument in enumerate(arguments) if argument in takes_value}
    flags = [a for index, a in enumerate(arguments) if a.startswith("-") or index in values]
    singles = at_home([a for index, a in enumerate(arguments) if not a.startswith("-") and index not in values])
    if not any(argument in ("-m", "--multirun") for argument in arguments):
        check_overrides(singles, config_dir)
    named = any(argument.startswith("run.name=") and "," in argument for argument in singles)  # names are swept too
    register_base()
    from launcher import multirun

    multirun.register(config_dir, named)
    codes: list[int] = []

    def job(config: Any) -> None:
        node, tree = HydraConfig.get(), plain(config)
        refuse_decided(list(node.overrides.task), tree)
        recipe = build_recipe(tree)
        if node.mode == RunMode.MULTIRUN and not named:
            recipe = replace(recipe, run=replace(recipe.run, name=f"{recipe.run.name}_{node.job.num}"))
        codes.append(train_recipe(recipe))

    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    sys.argv = ["triaxis train", *flags, *singles, *extra]  # argparse takes overrides in one stretch only
    hydra.main(version_base="1.3", config_path=str(RECIPES), config_name=ENTRY)(job)()
    return max([*codes, *multirun.CODES], key=abs, default=0)  # a process that a signal ended has a negative one


def train_recipe(recipe: Recipe) -> int:
    """Train one composed recipe with ranks on this machine; returns the exit code."""
    recipe = replace(recipe, sweep=SweepConfig())  # of one run it is no part
    build_corpus(recipe)
    recipe = with_budget(check_corpus(recipe))
    directory = check_directory(recipe)
    frozen = directory / "config.yaml"
    device = choose_device(recipe.cluster)
    recipe = _check_resume(recipe, directory, frozen)
    recipe, world_size = _world(recipe, device, frozen)
    check_recipe(recipe, world_size, device)
    with progress_bar("data", "opening") as progress:
        check_streams(recipe, progress)
    save_recipe(recipe, frozen)
    mark("corpus and checks")
    threads = threads_for(recipe.cluster, world_size)
    code = run_attempts(
        recipe.life,
        directory,
        world_size,
        lambda: run_workers(directory, frozen, world_size, threads, device),
        console.print,
    )
    return _afterwards(recipe, directory, code)


def _check_resume(recipe: Recipe, directory: Path, frozen: Path) -> Recipe:
    """Where the directory holds a run with checkpoints: refuse another model, tell of other differences."""
    if not frozen.exists() or not any((directory / "checkpoints").glob("step_*")):
        return recipe
    saved = yaml.safe_load(frozen.read_text())
    ignored = ("parallel.data",) if recipe.cluster.layout == "fastest" else ()
    for difference in check_same_run(recipe, saved, str(directory)):
        if not difference.startswith(ignored):
            console.print(f"changed since the last attempt: {difference}")
    return recipe


def _world(recipe: Recipe, device: str, frozen: Path) -> tuple[Recipe, int]:
    """Number of processes: as `parallel` says, by what the machine has, or by measuring."""
    parallel = recipe.parallel
    if recipe.cluster.layout == "fastest" and not parallel.data:
        if frozen.exists() and any((frozen.parent / "checkpoints").glob("step_*")):
            chosen = load_recipe(frozen).parallel.data  # measured by the first attempt
            return replace(recipe, parallel=replace(parallel, data=chosen)), chosen * parallel.model_parallel
        least = parallel.least_data
        check_recipe(replace(recipe, parallel=replace(parallel, data=least)), least * parallel.model_parallel, device)
        return choose_layout(recipe, device, console.print)
    return world_of(recipe, device)


def world_of(recipe: Recipe, device: str) -> tuple[Recipe, int]:
    """The recipe with its data axis filled in, and the number of processes: as `parallel` says, or by what the machine has."""
    parallel = recipe.parallel
    if parallel.data:
        return recipe, parallel.data * parallel.model_parallel
    count = max(gpu_count() if device == "cuda" else 1, parallel.model_parallel * parallel.least_data)
    if count % parallel.model_parallel:
        context = f" x parallel.context={parallel.context}" if parallel.context > 1 else ""
        raise RecipeError(
            f"parallel.tensor={parallel.tensor} x parallel.pipeline={parallel.pipeline}{context}: does not divide the "
            f"{count} GPUs of this machine; set parallel.data, or other degrees"
        )
    return replace(recipe, parallel=replace(parallel, data=count // parallel.model_parallel)), count


def build_corpus(recipe: Recipe) -> Manifest:
    """Build the corpus of a recipe where its directory is data.path and holds none; else open what is there."""
    if Path(recipe.data.home) != Path(recipe.corpus.directory):
        return Manifest.load(home_of(recipe.data.home, recipe.data.cache))
    manifest = build_share(recipe, None)
    assert manifest is not None
    return manifest


def build_share(recipe: Recipe, share: tuple[int, int] | None) -> Manifest | None:
    """Build a recipe's corpus, or the i-th of n shares of it; None while other shares are missing."""
    with progress_bar("corpus", recipe.corpus.name) as progress:
        return build(recipe.corpus, recipe.tokenizer, progress, share=share, seams=Seams(open_scorer))


def open_scorer(run: str, tokens: int) -> Scorer:
    """`launcher.scoring.load_scorer`, imported (and torch with it) only where a cleaning step scores."""
    from launcher.scoring import load_scorer

    return load_scorer(run, tokens)


@contextmanager
def progress_bar(kind: str, note: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, nothing elsewhere; called as progress(done, total, note), with the tokens made so far where
    there are some."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(f"{kind}  {{task.description}}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(note, total=None, speed="")
        began: dict[str, float] = {}

        def show(done: int, total: int, note: str, tokens: int = 0) -> None:
            seconds = time.monotonic() - began.setdefault(note, time.monotonic())
            speed = f"{tokens / seconds / 1e6:.2f} M tokens/s" if tokens and seconds > 0 else ""
            bar.update(task, completed=done, total=total, description=note, speed=speed)

        yield show


def report_corpus(manifest: Manifest) -> int:
    """Say what a build made."""
    train, held = manifest.splits["train"], manifest.splits["validation"]
    console.print(
        f"corpus  {manifest.name}: {train.tokens:,} training tokens, {held.tokens:,} held out, vocabulary "
        f"{manifest.vocab_size:,} ({manifest.tokenizer_kind})"
    )
    for step in manifest.cleaning:
        console.print(f"cleaned  {step['step']}: {step['before']:,} → {step['after']:,} documents")
    if manifest.quarantined:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.quarantined.items())
        console.print(f"quarantined  {reasons}; each with its reason in quarantine.jsonl.zst beside the manifest")
    if manifest.baselines:
        console.print(
            f"baselines  unigram {manifest.baselines.unigram:.3f}, bigram {manifest.baselines.bigram:.3f} nats/token"
        )
    return 0


def _afterwards(recipe: Recipe, directory: Path, code: int) -> int:
    """After the ranks: the report, and a verdict."""
    if recipe.tracker.report:
        _report(directory)
    if code == AGAIN:
        console.print("interrupted; state is saved, the same command goes on from here")
        return code
    _verdict(directory)
    return code


def _report(directory: Path) -> None:
    from launcher.report import ReportError, write_report

    try:
        html, picture = write_report([directory])[:2]
        console.print(f"report  {html}  {picture}")
    except ReportError as error:
        console.print(f"report  none: {error}")


def _verdict(directory: Path) -> None:
    """Validation loss beside the baselines."""
    try:
        summary = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError):
        return
    nats, bits, base = summary["validation_loss"], summary["bits_per_byte"], summary.get("baselines", {})
    console.print(f"validation loss  {nats:.4f} nats/token   {bits:.4f} bits/byte")
    for name, value in base.items():
        word = "below" if nats < value else "ABOVE"
        console.print(f"  {word} the {name} baseline of {value:.4f} by {abs(value - nats):.4f}")
