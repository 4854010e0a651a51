"""Nodes and ranks of a job, held against the recipe: everything that can be refused before something is queued."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from launcher.check import check_recipe
from launcher.config import Recipe
from launcher.jobs.config import JobError, seconds_of


@dataclass(frozen=True)
class Allocation:
    """What an attempt runs on.

    recipes: of each number of nodes that an attempt may have, the recipe with its data axis filled in, most nodes first.
    """

    nodes: int
    tasks: int  # ranks on a node
    recipes: dict[int, Recipe]

    @property
    def world(self) -> int:
        """Ranks."""
        return self.nodes * self.tasks

    @property
    def recipe(self) -> Recipe:
        """The recipe on all nodes."""
        return self.recipes[self.nodes]


def allocate(recipe: Recipe, device: str) -> Allocation:
    """Nodes and ranks that a recipe asks for, and the recipe at each number of nodes; the vocabulary must be filled in.

    device: of the ranks, cpu or cuda. JobError or RecipeError where mesh, batch and cluster do not go together.
    """
    if recipe.cluster.layout == "fastest":
        raise JobError(
            "cluster.layout=fastest: is measured where a run starts, and a job's mesh must be known before; set "
            "cluster.layout=recipe (cluster=local) and parallel.data"
        )
    _check_limits(recipe)
    if recipe.cluster.scheduler == "local":
        return _one_machine(recipe, device)
    tasks, model = recipe.cluster.tasks, recipe.parallel.model_parallel
    nodes = recipe.job.nodes or _nodes(recipe, tasks)
    if nodes > recipe.cluster.nodes:
        option = f"job.nodes={nodes}" if recipe.job.nodes else f"parallel.data={recipe.parallel.data}"
        raise JobError(
            f"{option}: takes {nodes} nodes of {tasks} ranks, more than cluster.nodes={recipe.cluster.nodes}; lower it"
        )
    world = nodes * tasks
    data = recipe.parallel.data or world // model
    if data * model != world:
        raise JobError(
            f"job.nodes={nodes}: {nodes} nodes of {tasks} ranks are {world}, and the mesh has parallel.data={data} x "
            f"{model} of the other axes = {data * model}; change one of them"
        )
    whole = replace(recipe, parallel=replace(recipe.parallel, data=data))
    check_recipe(whole, world, device)
    return Allocation(nodes, tasks, {nodes: whole, **_smaller(whole, nodes, tasks, device)})


def _check_limits(recipe: Recipe) -> None:
    limit = seconds_of(recipe.cluster.max_time, "cluster.max_time")
    if limit and recipe.job.seconds > limit:
        raise JobError(
            f"job.time={recipe.job.time}: longer than cluster.max_time={recipe.cluster.max_time}; shorten it, and let "
            "job.chain or requeueing go on from there"
        )


def _one_machine(recipe: Recipe, device: str) -> Allocation:
    """All ranks beside one another, as `triaxis train` starts them."""
    from launcher.submit import world_of

    recipe.job.check_local()
    whole, world = world_of(recipe, device)
    check_recipe(whole, world, device)
    return Allocation(1, world, {1: whole})


def _nodes(recipe: Recipe, tasks: int) -> int:
    """Nodes that the mesh needs; without parallel.data, as many as its other axes do."""
    ranks = (recipe.parallel.data or 1) * recipe.parallel.model_parallel
    if recipe.parallel.data and ranks % tasks:
        raise JobError(
            f"parallel.data={recipe.parallel.data}: the mesh has {ranks} ranks, which do not fill nodes of {tasks}; choose "
            "other degrees, or cluster.ranks_per_node"
        )
    return math.ceil(ranks / tasks)


def _smaller(whole: Recipe, nodes: int, tasks: int, device: str) -> dict[int, Recipe]:
    """The recipe at each smaller number of nodes that job.least_nodes allows and the batch divides over."""
    least, model = whole.job.least_nodes, whole.parallel.model_parallel
    found: dict[int, Recipe] = {}
    if not least or least >= nodes:
        return found
    for fewer in range(nodes - 1, least - 1, -1):
        world = fewer * tasks
        if world % model:
            continue
        smaller = replace(whole, parallel=replace(whole.parallel, data=world // model))
        try:
            check_recipe(smaller, world, device)
        except ValueError:
            continue  # a batch that does not divide, say: an attempt of that size is left out
        found[fewer] = smaller
    if least not in found:
        raise JobError(
            f"job.least_nodes={least}: {least} nodes of {tasks} ranks cannot hold the mesh and its batch; "
            f"{_possible([nodes, *found])}"
        )
    return found


def _possible(nodes: list[int]) -> str:
    return f"possible are {', '.join(map(str, sorted(nodes)))}"
