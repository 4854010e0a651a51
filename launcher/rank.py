"""How a rank comes to its recipe and its device, whoever started it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from data.config import Unreachable
from launcher.check import check_corpus, check_directory, check_recipe, check_streams, with_budget
from launcher.compose import build_recipe, compose_tree, load_recipe, save_recipe
from launcher.config import Recipe, RecipeError
from launcher.exits import FAILED, NEVER
from launcher.health import HealthError
from launcher.machine import choose_device, threads_for
from launcher.schema import to_plain
from launcher.workers import name_process
from parallel.checkpoint.errors import NotSaved
from parallel.gloo import share_device


def obtain_recipe(arguments: list[str]) -> tuple[Recipe, torch.device]:
    """The frozen recipe: read where a launcher wrote it; under torchrun or srun composed by rank 0 and handed round."""
    take_place()
    # torch's word to DeepSpeed about names that still work is nothing that a user could mend
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if "TRIAXIS_RECIPE" in os.environ:
        recipe = load_recipe(Path(os.environ["TRIAXIS_RECIPE"]))
        return recipe, claim_device(recipe)
    share_device()
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


def take_place() -> None:
    """This rank's place in the world, where srun started it: its own names for what torch looks for."""
    if "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise RecipeError("python -m launcher.train: is one rank; use `triaxis train`, torchrun or srun to start it")
    for ours, slurms in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        os.environ.setdefault(ours, os.environ.get(slurms, "0"))
    name_process(f"rank_{os.environ['RANK']}")


def compose_and_check(arguments: list[str], world_size: int) -> dict:
    """Compose, refuse what cannot be, write `config.yaml`; returns the resolved recipe as plain data."""
    recipe = with_budget(check_corpus(build_recipe(compose_tree(arguments))))
    check_recipe(recipe, world_size, choose_device(recipe.cluster))
    check_streams(recipe)
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
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(
        f"{room}Error"
        for room in (
            "Recipe",
            "Model",
            "Parallel",
            "Data",
            "Training",
            "Checkpoint",
            "Cluster",
            "Sweep",
            "Life",
            "Health",
        )
    )


def code_of(error: BaseException) -> int:
    """What an error asks for: nothing cures a user's mistake but the user; a server, a disk, another machine or a bug may do
    better next time."""
    return NEVER if is_users(error) and not isinstance(error, Unreachable | NotSaved | HealthError) else FAILED
