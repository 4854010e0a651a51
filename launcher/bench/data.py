"""`triaxis bench data`: the stream beside the loaders that people use, over the same documents, in one run.

    triaxis bench data [--peers PYTHON] [--only NAME…] [--tokens N] [--rounds N] [--json FILE] [--png FILE] [experiment=…]

Every loader is a process with one thread that gives batches a model can take, and all take turns. Peers run in the interpreter
that --peers names (a virtual environment of their own with `pip install -e .[peers]`, since their pins are not Triaxis's); one
that is not installed there is left out and said to be. What is written for them goes to a scratch directory and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launcher.bench.arena import Arena
from launcher.bench.data_arena import make, make_many
from launcher.bench.data_loader import LOADER, OURS
from launcher.bench.data_peers import PEERS
from launcher.bench.data_rows import TOKENS
from launcher.bench.data_show import draw, show
from launcher.bench.flags import parse
from launcher.bench.measure import WARM_UP
from launcher.bench.show import write_figures
from launcher.bench.turns import ROOT, BenchError, Contender, Turn
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.submit import build_corpus

GOALS = {"Triaxis": 100e6, "Triaxis, a document a member": 50e6}  # tokens/s
SAMPLES = (0, 10**6, 10**10)
MANY_SHARDS = 10_000
SEED = 1


def run(
    recipe: Recipe, *, python: str, only: list[str], tokens: int, rounds: int, batches: int, long: int, keep: str = ""
) -> dict[str, Any]:
    """All figures. python: the peers' interpreter. only: their names, all if empty. batches: of a turn; long: of the run
    that memory is watched over; keep: the corpus of an earlier bench, or where to leave this one's."""
    if rounds < 2 or batches < 2:
        raise RecipeError(f"--rounds={rounds} --batches={batches}: a comparison needs at least 2 rounds of 2 batches")
    waits = waiting(recipe, batches)
    with ExitStack() as stack:
        place = Path(keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="triaxis-bench-"))).absolute()
        disk = _written(place, tokens)
        installed, absent = _installed(python, only)
        bench = _Bench(place, python, stack)
        sizes = {name: bench.write(name) for name in installed}
        return {
            "date": time.strftime("%Y-%m-%d"),
            "environment": environment(),
            "load_before": os.getloadavg()[0],
            "tokens": tokens,
            "batch": TOKENS,
            "rounds": rounds,
            "batches": batches,
            "long": long,
            "goals": GOALS,
            "versions": installed,
            "absent": absent,
            "disk": disk | {name: size / 2 / tokens for name, size in sizes.items() if size},
            "loaders": bench.race([*list(OURS)[:2], *installed], rounds, batches, long),
            "resume": bench.resume(max(1, rounds // 2)),
            "waiting": waits,
        }


def _written(place: Path, tokens: int) -> dict[str, float]:
    """The corpus at a place, made if it is not there."""
    place.mkdir(parents=True, exist_ok=True)
    about = place / "disk.json"
    if not about.exists():
        disk = make(place, tokens, SEED)
        make_many(place, MANY_SHARDS)
        about.write_text(json.dumps({"tokens": tokens, "disk": disk}))
    found = json.loads(about.read_text())
    if found["tokens"] != tokens:
        raise RecipeError(
            f"--keep {place}: holds {found['tokens']} tokens, not --tokens {tokens}; name another directory"
        )
    return found["disk"]


def _installed(python: str, only: list[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of the peers that the interpreter has, and the names of the others."""
    unknown = [name for name in only if name not in PEERS]
    if unknown:
        raise RecipeError(f"--only {unknown[0]!r}: no such loader; choose among {', '.join(map(repr, PEERS))}")
    wanted = {name: PEERS[name][0] for name in only or PEERS}
    code = f"""import importlib.metadata as m, json
def v(p):
    try: return m.version(p)
    except m.PackageNotFoundError: return ""
print(json.dumps({{n: v(p) for n, p in {wanted!r}.items()}}))"""
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RecipeError(
            f"--peers {python}: no Python interpreter ({error}); name the python of a virtual environment"
        ) from error
    versions = json.loads(done.stdout)
    return {name: found for name, found in versions.items() if found}, [name for name in wanted if not versions[name]]


class _Bench:
    """The processes of one bench."""

    def __init__(self, place: Path, python: str, stack: ExitStack) -> None:
        self._place, self._python, self._stack = place, python, stack

    def write(self, name: str) -> int:
        """Let a peer write its own form; bytes of what it wrote, links to what was there not counted."""
        place = self._directory(name)
        if not place.exists():
            place.mkdir()
            command = [self._python, "-W", "ignore", "-m", "launcher.bench.data_loader"]
            environment = self._environment(name, write=True) | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(place)
                raise BenchError(f"{name}: could not write its form\n{done.stderr[-2000:]}")
        files = [path for path in place.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files if path.stat().st_nlink == 1 and path.suffix != ".npy")

    def race(self, names: list[str], rounds: int, batches: int, long: int) -> dict[str, Any]:
        """Half of the long turn of each, which touches most of the corpus for the first time; turns of all, round by round,
        each beginning with another; then the other half, for its memory."""
        contenders: dict[str, Contender] = {}
        ready: dict[str, Turn] = {}
        for name in names:  # one after another, so that none waits for another's imports
            contenders[name] = self._start(name)
            ready[name] = contenders[name].ready()
            contenders[name].turn(long - long // 2)
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for number in range(rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                turns[name].append(contenders[name].turn(WARM_UP + batches))
        figures = {name: _figures(ready[name], turns[name], turns[names[0]]) for name in names}
        for name, contender in contenders.items():
            before = turns[name][-1].memory["own"]
            after = contender.turn(max(1, long // 2)).memory
            figures[name] |= {"growth": after["own"] - before, "peak": after["peak"], "own": after["own"]}
            contender.close()
        return figures

    def resume(self, rounds: int) -> dict[str, Any]:
        """Seconds to the first batch of fresh processes that begin at a sample, imports left out."""
        found: dict[int, list[float]] = {sample: [] for sample in SAMPLES}
        own = 0
        for _ in range(rounds):
            for sample in SAMPLES:
                contender = self._start("Triaxis, many shards", sample)
                turn = contender.ready()
                found[sample].append(turn.startup["opened"])
                own = turn.memory["own"]
                contender.close()
        seconds = {str(sample): statistics.median(times) for sample, times in found.items()}
        return {"shards": MANY_SHARDS, "seconds": seconds, "own": own}

    def _start(self, name: str, sample: int = 0) -> Contender:
        python = sys.executable if name in OURS else self._python
        log = self._place / f"{name.replace(' ', '_')}.log"
        contender = Contender("launcher.bench.data_loader", self._environment(name, sample=sample), log, python)
        self._stack.callback(contender.close)
        return contender

    def _environment(self, name: str, write: bool = False, sample: int = 0) -> dict[str, str]:
        task = {"name": name, "place": str(self._directory(name)), "seed": SEED, "write": write, "sample": sample}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return {LOADER: json.dumps(task), **threads, "PYTHONWARNINGS": "ignore"}

    def _directory(self, name: str) -> Path:
        return self._place / (PEERS[name][1].__name__ if name in PEERS else "ours")


def _figures(ready: Turn, turns: list[Turn], ours: list[Turn]) -> dict[str, Any]:
    """Speed by the clock and by processor time, against ours in the same round."""
    clock = [TOKENS * len(turn.seconds) / sum(turn.seconds) for turn in turns]
    processor = [TOKENS * len(turn.seconds) / turn.processor for turn in turns]
    ratios = [one.processor / other.processor for one, other in zip(turns, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "tokens_per_second": statistics.median(clock),
        "tokens_per_core_second": statistics.median(processor),
        "ours_is": {"median": middle, "low": low, "high": high},
        "first_batch": ready.startup["opened"],
        "from_command": ready.startup["from command"],
    }


def waiting(recipe: Recipe, steps: int) -> dict[str, float]:
    """Share of a training step that a real run waits for data: median over steps after the first."""
    build_corpus(recipe)
    with Arena(recipe, 1 + steps) as arena:
        contender = arena.start("triaxis")
        contender.ready()
        contender.turn(min(steps, 20))
        contender.close()
        lines = (arena.directory / "triaxis" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "data_seconds" in record][1:]
    shares = [record["data_seconds"] / record["step_seconds"] for record in records]
    return {"median": statistics.median(shares), "worst": max(shares), "steps": len(shares)}


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe whose waiting is measured."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench data", description="The stream beside other loaders, in one run."
    )
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one of the peers; may be repeated")
    parser.add_argument("--tokens", type=int, default=64_000_000, help="of the corpus (default 64 million)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each loader (default 7)")
    parser.add_argument(
        "--batches", type=int, default=100, help=f"counted ones of a turn, of {TOKENS:,} tokens (default 100)"
    )
    parser.add_argument("--long", type=int, default=5000, help="batches over which memory is watched (default 5000)")
    parser.add_argument("--keep", default="", metavar="DIR", help="where the corpus is left, and found the next time")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    parser.add_argument("--png", metavar="FILE", help="draw the speeds there")
    flags, overrides = parse(parser, arguments)
    figures = run(
        build_recipe(compose_tree(overrides)),
        python=flags.peers,
        only=flags.only,
        tokens=flags.tokens,
        rounds=flags.rounds,
        batches=flags.batches,
        long=flags.long,
        keep=flags.keep,
    )
    show(figures)
    write_figures(figures, flags.json)
    if flags.png:
        Path(flags.png).write_bytes(draw(figures))
        print(flags.png)
    return 0
