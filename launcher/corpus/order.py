"""`triaxis data order`: make an ordering of a corpus, or say what there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.config import EOD_TEXT
from data.documents import Documents
from data.manifest import Manifest
from data.orderings import METHODS, Ordering, load, make, names
from data.orderings.simple import Difficulty
from data.progress import Progress
from data.tokenizers import load_corpus_tokenizer
from launcher.callbacks.units import count
from launcher.config import RecipeError
from launcher.options import flag, kinds_of, options_help, parse
from launcher.terminal import open_console

USAGE = "triaxis data order CORPUS --by METHOD [--name NAME] [--splits train,validation] [options of the method]"
MOST_ROWS = 40
_EXCERPT = 60


@dataclass(frozen=True)
class OrderConfig:
    """What every method has."""

    by: str = ""
    """shuffle, length, neighbours, clusters or difficulty; without it the orderings of the corpus are listed."""

    name: str = ""
    """What the ordering is called; by default like its method. It lies in CORPUS/orders/NAME."""

    splits: tuple[str, ...] = ("train",)
    """Splits to order. Validation reads in plain order unless a recipe says otherwise."""


def order_command(arguments: list[str]) -> int:
    """Make or list, and print."""
    console = open_console(soft_wrap=True)
    if "--help" in arguments:
        console.print(_help())
        return 0
    corpus, config, values = _parsed(arguments)
    if not config.by:
        Manifest.load(corpus)  # says that there is none
        for name in names(corpus) or [""]:
            _tell(console, corpus, load(corpus, name), name) if name else console.print(f"{corpus} has no orderings")
        return 0
    method: Any = METHODS[config.by](**values)
    name = config.name or config.by
    with progress_bar(console, name) as progress:
        if isinstance(method, Difficulty) and method.run:
            from launcher.corpus.scores import by_model  # torch, for a model

            found, new = by_model(corpus, name, method, config.splits, progress)
        else:
            found, new = make(corpus, name, config.by, method, config.splits, progress)
    console.print(f"{'made' if new else 'is there already, unchanged:'} {found.path}")
    _tell(console, corpus, found, name)
    return 0


def _parsed(arguments: list[str]) -> tuple[Path, OrderConfig, dict[str, Any]]:
    """(corpus, what every method has, the options of this one)."""
    shared = kinds_of(OrderConfig)
    every = {**kinds_of(*METHODS.values()), **shared}  # type: ignore[arg-type]
    places, values = parse(arguments, every, USAGE)
    if len(places) != 1:
        raise RecipeError(f"data order: takes one corpus: `{USAGE}`")
    if "://" in places[0]:
        raise RecipeError(
            f"data order: {places[0]} is elsewhere, and orderings lie beside the shards; order it where it lies"
        )
    config = OrderConfig(**{name: values.pop(name) for name in shared if name in values})
    if config.by and config.by not in METHODS:
        raise RecipeError(f"--by={config.by}: no such method; choose one of {', '.join(METHODS)}")
    own = kinds_of(METHODS[config.by]) if config.by else {}  # type: ignore[arg-type]
    wrong = [name for name in values if name not in own]
    if wrong:
        said = f"with --by={config.by}; it has {', '.join(map(flag, own))}" if config.by else "without --by"
        raise RecipeError(f"{flag(wrong[0])}: has no effect {said}")
    if not config.by and config != OrderConfig():
        raise RecipeError(f"--by: is required to make an ordering; choose one of {', '.join(METHODS)}")
    return Path(places[0]), config, values


def _help() -> str:
    parts = [USAGE, "", options_help(OrderConfig)]
    for name, method in METHODS.items():
        parts += ["", f"--by {name}: {(method.__doc__ or '').strip()}", options_help(method)]  # type: ignore[arg-type]
    return "\n".join(parts)


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Progress]:
    """A bar while something long goes on, where a person looks on."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(f"{title}  {{task.description}}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, note: bar.update(task, completed=done, total=total, description=note)


def _tell(console: Console, corpus: Path, found: Ordering, name: str) -> None:
    for split, about in found.splits.items():
        left_out = about["of_documents"] - about["documents"]
        told = f"{name}: {split} by {found.method}, {about['documents']:,} documents, {count(about['tokens'])} tokens"
        console.print(told + (f", {left_out:,} documents left out" if left_out else ""))
        for key, value in about["measured"].items():
            if key == "clusters":
                console.print(_cluster_table(corpus, split, value, found.options["drop"]))
            elif key == "buckets":
                console.print(_bucket_table(value))
            else:
                console.print(f"  {key.replace('_', ' ')}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _cluster_table(corpus: Path, split: str, clusters: list[dict[str, Any]], dropped: list[int]) -> Table:
    """Clusters, largest first, and how the document nearest to each centre begins: what a person decides --drop by."""
    table = Table(box=None, pad_edge=False)
    for title in ("cluster", "documents", "tokens", "to centre"):
        table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    table.add_column("nearest to its centre", no_wrap=True, overflow="ellipsis")
    documents, tokenizer = Documents(corpus, split), load_corpus_tokenizer(corpus)
    order = sorted(range(len(clusters)), key=lambda number: -clusters[number]["documents"])
    for number in order[:MOST_ROWS]:
        about = clusters[number]
        begin = ""
        if about["nearest"]:
            text = tokenizer.decode(documents.document(about["nearest"][0])[:_EXCERPT]).replace(EOD_TEXT, "")
            begin = " ".join(text.split())[:_EXCERPT]
        near = "" if about["to_centre"] is None else f"{about['to_centre']:.3f}"
        left = " (left out)" if number in dropped else ""
        table.add_row(f"{number}{left}", f"{about['documents']:,}", count(about["tokens"]), near, begin)
    if len(order) > MOST_ROWS:
        table.add_row("…", f"{len(order) - MOST_ROWS} more", "", "", "in order.json")
    return table


def _bucket_table(buckets: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("from tokens", "documents", "tokens"):
        table.add_column(title, justify="right")
    for about in buckets:
        table.add_row(f"{about['from_tokens']:,}", f"{about['documents']:,}", count(about["tokens"]))
    return table
