"""Conversions of a run into a run, for `triaxis checkpoint convert`: other layers, vocabulary, average, files.

The mathematics is in `models.surgery`, the writing in `parallel.checkpoint.rewrite`; here options become steps, and the
result a run directory. Of each step it is decided whether the optimizer's state has a counterpart in the new model.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from launcher.beside import DIRECTORY, bring
from launcher.compose import build_recipe
from launcher.config import Recipe, RecipeError
from launcher.saving import recipe_hash
from launcher.schema import to_plain
from models.config import count_parameters
from models.surgery import MEMORY, Weights, average, resize_vocabulary, take_layers, upcycle
from parallel.checkpoint.cuts import files_by_layout, files_by_size
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load
from parallel.checkpoint.rewrite import write_streamed
from parallel.checkpoint.store import resolve
from parallel.config import ParallelConfig
from parallel.engines.state import MOMENT_PREFIX

STRUCTURE = ("--first-layers", "--depth", "--vocab", "--vocab-multiple", "--average", "--experts")
MODIFIERS = {
    "--identity": "--depth",
    "--vocab-fill": "--vocab",
    "--average-weights": "--average",
    "--top-k": "--experts",
    "--granularity": "--experts",
}
OF_A_RUN = (*STRUCTURE, *MODIFIERS, "--layout", "--weights-only")
"""Options whose target is a run."""

Options = Mapping[str, list[str]]


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert. moments: kind, such as exp_avg -> those of all parameters. state: what was saved beside.

    beside: makes a directory with the files that Hugging Face keeps beside weights.
    """

    weights: Weights
    recipe: Recipe
    moments: Mapping[str, Weights]
    state: Mapping[str, Any]
    step: int
    beside: Callable[[Path], Any]


@dataclass(frozen=True)
class Step:
    """One conversion. moments: what it makes of the optimizer's, None where the new model has no counterpart to them."""

    words: str
    weights: Callable[[Weights], Weights]
    moments: Callable[[Weights], Weights] | None = None


def open_run(place: Path) -> Source:
    """The newest checkpoint of a run, or a checkpoint. RecipeError where it holds what no conversion knows."""
    path = resolve(place)
    manifest = read_manifest(path)
    recipe = build_recipe(manifest.state["recipe"])
    shapes = {name: entry.shape for name, entry in manifest.tensors.items()}

    def read(name: str, *, prefix: str = "") -> Tensor:
        whole = torch.empty(shapes[prefix + name])
        load(path, [Piece(prefix + name, shapes[prefix + name], (0,) * whole.dim(), whole)])
        return whole

    memory = tuple(kind for kind in MEMORY if any(name.endswith(f".router.{kind}") for name in shapes))
    weights, parameters = Weights(recipe.model, read, memory), Weights(recipe.model, read).shapes()
    known = weights.shapes()
    kinds = sorted({name.split(".")[1] for name in shapes if name.startswith(MOMENT_PREFIX)})
    kinds = [
        kind
        for kind in kinds
        if all(shapes.get(f"{MOMENT_PREFIX}{kind}.{name}") == shape for name, shape in parameters.items())
    ]
    strange = shapes.keys() - known.keys() - {f"{MOMENT_PREFIX}{kind}.{name}" for kind in kinds for name in parameters}
    if strange:
        raise RecipeError(
            f"{path}: holds {sorted(strange)[0]} ({len(strange)} such tensors), which is neither a weight nor a moment of its "
            "shape; a conversion would lose it"
        )
    moments = {kind: Weights(recipe.model, partial(read, prefix=f"{MOMENT_PREFIX}{kind}.")) for kind in kinds}

    def beside(target: Path) -> None:
        target.mkdir()
        bring(recipe, path, manifest.state, target)

    return Source(weights, recipe, moments, manifest.state, manifest.step, beside)


# Options


def steps_of(options: Options, seed: int) -> list[Step]:
    """The conversions that the options ask for, in their order. RecipeError for a value that cannot be."""
    for modifier, option in MODIFIERS.items():
        if modifier in options and not any(name.startswith(option) for name in options if name in STRUCTURE):
            raise RecipeError(f"{modifier}: has no effect without {option}; give it, or leave this")
    steps: list[Step] = []
    for option in options:
        if option == "--first-layers":
            steps.append(_first_layers(_whole_number(options, option)))
        elif option == "--depth":
            steps.append(_depth(options[option][0], "--identity" in options))
        elif option == "--average":
            steps.append(_average([Path(place) for place in options[option]], options.get("--average-weights")))
        elif option == "--experts":
            steps.append(_experts(options, seed))
        elif option == next((name for name in options if name in ("--vocab", "--vocab-multiple")), None):
            steps.append(_vocabulary(options, seed))
    return steps


def _whole_number(options: Options, option: str) -> int:
    text = options[option][0]
    if not text.isdecimal() or int(text) < 1:
        raise RecipeError(f"{option}={text}: must be a whole number of at least 1")
    return int(text)


def _first_layers(count: int) -> Step:
    def change(weights: Weights) -> Weights:
        if count > weights.model.layers:
            raise RecipeError(f"--first-layers={count}: the model has {weights.model.layers}; name at most as many")
        return take_layers(weights, range(count))

    return Step(f"first {count} layers", change)


def _depth(text: str, identity: bool) -> Step:
    order: list[int] = []
    for span in text.split(","):
        first, dash, last = span.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or (dash and int(last) < int(first)):
            raise RecipeError(
                f"--depth={text}: must be a list of layers from 0 and spans, such as 0-23,8-31; not {span!r}"
            )
        order.extend(range(int(first), int(last or first) + 1))
    told = "layers " + text + (" with repeats as identities" if identity else "")
    return Step(told, partial(take_layers, order=order, identity=identity))


def _vocabulary(options: Options, seed: int) -> Step:
    size = _whole_number(options, "--vocab") if "--vocab" in options else 0
    multiple = _whole_number(options, "--vocab-multiple") if "--vocab-multiple" in options else 0
    fill = options.get("--vocab-fill", ["mean"])[0]
    if fill not in ("mean", "init"):
        raise RecipeError(f"--vocab-fill={fill}: choose mean or init")

    def change(weights: Weights, fill: str) -> Weights:
        model = weights.model
        return resize_vocabulary(weights, size or model.vocab_size, multiple or model.vocab_multiple, fill, seed)

    told = f"vocabulary of {size}" if size else f"vocabulary padded to a multiple of {multiple}"
    return Step(told, partial(change, fill=fill), partial(change, fill="zero"))


def _experts(options: Options, seed: int) -> Step:
    experts = _whole_number(options, "--experts")
    parts = _whole_number(options, "--granularity") if "--granularity" in options else 1
    top_k = _whole_number(options, "--top-k") if "--top-k" in options else min(2, experts // parts) * parts
    divided = f" of {parts} parts of a layer each" if parts > 1 else ""
    told = f"{experts} experts{divided}, {top_k} a token"
    return Step(told, partial(upcycle, experts=experts, top_k=top_k, parts=parts, seed=seed))


def _average(places: list[Path], shares: list[str] | None) -> Step:
    try:
        numbers = [float(share) for share in shares[0].split(",")] if shares else [1.0] * (1 + len(places))
    except ValueError:
        raise RecipeError(
            f"--average-weights={shares}: must be numbers with commas between, the source's first"
        ) from None
    others = [open_run(place).weights for place in places]
    return Step(f"average of {1 + len(places)}", lambda weights: average([weights, *others], numbers))


# Writing


def write_run(source: Source, steps: Sequence[Step], target: Path, options: Options, dtype: torch.dtype) -> str:
    """Write what the steps make of a source as a run directory; returns a message. Refuses before anything is written."""
    weights = source.weights
    for step in steps:
        weights = step.weights(weights)
    moments, why = _moments(source, steps, "--weights-only" in options)
    if moments and dtype != torch.float32:
        raise RecipeError("--dtype: optimizer state is float32; give --weights-only too, or leave it")
    tensors: dict[str, tuple[Callable[[str], Tensor], str]] = {name: (weights.read, name) for name in weights.shapes()}
    for kind, moment in moments.items():
        tensors |= {f"{MOMENT_PREFIX}{kind}.{name}": (moment.read, name) for name in moment.shapes()}
    shapes = {name: weights.shapes()[owner] for name, (_, owner) in tensors.items()}
    model = replace(weights.model, name=target.name) if steps else weights.model
    run = replace(source.recipe.run, name=target.name, dir=str(target.parent), init_from="", init_what="weights")
    recipe = replace(source.recipe, model=model, run=run)
    files = _files(recipe, shapes, dtype, options)
    plain = to_plain(recipe)
    state = {**(source.state if moments else {"tokens": 0}), "recipe": plain, "recipe_hash": recipe_hash(plain)}

    def read(name: str) -> Tensor:
        make, owner = tensors[name]
        return make(owner)

    with _unfinished(target) as place:
        preset = place / "recipes" / "model" / f"{target.name}.yaml"
        preset.parent.mkdir(parents=True)
        preset.write_text(yaml.safe_dump(to_plain(model), sort_keys=False), encoding="utf-8")
        source.beside(place / DIRECTORY)
        write_streamed(place / "checkpoints", source.step if moments else 0, files, read, state)
    return _message(target, recipe, [step.words for step in steps], len(files), why, bool(moments))


def _moments(source: Source, steps: Sequence[Step], weights_only: bool) -> tuple[dict[str, Weights], str]:
    """The optimizer's state after the steps, none where one of them has no use for it; and what became of it, in words."""
    dropped = [step.words for step in steps if step.moments is None]
    if weights_only and dropped:
        raise RecipeError(f"--weights-only: has no effect, {dropped[0]} keeps weights alone; leave it")
    if not source.moments or weights_only or dropped:
        why = f"new optimizer state, for {dropped[0]}" if dropped and source.moments else "weights alone"
        return {}, why
    kept = dict(source.moments)
    for step in steps:
        assert step.moments is not None
        kept = {kind: step.moments(moment) for kind, moment in kept.items()}
    return kept, f"with the optimizer state of step {source.step}"


def _files(
    recipe: Recipe, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, options: Options
) -> list[list[Piece]]:
    if "--layout" not in options:
        return files_by_size(shapes, dtype, int(float(options.get("--shard-gb", ["5"])[0]) * 1e9))
    if "--shard-gb" in options:
        raise RecipeError("--shard-gb: has no effect with --layout, which says what each file holds; leave one of them")
    text = options["--layout"][0]
    degrees = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if len(degrees) != 3 or min(degrees) < 1:
        raise RecipeError(f"--layout={text}: must be the degrees of tensor, pipeline and data, such as 2x4x8")
    layout = ParallelConfig("torch", tensor=degrees[0], pipeline=degrees[1], data=degrees[2])
    return files_by_layout(recipe.model, layout, shapes, dtype, recipe.train.sequence_length)


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` once all is well, and is removed where it is not."""
    place = target.with_name(f"{target.name}.partial")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
        if target.exists():
            target.rmdir()
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _message(target: Path, recipe: Recipe, words: list[str], files: int, why: str, everything: bool) -> str:
    told = ", ".join([*words, f"{count_parameters(recipe.model):,} parameters", f"{files} file(s)", why])
    what = " run.init_what=everything" if everything else ""
    return (
        f"{target}: {told}; go on with\n"
        f"  triaxis train --config-dir {target / 'recipes'} model={target.name} run.init_from={target}{what} run.name=…"
    )
