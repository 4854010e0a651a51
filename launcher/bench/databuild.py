"""`triaxis bench data build`: text to packed tokens, beside `datasets.map` and megatron-core's way, in one run.

    triaxis bench data build [--text DIRECTORY] [--copies N] [--vocab N] [--rounds N] [--peers PYTHON] [--json FILE]

Every contender reads the same .jsonl file with the same tokenizer.json, in one process on one core, and takes turns with
the others. Triaxis does all of its build (reading, quarantine, hashes against copies, splits, shards with index, metadata
and checksums); `datasets.map` reads and encodes to Arrow files; megatron-core's way is the loop of its preprocess_data.py
over its IndexedDatasetBuilder. Speeds are tokens a second of processor time: what others do on the machine meanwhile
does not count. Peers run in the interpreter that --peers names (`pip install triaxis[bench]`); one that is not installed
there is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from data.order import key
from data.sources import Fields, Piece, Quarantined, list_files, read_piece
from data.vocabularies import train_bpe
from launcher.bench.show import write_figures
from launcher.config import RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console

DOCUMENT_BYTES = 3200
"""About 800 tokens, as documents of the web have."""

GOAL_RATIO, GOAL_SPEED = 1.5, 4e6

_HEAD = """
import json, os, resource, sys, time
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
source, vocabulary, place = sys.argv[1:]
eod = 0
def done(tokens, began):
    now = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(usage.ru_utime + usage.ru_stime for usage in now)
    print(json.dumps({"tokens": int(tokens), "seconds": used - began[0], "wall": time.perf_counter() - began[1]}))
def begin():
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime, time.perf_counter()
"""

_TRIAXIS = """
from data.build import build
from data.config import CorpusConfig, TokenizerConfig
import pyarrow.parquet, tiktoken, tokenizers
began = begin()
corpus = CorpusConfig("bench", (source,), place + "/corpus", workers=1)
manifest = build(corpus, TokenizerConfig("file", path=vocabulary))
done(sum(split.tokens for split in manifest.splits.values()), began)
"""

_DATASETS = """
import datasets, tokenizers
datasets.disable_progress_bars()
model = tokenizers.Tokenizer.from_file(vocabulary)
began = begin()
def encode(rows):
    return {"input_ids": [found.ids + [eod] for found in model.encode_batch_fast(rows["text"], add_special_tokens=False)]}
found = datasets.load_dataset("json", data_files=source, split="train", cache_dir=place)
found = found.map(encode, batched=True, remove_columns=found.column_names)
from pyarrow.compute import list_value_length, sum as total
done(sum(total(list_value_length(part)).as_py() for part in found.data["input_ids"].chunks), began)
"""

_MEGATRON = """
import numpy, tokenizers, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
model = tokenizers.Tokenizer.from_file(vocabulary)
began = begin()
builder, total = IndexedDatasetBuilder(place + "/corpus.bin", dtype=numpy.uint16), 0
with open(source, encoding="utf-8") as lines:
    for line in lines:
        ids = model.encode(json.loads(line)["text"], add_special_tokens=False).ids + [eod]
        builder.add_document(torch.IntTensor(ids), [len(ids)])
        total += len(ids)
builder.finalize(place + "/corpus.idx")
done(total, began)
"""

OURS = "Triaxis"
PEERS = {
    "datasets.map": ("datasets", _DATASETS),
    "megatron-core": ("megatron.core.datasets.indexed_dataset", _MEGATRON),
}


def run(*, text: str, copies: int, vocab: int, rounds: int, python: str) -> dict[str, Any]:
    """All figures. text: a source of corpora; copies: how often it is taken, each time varied; python: of the peers."""
    if rounds < 2 or copies < 1:
        raise RecipeError(f"--rounds={rounds} --copies={copies}: a comparison needs at least 2 rounds of 1 copy")
    absent = [name for name, (module, _) in PEERS.items() if not _imports(python, module)]
    with tempfile.TemporaryDirectory(prefix="triaxis-bench-") as place:
        source, vocabulary = Path(place) / "text.jsonl", Path(place) / "tokenizer.json"
        documents = list(_documents(text))
        vocabulary.write_text(train_bpe(documents, vocab), encoding="utf-8")
        size = _write(source, documents, copies)
        scripts = {OURS: (sys.executable, _TRIAXIS)}
        scripts |= {name: (python, script) for name, (_, script) in PEERS.items() if name not in absent}
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in scripts}
        for number in range(rounds):
            order = list(scripts.items())
            for name, (interpreter, script) in order[number % len(order) :] + order[: number % len(order)]:
                turns[name].append(_turn(interpreter, script, source, vocabulary))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "bytes": size,
        "documents": len(documents) * copies,
        "vocabulary": vocab,
        "rounds": rounds,
        "goals": {"ratio": GOAL_RATIO, "speed": GOAL_SPEED},
        "absent": absent,
        "turns": turns,
        "speed": {
            name: statistics.median(turn["tokens"] / turn["seconds"] for turn in own) for name, own in turns.items()
        },
        "ratios": {name: _ratio(turns[OURS], own) for name, own in turns.items() if name != OURS},
    }


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """How many times as fast ours is: the median over the rounds."""
    speeds = [[turn["tokens"] / turn["seconds"] for turn in turns] for turns in (ours, theirs)]
    return statistics.median(one / other for one, other in zip(*speeds, strict=True))


def _imports(python: str, module: str) -> bool:
    found = subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True)
    return found.returncode == 0


def _documents(text: str) -> Iterator[str]:
    """Documents of about DOCUMENT_BYTES, cut at line ends."""
    for file in list_files((text,)):
        for found in read_piece(Piece(file), Fields()):
            pending: list[str] = []
            size = 0
            for line in [] if isinstance(found, Quarantined) else found.text.splitlines(keepends=True):
                pending.append(line)
                size += len(line)
                if size >= DOCUMENT_BYTES:
                    yield "".join(pending)
                    pending, size = [], 0
            if "".join(pending).strip():
                yield "".join(pending)


def _write(path: Path, documents: list[str], copies: int) -> int:
    """The documents as .jsonl, each copy after the first with one in 25 of its words another one; returns bytes of
    text. Copies as they are would be dropped by Triaxis, and be words that were all seen before."""
    size = 0
    with path.open("w", encoding="utf-8") as out:
        for copy in range(copies):

            def varied(match: re.Match[str], copy: int = copy) -> str:
                word = match[0]
                drawn = key("bench", copy, word)
                at = 1 + drawn % (len(word) - 1)
                return word[at:] + word[:at] if drawn // 64 % 25 == 0 else word

            for number, document in enumerate(documents):
                text = document if copy == 0 else re.sub(r"[A-Za-z]{4,}", varied, document)
                size += len(text.encode())
                out.write(json.dumps({"text": text, "number": number, "copy": copy}, ensure_ascii=False) + "\n")
    return size


def _turn(python: str, script: str, source: Path, vocabulary: Path) -> dict[str, float]:
    """One turn of a contender: tokens, seconds of processor time and of the clock."""
    single = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    paths = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    with tempfile.TemporaryDirectory(prefix="triaxis-bench-", dir=source.parent) as place:
        command = [python, "-c", _HEAD + script, str(source), str(vocabulary), place]
        environment_ = {**os.environ, **single, **quiet, **paths}
        found = subprocess.run(command, check=False, capture_output=True, text=True, env=environment_)
    if found.returncode:
        raise RecipeError(f"bench data build: a contender failed:\n{found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The table; a goal that is missed is marked, not an error."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{machine['cpu']}, load {figures['load_before']:.1f} before; {figures['rounds']} rounds of "
        f"{figures['bytes'] / 1e6:,.0f} MB in {figures['documents']:,} documents, {figures['vocabulary']:,} ids",
    )
    table = new_table("Text to packed tokens, one core: medians", "", "M tokens/s", "MB/s", "Triaxis is")
    tokens = figures["turns"][OURS][0]["tokens"]
    for name, speed in figures["speed"].items():
        ratio = figures["ratios"].get(name)
        rate = speed / tokens * figures["bytes"] / 1e6
        table.add_row(name, f"{speed / 1e6:.2f}", f"{rate:.1f}", f"{ratio:.2f} ×" if ratio else "")
    console.print(table)
    for name in figures["absent"]:
        console.print(f"{name}: not installed in the interpreter of --peers, left out")
    speed, goals = figures["speed"][OURS], figures["goals"]
    said = "reached" if speed >= goals["speed"] else "missed"
    console.print(f"goal of {goals['speed'] / 1e6:.0f} M tokens/s a core: {said}")
    if figures["ratios"]:
        least = min(figures["ratios"].values())
        said = "reached" if least >= goals["ratio"] else "missed"
        console.print(f"goal of {goals['ratio']} × the fastest other: {said} ({least:.2f} ×)")


def main(arguments: list[str]) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="triaxis bench data build", description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="stdlib", help="what corpus.sources takes: a path, a glob, or stdlib")
    parser.add_argument("--copies", type=int, default=4, help="how often the text is taken, each time varied")
    parser.add_argument("--vocab", type=int, default=32_768, help="ids of the byte-level BPE that is trained on it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has datasets and megatron-core")
    parser.add_argument("--json", help="write the figures to this file; - for the screen")
    given = parser.parse_args(arguments)
    figures = run(text=given.text, copies=given.copies, vocab=given.vocab, rounds=given.rounds, python=given.peers)
    if given.json != "-":
        show(figures)
    write_figures(figures, given.json)
    return 0
