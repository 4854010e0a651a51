"""`triaxis checkpoint convert`: a run as a Hugging Face folder, such a folder as the beginning of a run, a run as another.

An export holds one shard of the folder in memory, everything else one tensor. In float32 a round trip keeps every bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launcher.beside import DIRECTORY, bring, carry, read_json, write_json
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.surgery import OF_A_RUN, Options, Source, open_run, steps_of, write_run
from models.config import ModelConfig, ModelError, count_parameters
from models.folding import fold
from models.huggingface import Part, logical_shapes, match_names, parts_of
from models.huggingface_config import from_config, to_config
from models.surgery import Weights
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import resolve

USAGE = "triaxis checkpoint convert SOURCE TARGET [options]"
HELP = f"""{USAGE}

SOURCE is a run, a checkpoint of one, or a Hugging Face folder. TARGET is new. Memory: about one tensor.

A run becomes a Hugging Face folder, tokenizer included; a folder becomes a run that others begin from.
  --dtype fp32|bf16|fp16   numbers that are written (fp32)
  --shard-gb N             largest size of a file (5)

With any of these TARGET is a run instead. They are applied in the order given:
  --first-layers N         the model's first N layers
  --depth 0-23,8-31        these layers, counted from 0, repeats allowed (depth up-scaling); another function than before
    --identity             repeats pass their input on until trained: the same logits (block expansion)
  --vocab N                as many tokens, at least the old ones, whose logits stay
  --vocab-multiple M       padded to a multiple of M
    --vocab-fill mean|init new rows: the mean of the old ones (mean), or initial weights
  --experts N              a mixture of N experts in place of each feed-forward layer: copies of it, the same logits
    --top-k K              experts a token (2 whole layers)
    --granularity G        divide each copy into G experts; N = G = K adds no parameters but the router's
  --average OTHER …        the mean of the source and other runs or checkpoints
    --average-weights A,B  how much each counts, the source first
  --layout TxPxD           nothing else changes; files cut for tensor x pipeline x data, so that each rank reads mostly
                           its own. Not needed to train at another layout: every checkpoint loads at any
  --weights-only           without the optimizer's state. It is kept by --vocab, --vocab-multiple and --layout (new rows
                           begin with none); the others cannot keep it"""
VALUES = ("--dtype", "--shard-gb", "--first-layers", "--depth", "--vocab", "--vocab-multiple", "--vocab-fill", "--layout",
          "--average-weights", "--experts", "--top-k", "--granularity")  # fmt: skip
FLAGS = ("--identity", "--weights-only")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INDEX = "model.safetensors.index.json"


def convert_command(arguments: list[str]) -> int:
    """Export, import or convert a run or checkpoint; prints what to do with the result."""
    if "--help" in arguments:
        print(HELP)
        return 0
    (source, target), options = _parse(arguments)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target}: is there already; name another target, nothing is written over")
    dtype = options.get("--dtype", ["fp32"])[0]
    if (source / "config.json").is_file():
        useless = [name for name in ("--dtype", "--weights-only") if name in options]
        if useless:
            raise RecipeError(
                f"{', '.join(useless)}: has no effect on an import, which keeps the stored numbers; leave it"
            )
        print(import_folder(source, target, options))
    elif any(name in OF_A_RUN for name in options):
        opened = open_run(source)
        print(write_run(opened, steps_of(options, opened.recipe.seed), target, options, DTYPES[dtype]))
    else:
        print(export_run(source, target, dtype, int(float(options.get("--shard-gb", ["5"])[0]) * 1e9)))
    return 0


def _parse(arguments: list[str]) -> tuple[tuple[Path, Path], dict[str, list[str]]]:
    """Source and target, and options in the order given."""
    places, options, queue = list[Path](), dict[str, list[str]](), list(arguments)
    while queue:
        word = queue.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            places.append(Path(word))
            continue
        if name in options:
            raise RecipeError(f"{name}: given twice; leave one of them")
        if word in FLAGS:
            options[name] = []
        elif name in VALUES and (value or queue):
            options[name] = [value or queue.pop(0)]
        elif word == "--average":
            options[name] = []
            while queue and not queue[0].startswith("--"):
                options[name].append(queue.pop(0))
            if not options[name]:
                raise RecipeError("--average: needs other runs or checkpoints behind it")
        else:
            raise RecipeError(f"{word}: not an option of `{USAGE}`, or one that needs a value; see --help")
    if len(places) != 2:
        raise RecipeError(f"checkpoint convert: takes a source and a target: {USAGE}")
    dtype, size = options.get("--dtype", ["fp32"])[0], options.get("--shard-gb", ["5"])[0]
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype={dtype}: choose one of {', '.join(DTYPES)}")
    if not size.replace(".", "", 1).isdigit() or float(size) <= 0:
        raise RecipeError(f"--shard-gb={size}: must be a number of GB above 0")
    return (places[0], places[1]), options


# Export


def export_run(source: Path, target: Path, dtype: str, shard_bytes: int) -> str:
    """Write a run's newest checkpoint (or a checkpoint) as a folder that AutoModelForCausalLM loads; returns a message.

    dtype: fp32, bf16 or fp16. shard_bytes: largest size of a file of weights. CheckpointError where there is no checkpoint,
    ModelError where no Hugging Face family computes the model's function.
    """
    path = resolve(source)
    state = read_state(path)
    recipe = build_recipe(state["recipe"])
    weights = fold(Weights(recipe.model, partial(_whole, path, logical_shapes(recipe.model))))
    config = to_config(weights.model, str(DTYPES[dtype]).removeprefix("torch."))
    unfinished = target.with_name(f"{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    ids, told = bring(recipe, path, state, unfinished)
    write_json(unfinished / "config.json", {**config, **ids})
    files = _write_shards(_their_tensors(weights, DTYPES[dtype]), unfinished, shard_bytes)
    if target.exists():
        target.rmdir()
    unfinished.rename(target)
    count, kind = count_parameters(recipe.model), config["architectures"][0]
    if "auto_map" in config:
        modules = sorted({f"{place.split('.')[0]}.py" for place in config["auto_map"].values()})
        told += (
            f"; transformers has no {kind} of its own: put {' and '.join(modules)} of the published model beside them"
        )
    return f"{target}: {kind}, {count:,} parameters in {dtype}, {files} file(s) of weights, {told}"


def _whole(path: Path, shapes: dict[str, tuple[int, ...]], name: str) -> Tensor:
    """A parameter of a checkpoint."""
    whole = torch.empty(shapes[name])
    load(path, [Piece(name, shapes[name], (0,) * whole.dim(), whole)])
    return whole


def _their_tensors(weights: Weights, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for ours, shape in logical_shapes(weights.model).items():
        whole = weights.read(ours)
        for part in parts_of(weights.model, ours, shape):
            yield part.name, part.take(whole).to(dtype).clone(memory_format=torch.contiguous_format)


def _write_shards(tensors: Iterator[tuple[str, Tensor]], directory: Path, limit: int) -> int:
    """Write files of at most `limit` bytes (or one tensor), named once their number is known; returns that number."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        save_file(held, directory / f"shard_{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
            write()
            size = 0
        held[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for index, name in enumerate(names):
        (directory / f"shard_{index}").rename(directory / name)
    return len(shards)


# Import


def import_folder(source: Path, target: Path, options: Options) -> str:
    """Write a Hugging Face folder's weights as checkpoint 0 of a run directory, and its shape as a model recipe."""
    theirs = read_json(source / "config.json")
    model = from_config(theirs, target.name)
    recipe = replace(build_recipe(compose_tree([f"run.name={target.name}"])), model=model)
    opened = Source(our_weights(source, model), recipe, {}, {}, 0, partial(carry, source))
    steps = steps_of(options, recipe.seed)
    told = write_run(opened, steps, target, options, torch.float32)
    tokenizer = target / DIRECTORY / "tokenizer.json"
    words = f"tokenizer=file tokenizer.path={tokenizer} " if tokenizer.is_file() else ""
    return told.replace("run.name=…", f"{words}run.name=…")


def our_weights(source: Path, model: ModelConfig) -> Weights:
    """A folder's tensors under our names, read when asked for. ModelError where names or shapes are not the model's."""
    files = _weight_files(source)
    names = match_names(model, files)
    shapes = logical_shapes(model)
    for ours, shape in shapes.items():
        for part in parts_of(model, ours, shape):
            _check_shape(files[names[part.name]], names[part.name], part, shape)

    def read(ours: str) -> Tensor:
        whole = torch.zeros(shapes[ours])  # rows that only pad the vocabulary stay zero
        for part in parts_of(model, ours, shapes[ours]):
            stored = names[part.name]
            with safe_open(files[stored], framework="pt") as opened:
                whole[part.start : part.start + part.rows] = part.give(opened.get_tensor(stored))
        return whole

    return Weights(model, read)


def _check_shape(file: Path, stored: str, part: Part, shape: tuple[int, ...]) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            found = tuple(opened.get_slice(stored).get_shape())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: not whole ({error}); copy the folder again") from None
    expected = (part.skip + part.rows, *shape[1:])
    if found != (expected[::-1] if part.transposed else expected):
        raise ModelError(f"{file}: {stored} has {found} where config.json means {expected}")


def _weight_files(source: Path) -> dict[str, Path]:
    """Name of every stored tensor -> the file it is in."""
    try:
        if (source / INDEX).is_file():
            places = json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {name: source / file for name, file in places.items()}
        with safe_open(source / "model.safetensors", framework="pt") as opened:
            return dict.fromkeys(opened.keys(), source / "model.safetensors")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{source}: no whole model.safetensors (or {INDEX}) there ({error}); save it as safetensors"
        ) from None
