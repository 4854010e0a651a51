"""`triaxis data stats`: what a corpus is made of, as text, pictures and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.config import DataError
from data.documents import Documents
from data.spelling import spelling_of
from data.statistics import statistics
from data.tokenizers import load_corpus_tokenizer
from launcher.callbacks.units import count
from launcher.config import RecipeError
from launcher.corpus.order import progress_bar
from launcher.options import kinds_of, options_help, parse
from launcher.terminal import open_console

USAGE = "triaxis data stats CORPUS [--split train] [--columns a,b] [--top 20] [--out DIR] [--shuffle]"


@dataclass(frozen=True)
class StatsConfig:
    """What to count, and where to write it."""

    split: str = "train"
    """The split to look at."""

    columns: tuple[str, ...] = ()
    """Columns to describe, also those of orderings (`kinds.cluster`); none named = all that the build recorded."""

    top: int = 20
    """Entries of the lists: most frequent tokens, largest sources, most common words of a column."""

    most_tokens: int = 1_000_000_000
    """Token frequencies are counted in stretches that hold about so many tokens, spread evenly over the corpus; 0 = in
    all of it."""

    out: str = ""
    """Directory for stats.json and the pictures; by default CORPUS/stats."""

    shuffle: bool = False
    """Measure the order in which a stream reads the corpus against perfect shuffles, instead of what it holds."""

    batch: int = 512
    """With --shuffle: samples of a batch."""

    sequence_length: int = 2048
    """With --shuffle: tokens of a sample."""

    samples: int = 1 << 16
    """With --shuffle: samples of the stream that are looked at, from its beginning; at most an epoch."""

    window: int = 16
    """With --shuffle: stretches of the corpus that `data.shuffle=window` has open at once."""

    buffer: int = 1000
    """With --shuffle: samples in the buffer of a webdataset-like pipeline, the other way to shuffle shards."""

    seed: int = 0
    """With --shuffle: seed of the stream."""

    def __post_init__(self) -> None:
        for name, limit in (
            ("top", 1),
            ("most_tokens", 0),
            ("batch", 2),
            ("sequence_length", 1),
            ("samples", 4),
            ("window", 1),
            ("buffer", 1),
        ):
            if getattr(self, name) < limit:
                raise RecipeError(f"--{name.replace('_', '-')}={getattr(self, name)}: must be at least {limit}")


_OF_SHUFFLES = ("batch", "sequence_length", "samples", "window", "buffer", "seed")
_OF_CONTENTS = ("columns", "top", "most_tokens")


def stats_command(arguments: list[str]) -> int:
    """Count, write, draw, print."""
    console = open_console(soft_wrap=True)
    if "--help" in arguments:
        console.print(f"{USAGE}\n\n{options_help(StatsConfig)}")
        return 0
    places, values = parse(arguments, kinds_of(StatsConfig), USAGE)
    if len(places) != 1:
        raise RecipeError(f"data stats: takes one corpus: `{USAGE}`")
    config = StatsConfig(**values)
    idle = [name for name in (_OF_CONTENTS if config.shuffle else _OF_SHUFFLES) if name in values]
    if idle:
        raise RecipeError(
            f"--{idle[0].replace('_', '-')}: has no effect with{'' if config.shuffle else 'out'} --shuffle; leave it out"
        )
    if "://" in places[0]:
        raise RecipeError(f"data stats: {places[0]} is elsewhere; statistics read all of a corpus: count where it lies")
    corpus = Path(places[0])
    out = Path(config.out) if config.out else corpus / "stats"
    if config.shuffle:
        from launcher.corpus.shuffle import shuffle_command

        return shuffle_command(console, corpus, out, config)
    documents = Documents(corpus, config.split)
    with progress_bar(console, config.split) as progress:
        found = statistics(documents, config.columns, config.top, config.most_tokens, progress)
    spell = spelling_of(load_corpus_tokenizer(corpus))
    for entry in found["frequencies"]["most"]:
        entry["token"] = spell(entry["id"])
    from launcher.corpus.pictures import pictures

    files = {f"{name}.png": body for name, body in pictures(found).items()}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    written = write_files(out, {"stats.json": text.encode(), **files})
    tell(console, found)
    console.print("\n" + "  ".join(map(str, written)))
    return 0


def write_files(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes each file in one step; DataError where that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            draft = out / f".{name}.{os.getpid()}"
            draft.write_bytes(body)
            draft.replace(out / name)
    except OSError as error:
        raise DataError(f"--out={out}: cannot be written ({error.strerror}); choose another directory") from error
    return [out / name for name in files]


def tell(console: Console, found: dict[str, Any]) -> None:
    """The figures as text."""
    lengths = found["lengths"]
    console.print(found["corpus"], style="bold", end=" ")
    console.print(
        f"{found['split']}: {found['documents']:,} documents, {count(found['tokens'])} "
        f"tokens, {found['bytes'] / 1e6:,.1f} MB, {found['bytes'] / max(1, found['tokens']):.3f} bytes a token"
    )
    quantiles = "  ".join(f"{_percent(name)} {value:,.0f}" for name, value in lengths["quantiles"].items())
    console.print(f"tokens a document  {quantiles}  mean {lengths['mean']:,.1f}")
    _tell_sources(console, found)
    if found["signals"]:
        console.print(_signals(found["signals"]))
    for name, words in found["words"].items():
        console.print(f"{name}: {words['different']:,} different, {words['missing']:,} documents without")
        if "most" in words:
            rows = [(one["value"], f"{one['documents']:,}", count(one["tokens"])) for one in words["most"]]
            console.print(table((name, "documents", "tokens"), rows))
    _tell_frequencies(console, found["frequencies"])
    _tell_cleaning(console, found)


def _tell_sources(console: Console, found: dict[str, Any]) -> None:
    rows = [
        (
            one["source"],
            f"{one['documents']:,}",
            count(one["tokens"]),
            f"{100 * one['tokens'] / max(1, found['tokens']):.1f} %",
            f"{one['bytes'] / 1e6:,.1f}",
            f"{one['bytes_per_token']:.3f}",
        )
        for one in found["sources"]
    ]
    console.print(table(("source", "documents", "tokens", "share", "MB", "bytes/token"), rows))


def _signals(signals: dict[str, Any]) -> Table:
    """Numeric columns; what lies in the tails decides a filter."""
    rows = []
    for name, about in signals.items():
        quantiles = about.get("quantiles", {})
        shown = [_short(quantiles[key]) if key in quantiles else "" for key in ("0.0", "0.05", "0.5", "0.95", "1.0")]
        mean = _short(about["mean"]) if "mean" in about else ""
        rows.append((name, mean, *shown, f"{about['missing']:,}"))
    return table(("signal", "mean", "least", "5 %", "median", "95 %", "most", "missing"), rows)


def _tell_frequencies(console: Console, found: dict[str, Any]) -> None:
    cover = ", ".join(f"{100 * share:.1f} % by {int(n):,}" for n, share in found["coverage"].items())
    console.print(
        f"tokens: {found['never_used']:,} of {found['vocabulary']:,} ids never used "
        f"({100 * found['never_used'] / found['vocabulary']:.1f} %), entropy {found['entropy']:.3f} nats; the most frequent "
        f"ids cover {cover or 'all'} ({count(found['counted'])} tokens counted)"
    )
    total = max(1, found["counted"])
    shown = [f"{one['token']} {100 * one['count'] / total:.2f} %" for one in found["most"]]
    console.print("  " + "   ".join(shown))


def _tell_cleaning(console: Console, found: dict[str, Any]) -> None:
    for name, reasons in (("left out", found["skipped"]), ("quarantined", found["quarantined"])):
        if reasons:
            told = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
            console.print(f"{name}  {told}")
    steps = found.get("cleaning", [])
    if steps:
        rows = [
            (one["step"], f"{one['before']:,}", f"{one['after']:,}", f"{one['changed']:,}", _reasons(one))
            for one in steps
        ]
        console.print(table(("cleaning", "before", "after", "changed", "dropped because"), rows, words=(0, 4)))


def _reasons(step: dict[str, Any]) -> str:
    ordered = sorted(step["reasons"].items(), key=lambda pair: -pair[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered[:4])


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], words: tuple[int, ...] = (0,)) -> Table:
    """Words left, figures right, without lines."""
    found = Table(box=None, pad_edge=False)
    for place, name in enumerate(head):
        found.add_column(name, justify="left" if place in words else "right", header_style="dim")
    for row in rows:
        found.add_row(*row)
    return found


def _percent(quantile: str) -> str:
    names = {"0.0": "least", "0.5": "median", "1.0": "most"}
    return names.get(quantile, f"{100 * float(quantile):g} %")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
