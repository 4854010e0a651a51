"""The runs of a sweep: every combination of labels, composed and checked before the first one starts."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from data.corpus import Corpus
from launcher.check import check_corpus, check_recipe, check_streams, flatten, with_budget
from launcher.compose import build_recipe, compose_tree, groups, phases_of
from launcher.config import Recipe
from launcher.machine import choose_device
from launcher.schema import to_plain
from launcher.submit import build_corpus, world_of
from launcher.sweep.config import SweepConfig, SweepError, overrides_of

ELSEWHERE = (
    "run.name",
    "run.dir",
    "sweep.",
    "tracker.",
    "checkpoint.",
    "model.name",
    "cluster.threads",
    "cluster.layout",
    *("train.flops", "train.tokens_per_parameter", "train.batch_law", "optimizer.rate_law"),
)
"""Options that change none of a run's figures, or none that the options which they decide do not tell."""


@dataclass(frozen=True)
class Point:
    """A combination. position: its place among all combinations of the axes, chosen or not; own: overrides of its labels;
    line: those of the command line, which apply after them."""

    labels: dict[str, str]
    position: int
    own: tuple[str, ...]
    line: tuple[str, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """All, in the order in which they apply."""
        return (*self.own, *self.line)

    @property
    def name(self) -> str:
        """The labels in words."""
        return " ".join(f"{axis}={label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class Planned:
    """A point with its recipe, checked for this machine. corpora: fingerprints of what it reads."""

    point: Point
    recipe: Recipe
    corpora: tuple[str, ...] = ()

    @property
    def configuration(self) -> dict[str, Any]:
        """All that its figures depend on, by dotted option."""
        return {**identity(to_plain(self.recipe)), "corpora (fingerprints)": list(self.corpora)}


def identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted option -> value of a recipe in plain data, without what changes no figure."""
    return {key: value for key, value in flatten(tree).items() if not key.startswith(ELSEWHERE)}


def fingerprint(configuration: dict[str, Any]) -> str:
    """A name for a configuration: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def modern(old: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it would be told today: an option that is younger than it was at its default."""
    plain = identity(to_plain(Recipe()))
    return {**plain, **{key: value for key, value in old.items() if not key.startswith(ELSEWHERE)}}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`option: old -> new` of all that differs; an option younger than the old configuration was at its default there."""
    plain = identity(to_plain(Recipe()))
    old = {key: value for key, value in old.items() if not key.startswith(ELSEWHERE)}
    old = {key: value for key, value in plain.items() if key in new} | old
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if json.dumps(old.get(key)) != json.dumps(new.get(key))
    ]


def sweep_of(overrides: Sequence[str], config_dir: str | None = None) -> tuple[SweepConfig, list[str]]:
    """The sweep that a command line means, and what of the line is each run's."""
    for text in overrides:
        if text.lstrip("+").startswith("run.dir="):
            raise SweepError(f"{text}: the runs of a sweep lie in its own directory; leave it out, or set sweep.dir")
    recipe = build_recipe(compose_tree(overrides, config_dir))
    sweep = recipe.sweep
    if not sweep.axes and not sweep.search.space:
        raise SweepError(
            "sweep.axes: this recipe has none; choose one that has (experiment=mx_parity), or give axes, such as "
            "sweep.axes.seed=[1,2], or a space to search"
        )
    return replace(sweep, name=sweep.name or recipe.run.name), [
        text for text in overrides if not text.lstrip("+~").startswith("sweep.")
    ]


def points_of(sweep: SweepConfig, line: Sequence[str]) -> list[Point]:
    """Every combination of the chosen labels, the last axis fastest."""
    axes = {name: overrides_of(name, axis) for name, axis in sweep.axes.items()}
    _refuse_decided_twice(axes, line)
    chosen = {name: set(sweep.labels(name)) for name in axes}
    found = []
    for position, labels in enumerate(itertools.product(*axes.values())):
        named = dict(zip(axes, labels, strict=True))
        if all(label in chosen[name] for name, label in named.items()):
            own = [text for name, label in named.items() for text in axes[name][label]]
            found.append(Point(named, position, tuple(own), tuple(line)))
    return found


def _refuse_decided_twice(axes: dict[str, dict[str, list[str]]], line: Sequence[str]) -> None:
    """Hydra takes one recipe of a group: a group that an axis chooses is not the command line's too."""
    given = {text.partition("=")[0]: text for text in line}
    for name, labels in axes.items():
        for text in itertools.chain.from_iterable(labels.values()):
            if (key := text.partition("=")[0]) in given and key in groups():
                raise SweepError(
                    f"{given[key]}: the axis {name} of this sweep chooses {key}; leave it out, or choose labels with "
                    f"sweep.only.{name}=[…]"
                )


def plan(
    points: Sequence[Point], config_dir: str | None, told: Callable[[int], None] = lambda done: None
) -> list[Planned]:
    """Compose and check every point, corpora built where they are missing; the first that cannot be is refused by its labels.

    told: called with the number of points that are composed, which is what takes time.
    """
    recipes = []
    for point in points:  # all before the first corpus is built
        with _named(point):
            recipes.append(_composed(point, config_dir))
        told(len(recipes))
    for recipe in {
        (str(recipe.corpus), str(recipe.tokenizer), recipe.data.home): recipe for recipe in recipes
    }.values():
        build_corpus(recipe)
    found: list[Planned] = []
    streams = set()
    for point, recipe in zip(points, recipes, strict=True):
        with _named(point):
            ready = _checked(recipe)
            if (read := str((ready.data, ready.train, ready.phases, ready.objective, ready.seed))) not in streams:
                check_streams(ready)
                streams.add(read)
        found.append(Planned(point, ready, _corpora(ready)))
    _refuse_made_equal(found)
    return found


def _corpora(recipe: Recipe) -> tuple[str, ...]:
    """What stands at a path may be another text one day, as the standard library of another Python is."""
    data = [phase.data for phase in phases_of(recipe)]
    paths = {path: one.cache for one in data for path in (one.home, *(part.path for part in one.parts))}
    return tuple(Corpus(path, "train", cache).manifest.fingerprint for path, cache in paths.items())


def _refuse_made_equal(planned: Sequence[Planned]) -> None:
    """Labels may mean one configuration, but the command line may not make them so: it wins over labels."""
    first: dict[str, Point] = {}
    for one in planned:
        other = first.setdefault(fingerprint(one.configuration), one.point)
        decided = {text.lstrip("+").partition("=")[0] for text in {*other.own} ^ {*one.point.own}}
        for text in one.point.line:
            if text.lstrip("+").partition("=")[0] in decided:
                raise SweepError(
                    f"{text}: makes one run of {other.name} and {one.point.name}, which differ in it; leave it out"
                )


@contextmanager
def _named(point: Point) -> Iterator[None]:
    """Every room's error for users says which run it is of."""
    try:
        yield
    except ValueError as error:
        raise SweepError(f"{point.name}: {error}") from error


def _composed(point: Point, config_dir: str | None) -> Recipe:
    recipe = replace(build_recipe(compose_tree(point.overrides, config_dir)), sweep=SweepConfig())
    if recipe.cluster.layout != "recipe":
        raise SweepError(
            f"cluster.layout={recipe.cluster.layout}: would measure each run's layout, and runs would not be comparable; set "
            "cluster.layout=recipe"
        )
    return recipe


def _checked(recipe: Recipe) -> Recipe:
    device = choose_device(recipe.cluster)
    recipe, world = world_of(with_budget(check_corpus(recipe)), device)
    check_recipe(recipe, world, device)
    return replace(recipe, cluster=replace(recipe.cluster, device=device))  # `auto` may be another on another machine
