"""`triaxis bench data dedup`: near-deduplication beside datasketch, on planted copies of known similarity.

    triaxis bench data dedup [--documents N] [--words W] [--rounds N] [--json FILE]

Originals are made of words drawn by Zipf's law; a third of the documents are copies of an original in which a share of the
words was replaced, so that their Jaccard similarities are spread over 0.3 to 1; the exact similarity is computed for each.
Every contender gets the same texts, makes signatures of the same shingles (5 words), permutations (112), bands and rows
(14 x 8), in one thread, and tells which documents stay: the step `minhash` of a corpus, tally included, and datasketch's
MinHash and MinHashLSH with query and insert, once with its default hash (SHA-1) and once with xxHash.

Times are of the CPU: all compute in one thread, and other work on a shared machine then counts less. Theory is of a copy and
its original alone; the step's clusters also join through third documents, datasketch's queries through earlier ones.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from data.clean.duplicates import MinhashConfig
from data.clean.minhash import chance
from data.clean.pipeline import Pipeline
from data.document import Document
from data.order import key, mix
from launcher.bench.show import write_figures
from launcher.config import RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console

VOCABULARY = 50_000
REPLACED = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08)
"""Shares of words that are replaced in copies."""

GRADES = ((0.9, 1.0), (0.8, 0.9), (0.7, 0.8), (0.5, 0.7), (0.0, 0.5))
"""Ranges of Jaccard similarity, upper ends included, that recall is told for."""

COPY = 0.8
"""From this Jaccard similarity on a document counts as a copy for recall; below SURE a dropped one counts against precision."""
SURE = 0.5

_SHAPE = MinhashConfig()
_PERMUTATIONS = _SHAPE.bands * _SHAPE.rows
_WORD = re.compile(r"\w+")

Contender = Callable[[Sequence[str]], np.ndarray]
"""Texts -> bool [texts], which stay."""


@dataclass(frozen=True)
class Planted:
    """texts; similarity float64 [texts]: the exact Jaccard similarity with the original, 0 for an original."""

    texts: list[str]
    similarity: np.ndarray


def plant(documents: int, words: int) -> Planted:
    """Texts of about `words` words; a function of the two numbers. Every third is a copy of one before it."""
    texts: list[np.ndarray] = []
    similarity = np.zeros(documents)
    for number in range(documents):
        seed = key("bench dedup", number)
        drawn = _uniform(4 * words + 4, seed)
        if number % 3 != 2:
            length = max(20, int(words * (0.2 + 1.6 * drawn[0])))
            texts.append(_zipf(drawn[4 : 4 + length]))
            continue
        place = int(drawn[0] * number)
        original = texts[place - (place % 3 == 2)]  # never a copy of a copy
        rate = REPLACED[int(drawn[1] * len(REPLACED))]
        length = len(original)
        replaced = _uniform(length, seed + 1) < rate
        texts.append(np.where(replaced, _zipf(drawn[4 : 4 + length]), original))
        similarity[number] = jaccard(texts[-1], original)
    return Planted([" ".join(f"w{word}" for word in text.tolist()) for text in texts], similarity)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of the sets of runs of words, exactly."""
    size = _SHAPE.ngram
    a, b = ({tuple(text[i : i + size].tolist()) for i in range(len(text) - size + 1)} for text in (one, other))
    return len(a & b) / len(a | b)


def _uniform(count: int, seed: int) -> np.ndarray:
    return mix(np.arange(count, dtype=np.uint64), seed) / 2.0**64


def _zipf(uniform: np.ndarray) -> np.ndarray:
    """Ranks whose frequency falls as one over the rank."""
    return (VOCABULARY**uniform).astype(np.int64)


def triaxis(texts: Sequence[str]) -> np.ndarray:
    """The step of a corpus, as a build runs it in one process."""
    documents = [Document(text, "planted", "planted", row) for row, text in enumerate(texts)]
    left, _ = Pipeline([{"step": "minhash"}]).clean(documents)
    keep = np.zeros(len(texts), dtype=bool)
    keep[[document.row for document in left]] = True
    return keep


def datasketch(hashed: str) -> Contender:
    """datasketch with that hash of a shingle: `sha1` is its default."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise RecipeError("bench data dedup: needs datasketch; run pip install 'triaxis[bench]'") from error
    import xxhash

    more: dict[str, Any] = {} if hashed == "sha1" else {"hashfunc": xxhash.xxh32_intdigest}

    def run(texts: Sequence[str]) -> np.ndarray:
        index = MinHashLSH(num_perm=_PERMUTATIONS, params=(_SHAPE.bands, _SHAPE.rows))
        keep = np.zeros(len(texts), dtype=bool)
        shingled = (_shingles(text) for text in texts)
        for number, found in enumerate(MinHash.generator(shingled, num_perm=_PERMUTATIONS, **more)):
            keep[number] = not index.query(found)
            index.insert(number, found)
        return keep

    return run


def _shingles(text: str) -> list[bytes]:
    words = _WORD.findall(text.lower())
    return [" ".join(words[i : i + _SHAPE.ngram]).encode() for i in range(max(1, len(words) - _SHAPE.ngram + 1))]


def quality(keep: np.ndarray, similarity: np.ndarray) -> dict[str, Any]:
    """Recall of copies, precision of what was dropped, and the share dropped of every grade beside what theory expects."""
    dropped = ~keep
    grades = []
    for low, high in GRADES:
        part = (similarity > low) & (similarity <= high)
        expected = [chance(s, _SHAPE.bands, _SHAPE.rows) for s in similarity[part]]
        grades.append(
            {
                "from": low,
                "to": high,
                "documents": int(part.sum()),
                "dropped": float(dropped[part].mean()) if part.any() else None,
                "theory": statistics.fmean(expected) if expected else None,
            }
        )
    copies = similarity >= COPY
    return {
        "recall": float(dropped[copies].mean()) if copies.any() else None,
        "precision": float((similarity[dropped] >= SURE).mean()) if dropped.any() else None,
        "dropped": int(dropped.sum()),
        "grades": grades,
    }


def run(documents: int, words: int, rounds: int) -> dict[str, Any]:
    """All figures. Contenders take turns, each round begun by another one; ratios are of one round."""
    if rounds < 2 or documents < 30 or words < 20:
        raise RecipeError(
            f"--rounds={rounds} --documents={documents} --words={words}: a comparison needs at least 2 rounds of 30 "
            "documents of 20 words"
        )
    contenders: dict[str, Contender] = {
        "triaxis": triaxis,
        "datasketch": datasketch("sha1"),
        "datasketch, xxhash": datasketch("xxhash"),
    }
    planted = plant(documents, words)
    triaxis(planted.texts[:100])  # tables of characters are made once a process
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, np.ndarray] = {}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.process_time()
            found[name] = contenders[name](planted.texts)
            seconds[name].append(time.process_time() - began)
    size = sum(map(len, planted.texts))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "documents": documents,
        "megabytes": size / 1e6,
        "rounds": rounds,
        "parameters": {"ngram": _SHAPE.ngram, "bands": _SHAPE.bands, "rows": _SHAPE.rows},
        "contenders": {
            name: {
                "documents_per_second": documents / statistics.median(seconds[name]),
                "megabytes_per_second": size / 1e6 / statistics.median(seconds[name]),
                **({} if name == "triaxis" else {"triaxis_is": _ratio(seconds["triaxis"], seconds[name])}),
                **quality(found[name], planted.similarity),
            }
            for name in names
        },
    }


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(
        [b / a for a, b in zip(ours, theirs, strict=True)], n=4, method="inclusive"
    )
    return {"median": middle, "low": low, "high": high}


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """Two tables."""
    console = console or open_console()
    shape = figures["parameters"]
    title = (
        f"{figures['documents']:,} documents, {figures['megabytes']:.1f} MB; {shape['bands']} x {shape['rows']} of "
        f"{shape['ngram']}-word shingles; medians of {figures['rounds']} rounds"
    )
    table = new_table(title, "", "docs/s", "MB/s", "Triaxis is", f"recall at {COPY}", f"precision at {SURE}")
    for name, told in figures["contenders"].items():
        ratio = told.get("triaxis_is")
        shown = f"{ratio['median']:.1f}× ({ratio['low']:.1f}–{ratio['high']:.1f})" if ratio else ""
        speed = f"{told['documents_per_second']:,.0f}", f"{told['megabytes_per_second']:.1f}"
        table.add_row(name, *speed, shown, _percent(told["recall"]), _percent(told["precision"]))
    console.print(table)
    table = new_table(
        "Dropped, by Jaccard similarity with the original", "", "documents", "theory", *figures["contenders"]
    )
    for place, (low, high) in enumerate(GRADES):
        rows = [told["grades"][place] for told in figures["contenders"].values()]
        shares = [_percent(row["dropped"]) for row in rows]
        table.add_row(f"{low} to {high}", f"{rows[0]['documents']:,}", _percent(rows[0]["theory"]), *shares)
    console.print(table)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench data dedup", description="Near-deduplication beside datasketch, on planted copies."
    )
    parser.add_argument("--documents", type=int, default=6000, help="documents in all (default 6000)")
    parser.add_argument("--words", type=int, default=400, help="words of a document, in the mean (default 400)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags = parser.parse_args(arguments)
    figures = run(flags.documents, flags.words, flags.rounds)
    show(figures)
    write_figures(figures, flags.json)
    return 0
