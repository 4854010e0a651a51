"""`triaxis data index`: webdataset tars of others become a corpus that runs read, without being rewritten.

    triaxis data index TARS… --out DIRECTORY tokenizer=file tokenizer.path=… [--text-field text] [--member ids.npy]

TARS are paths, directories, globs or URLs; `{000..123}` counts. What follows them as group=recipe or option=value is said of
the tokenizer, and of the cache where tars are at URLs (data.cache.…).
"""

from __future__ import annotations

import argparse
import dataclasses
import re

from data.config import DataError
from data.index import IndexConfig, index
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.submit import report_corpus

_OVERRIDE = re.compile(r"[+~]{0,2}(tokenizer|data\.cache)(\.\w+)?=.*")


def index_command(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="triaxis data index", description="Index webdataset tars, to train on them as they are."
    )
    defaults = {field.name: field.default for field in dataclasses.fields(IndexConfig)}
    parser.add_argument("tars", nargs="+", metavar="TARS", help="paths, directories, globs, URLs; {000..123} counts")
    parser.add_argument("--out", required=True, metavar="DIRECTORY", help="where the index goes; data.path of a run")
    parser.add_argument("--text-field", default=defaults["text_field"], help="key of the text in .json and .jsonl")
    parser.add_argument("--member", default="", help="suffix of the members that are documents, such as input_ids.npy")
    parser.add_argument("--columns", default="*", help="fields of JSON that become metadata: a,b; * = all; '' = none")
    parser.add_argument("--validation-fraction", type=float, default=defaults["validation_fraction"])
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = all cores")
    overrides = [text for text in arguments if _OVERRIDE.fullmatch(text)]
    flags = parser.parse_args([text for text in arguments if text not in overrides])
    if not any(text.startswith("tokenizer") for text in overrides):
        raise RecipeError(
            "data index: name the tokenizer that gives, or gave, the tokens: tokenizer=byte, or tokenizer=file "
            "tokenizer.path=their/tokenizer.json"
        )
    recipe = build_recipe(compose_tree(overrides))
    config = IndexConfig(
        tuple(flags.tars),
        flags.out,
        flags.text_field,
        flags.member,
        tuple(flags.columns.split(",")) if flags.columns else (),
        flags.validation_fraction,
        flags.workers,
    )
    if not any("://" in tar for tar in flags.tars) and any(text.startswith("data.cache") for text in overrides):
        raise DataError("data.cache has no effect on tars that are local; leave its options out")
    return report_corpus(index(config, recipe.tokenizer, recipe.data.cache, _progress))


def _progress(done: int, total: int, note: str) -> None:
    print(f"{done} of {total} tars: {note}", flush=True)
