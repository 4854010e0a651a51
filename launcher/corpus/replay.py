"""`triaxis data replay` and `triaxis data audit`: what a run read, told again from its recipe alone, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data.audit import Usage, audit
from data.stream import hash_of, past_skips_one
from launcher.budget import Budget
from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.check import check_corpus, with_budget
from launcher.compose import build_recipe, compose_tree, load_recipe
from launcher.config import Recipe, RecipeError
from launcher.corpus.show import batches
from launcher.options import kinds_of, options_help, parse
from launcher.reading import Reading, longest_sequence
from launcher.slots import Slots
from launcher.terminal import open_console

REPLAY = "triaxis data replay RUN|recipe overrides [--steps a:b]"
AUDIT = "triaxis data audit RUN|recipe overrides [--until STEP]"


@dataclass(frozen=True)
class ReplayConfig:
    """Which steps to read again."""

    steps: str = ""
    """From the first step to the last, as `a:b`, both included and counted from 1; all that the run made, by default."""


@dataclass(frozen=True)
class AuditConfig:
    """How much of a run to count."""

    until: int = 0
    """The last step that counts; 0: all that the run made, or its recipe asks for."""


@dataclass(frozen=True)
class Made:
    """A step that a run made, or that its recipe asks for. hash: as logged, empty where nothing was."""

    step: int
    place: int
    rows: int
    length: int
    hash: str = ""

    @property
    def end(self) -> int:
        return self.place + self.rows * self.length


@dataclass(frozen=True)
class PhaseRead:
    """A phase and the steps of it, with a stream that stands where it began."""

    name: str
    recipe: Recipe
    reading: Reading
    steps: list[Made]


def replay_command(arguments: list[str]) -> int:
    """Print place and hash of every step asked for; 1 where one is not what the run logged."""
    console = open_console(soft_wrap=True)
    if "--help" in arguments:
        console.print(f"{REPLAY}\n\n{options_help(ReplayConfig)}")
        return 0
    places, values = parse(arguments, kinds_of(ReplayConfig), REPLAY)
    first, last = _range(ReplayConfig(**values).steps)
    console.print("step  phase      samples of the phase        tokens of the line          hash")
    different = 0
    for phase in read_phases(places, REPLAY):
        samples = 0
        for made in phase.steps:
            if first <= made.step <= last:
                different += _replay(console, phase, made, samples)
            samples += made.rows
    if different:
        console.print(f"{different} step(s) are not what the run logged")
    return 1 if different else 0


def _replay(console: Console, phase: PhaseRead, made: Made, samples: int) -> bool:
    """Print one step; whether its hash is another than the run's."""
    stream = phase.reading.stream
    rows = stream.rows(made.place + np.arange(made.rows, dtype=np.int64) * made.length, made.length)
    found = hash_of(rows.tokens)
    verdict = "" if not made.hash else "  as logged" if made.hash == found else f"  DIFFERS from {made.hash}"
    line = f"{past_skips_one(made.place, stream.skips)}:{past_skips_one(made.end - 1, stream.skips) + 1}"
    console.print(
        f"{made.step:<5} {phase.name:<10} {f'{samples}:{samples + made.rows}':<27} {line:<27} {found}{verdict}",
    )
    return bool(made.hash) and made.hash != found


def audit_command(arguments: list[str]) -> int:
    """Count how often each document was used, source by source; 1 where a token was used more often than its recipe says."""
    console = open_console(soft_wrap=True)
    if "--help" in arguments:
        console.print(f"{AUDIT}\n\n{options_help(AuditConfig)}")
        return 0
    places, values = parse(arguments, kinds_of(AuditConfig), AUDIT)
    until = AuditConfig(**values).until
    table = Table("phase", "source", "tokens", "share", "documents", "epochs", "each document used", box=None)
    faults = []
    for phase in read_phases(places, AUDIT):
        steps = [made for made in phase.steps if not until or made.step <= until]
        if not steps:
            continue
        found = audit(phase.reading.stream, phase.reading.names, steps[-1].end)
        total = sum(usage.tokens for usage in found)
        for usage in found:
            table.add_row(phase.name, *_row(usage, total))
            faults += [f"{phase.name}, {usage.name}: {fault}" for fault in usage.faults]
    console.print(table)
    for fault in faults:
        console.print(f"FAULT  {fault}")
    console.print(
        f"{len(faults)} faults"
        if faults
        else "in every epoch each token was predicted at most once, in whole epochs exactly once"
    )
    return 1 if faults else 0


def _row(usage: Usage, total: int) -> tuple[str, ...]:
    least, most = usage.rates()
    used = f"{least:.4g} times" if least == most else f"{least:.4g} to {most:.4g} times"
    epochs = f"{usage.tokens / usage.source.tokens:.3f} ({usage.whole} whole)"
    share = f"{100 * usage.tokens / total:.2f} %" if total else "0 %"
    return usage.name, f"{usage.tokens:,}", share, f"{usage.source.documents:,}", epochs, used


def read_phases(places: list[str], usage: str) -> Iterator[PhaseRead]:
    """The phases of a run's directory, with the steps that it logged; or of a recipe, with those that it asks for."""
    directory = Path(places[0]) if len(places) == 1 and "=" not in places[0] else None
    if not places or (directory is None and not all("=" in place or place.startswith("+") for place in places)):
        raise RecipeError(f"data: takes one run directory, or a recipe: `{usage}`")
    recipe = load_recipe(directory / "config.yaml") if directory else build_recipe(compose_tree(places))
    recipe = with_budget(check_corpus(recipe))
    logged = _logged(directory) if directory else None
    budget, longest, reading, before = Budget(recipe), longest_sequence(recipe), Reading(), 0
    for index, phase in enumerate(budget.phases):
        name = budget.name_of(index)
        reading.open(phase, budget.of_phase(index), longest, {"begin": reading.begin}, 0)
        steps = logged.get(name, []) if logged is not None else _asked(phase, reading, before, budget, index)
        yield PhaseRead(name, phase, reading, steps)
        if not steps:
            return
        before += len(steps)
        reading.end_phase(steps[-1].end)


def _asked(phase: Recipe, reading: Reading, before: int, budget: Budget, index: int) -> list[Made]:
    """The steps of a phase that its recipe asks for; `before`: of the phases before it."""
    count = min(Slots(phase.train).steps(0, budget.of_phase(index)), budget.total_steps - before)
    slots = (slot for slot, _ in islice(batches(phase, reading.stream), max(0, count)))
    return [Made(before + number, slot.place, slot.rows, slot.length) for number, slot in enumerate(slots, start=1)]


def _logged(directory: Path) -> dict[str, list[Made]]:
    """Steps by phase as metrics.jsonl has them."""
    found: dict[str, list[Made]] = {}
    try:
        with (directory / FILE_NAME).open(encoding="utf-8") as file:
            for line in file:
                record = parse_line(line)
                if record and record.get("kind") == "step":
                    rows = record["batch_tokens"] // record["sequence_length"]
                    made = Made(record["step"], record["place"], rows, record["sequence_length"], record["batch_hash"])
                    found.setdefault(record["phase"], []).append(made)
    except FileNotFoundError as error:
        raise RecipeError(f"{directory}: made no steps ({FILE_NAME} is missing); is this a run directory?") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise RecipeError(f"{directory / FILE_NAME}: of an older version, it lacks {error}") from error
    return found


def _range(text: str) -> tuple[int, int]:
    if not text:
        return 1, 1 << 62
    first, colon, last = text.partition(":")
    if not (first.isdigit() and (last.isdigit() or not colon)) or int(first) < 1:
        raise RecipeError(f"--steps={text}: must be `a:b`, the first and the last step, counted from 1")
    return int(first), int(last) if colon else int(first)
