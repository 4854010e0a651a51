"""What Hugging Face keeps beside weights: the tokenizer, its settings, defaults of generation.

An import carries these files into the run, in `huggingface/`; conversions hand them on; an export brings them out again.
A run that was trained on a corpus has the corpus's tokenizer instead, unless it is the same one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.config import DataError
from data.remote import home_of
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer
from launcher.config import Recipe, RecipeError

DIRECTORY = "huggingface"
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def carry(folder: Path, target: Path) -> None:
    """Copy a Hugging Face folder's files beside its weights; ids that only its config.json has become defaults too."""
    target.mkdir()
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    if (folder / "config.json").is_file() and not (target / "generation_config.json").exists():
        config = read_json(folder / "config.json")
        write_json(target / "generation_config.json", {key: config[key] for key in IDS if config.get(key) is not None})


def bring(recipe: Recipe, checkpoint: Path, state: Mapping[str, Any], target: Path) -> tuple[dict[str, Any], str]:
    """Put the files that belong to a checkpoint into `target`, a directory; returns special ids and, in words, what was put."""
    own = checkpoint.resolve().parent.parent / DIRECTORY
    before = Path(recipe.run.init_from) / DIRECTORY if recipe.run.init_from else own
    trained = "counters" in state
    corpus = _tokenizer_of(recipe) if trained else None
    kept = own if own.is_dir() else before
    if kept.is_dir() and (corpus is None or kept == own or _same(kept, recipe)):
        for path in sorted(kept.iterdir()):
            shutil.copyfile(path, target / path.name)
        generation = read_json(kept / "generation_config.json") if (kept / "generation_config.json").is_file() else {}
        told = "with its tokenizer" if any("token" in path.name for path in kept.iterdir()) else "no tokenizer"
        return {key: generation[key] for key in IDS if key in generation}, told
    if corpus is None:
        return {}, f"no tokenizer ({recipe.data.home} has none)" if trained else "no tokenizer (none was imported)"
    ids = {"bos_token_id": corpus.eod, "eos_token_id": corpus.eod}
    files, reader = corpus.huggingface_files()
    for name, content in files.items():
        (target / name).write_bytes(content)
    about = {
        "tokenizer_class": reader,
        "eos_token": corpus.eod_text,
        "model_max_length": recipe.model.max_sequence,
        "clean_up_tokenization_spaces": False,
    }
    write_json(target / "tokenizer_config.json", about)
    write_json(target / "generation_config.json", ids)
    return ids, "with its tokenizer"


def _tokenizer_of(recipe: Recipe) -> Tokenizer | None:
    try:
        return Tokenizer.load(home_of(recipe.data.home, recipe.data.cache) / TOKENIZER_DIRECTORY)
    except DataError:
        return None


def _same(kept: Path, recipe: Recipe) -> bool:
    """Whether the corpus was made with the tokenizer that was carried."""
    one, other = (
        kept / "tokenizer.json",
        home_of(recipe.data.home, recipe.data.cache) / TOKENIZER_DIRECTORY / "tokenizer.json",
    )
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; RecipeError where the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not JSON ({error}); restore the file") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: not a JSON object; restore the file")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
