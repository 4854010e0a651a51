"""`triaxis checkpoint convert`: a run as a Hugging Face folder, and a Hugging Face folder as the beginning of a run.

An export holds one shard of the folder in memory, an import one copy of the model. In float32 a round trip keeps every bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.config import EOD_TEXT, DataError
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.saving import recipe_hash
from launcher.schema import to_plain
from models.config import ModelConfig, ModelError, count_parameters
from models.huggingface import logical_shapes, match_names, parts_of
from models.huggingface_config import from_config, to_config
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import Store, resolve
from parallel.checkpoint.writer import Saver

USAGE = "triaxis checkpoint convert SOURCE TARGET [--dtype fp32|bf16|fp16] [--shard-gb N]"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INDEX = "model.safetensors.index.json"


def convert_command(arguments: list[str]) -> int:
    """Export a run or checkpoint, or import a folder that has a config.json; prints what to do with the result."""
    places, options = _parse(arguments)
    source, target = places
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target}: is there already; name another target, nothing is written over")
    if (source / "config.json").is_file():
        if options:
            raise RecipeError(
                f"{', '.join(options)}: has no effect on an import, which keeps the stored numbers; leave it"
            )
        print(import_folder(source, target))
    else:
        dtype, shard = options.get("--dtype", "fp32"), float(options.get("--shard-gb", 5))
        print(export_run(source, target, dtype, int(shard * 1e9)))
    return 0


def _parse(arguments: list[str]) -> tuple[tuple[Path, Path], dict[str, str]]:
    places, options, queue = list[Path](), dict[str, str](), list(arguments)
    while queue:
        word = queue.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            places.append(Path(word))
        elif name in ("--dtype", "--shard-gb") and (value or queue):
            options[name] = value or queue.pop(0)
        else:
            raise RecipeError(f"{word}: not an option of `{USAGE}`")
    if len(places) != 2:
        raise RecipeError(f"checkpoint convert: takes a source and a target: {USAGE}")
    if options.get("--dtype", "fp32") not in DTYPES:
        raise RecipeError(f"--dtype={options['--dtype']}: choose one of {', '.join(DTYPES)}")
    if not options.get("--shard-gb", "5").replace(".", "", 1).isdigit() or float(options.get("--shard-gb", 5)) <= 0:
        raise RecipeError(f"--shard-gb={options['--shard-gb']}: must be a number of GB above 0")
    return (places[0], places[1]), options


# Export


def export_run(source: Path, target: Path, dtype: str, shard_bytes: int) -> str:
    """Write a run's newest checkpoint (or a checkpoint) as a folder that AutoModelForCausalLM loads; returns a message.

    dtype: fp32, bf16 or fp16. shard_bytes: largest size of a file of weights. CheckpointError where there is no checkpoint,
    ModelError where no Hugging Face family computes the model's function.
    """
    path = resolve(source)
    recipe = build_recipe(read_state(path)["recipe"])
    config = to_config(recipe.model, str(DTYPES[dtype]).removeprefix("torch."))
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    eod, told = _export_tokenizer(recipe, partial)
    ids = {"bos_token_id": eod, "eos_token_id": eod}
    _write_json(partial / "config.json", {**config, **ids})
    _write_json(partial / "generation_config.json", ids)
    files = _write_shards(_their_tensors(path, recipe.model, DTYPES[dtype]), partial, shard_bytes)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    count = count_parameters(recipe.model)
    return (
        f"{target}: {config['architectures'][0]}, {count:,} parameters in {dtype}, {files} file(s) of weights, {told}"
    )


def _their_tensors(path: Path, model: ModelConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for ours, shape in logical_shapes(model).items():
        whole = torch.empty(shape)
        load(path, [Piece(ours, shape, (0,) * len(shape), whole)])
        for part in parts_of(model, ours, shape):
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
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for index, name in enumerate(names):
        (directory / f"shard_{index}").rename(directory / name)
    return len(shards)


def _export_tokenizer(recipe: Recipe, directory: Path) -> tuple[int | None, str]:
    """Copy the corpus's tokenizer; returns the end-of-document id and what became of it, in words."""
    try:
        tokenizer = Tokenizer.load(Path(recipe.data.path) / TOKENIZER_DIRECTORY)
    except DataError:
        return None, f"no tokenizer ({recipe.data.path} has none)"
    stored = Path(recipe.data.path) / TOKENIZER_DIRECTORY / "tokenizer.json"
    if tokenizer.kind == "byte":
        return tokenizer.eod, "no tokenizer (ids are bytes)"
    shutil.copyfile(stored, directory / "tokenizer.json")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.decode([tokenizer.eod]) or EOD_TEXT,
        "model_max_length": recipe.model.max_sequence,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", about)
    return tokenizer.eod, "with its tokenizer"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# Import


def import_folder(source: Path, target: Path) -> str:
    """Write a Hugging Face folder's weights as checkpoint 0 of a run directory, and its shape as a model recipe."""
    try:
        theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{source / 'config.json'}: not JSON ({error}); restore the file") from error
    model = from_config(theirs, target.name)
    recipe = build_recipe(compose_tree([f"run.name={target.name}"]))
    recipe = replace(recipe, model=model, run=replace(recipe.run, dir=str(target.parent)))
    pieces = list(_our_pieces(source, model))
    preset = target / "recipes" / "model" / f"{target.name}.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(
        f"# {source.name}, imported\n{yaml.safe_dump(to_plain(model), sort_keys=False)}", encoding="utf-8"
    )
    _commit(target / "checkpoints", pieces, to_plain(recipe))
    tokenizer = source / "tokenizer.json"
    words = f"tokenizer=file tokenizer.path={tokenizer} " if tokenizer.is_file() else ""
    return (
        f"{target}: {theirs['model_type']}, {count_parameters(model):,} parameters; go on with\n"
        f"  triaxis train --config-dir {target / 'recipes'} model={target.name} run.init_from={target} {words}run.name=…"
    )


def _our_pieces(source: Path, model: ModelConfig) -> Iterator[Piece]:
    files = _weight_files(source)
    names = match_names(model, files)
    for ours, shape in logical_shapes(model).items():
        end = 0
        for part in parts_of(model, ours, shape):
            stored = names[part.name]
            with safe_open(files[stored], framework="pt") as opened:
                rows = part.give(opened.get_tensor(stored))
            expected = (part.rows, *shape[1:])
            if tuple(rows.shape) != expected:
                raise ModelError(
                    f"{files[stored]}: {stored} has {tuple(rows.shape)} where config.json means {expected}"
                )
            yield Piece(ours, shape, (part.start, *[0] * (len(shape) - 1)), rows)
            end = part.start + part.rows
        if end < shape[0]:  # rows that only pad the vocabulary
            yield Piece(ours, shape, (end, *[0] * (len(shape) - 1)), torch.zeros(shape[0] - end, *shape[1:]))


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


def _commit(directory: Path, pieces: list[Piece], recipe: dict[str, Any]) -> None:
    attempt = Store(directory).open_attempt()
    saver = Saver(Store(directory, 0, 1, attempt), asynchronous=False)
    saver.save(0, pieces, {"recipe": recipe, "recipe_hash": recipe_hash(recipe), "tokens": 0})
    saver.close()
    (event,) = saver.poll()
    if not event.committed:
        raise RecipeError(f"{directory}: {event.message}")
