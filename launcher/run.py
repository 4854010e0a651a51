"""A run on one rank: its directory, counters and callbacks, from the first step of this process to the last."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.stream import Stream
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from launcher.batches import Counters
from launcher.budget import Budget
from launcher.callbacks.base import Callback, RunView, ValidationRecord
from launcher.callbacks.formats import FormatsFile
from launcher.callbacks.metrics import MetricsFile
from launcher.callbacks.progress import Progress
from launcher.callbacks.routing import RoutingFile
from launcher.callbacks.tensorboard import TensorBoardTracker
from launcher.callbacks.wandb import WandbTracker
from launcher.config import Recipe
from launcher.formats import FormatsWatch
from launcher.guard import Guard
from launcher.machine import environment, peak_flops
from launcher.plan.memory import Work, fullest
from launcher.reading import Reading, epoch_tokens, longest_sequence, validation_streams
from launcher.saving import Checkpoints
from launcher.schema import to_plain
from launcher.workers import StopRequest
from models.config import count_parameters
from models.parameters import declaration
from parallel.check import choose_engine
from parallel.config import describe_sharding
from parallel.engines.base import Engine, resolve_precision
from parallel.mesh import Mesh

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class Run:
    """State and surroundings of a run; a context manager that ends callbacks and saves in flight."""

    def __init__(self, recipe: Recipe, directory: Path, stop: StopRequest) -> None:
        self.recipe, self.directory, self.stop = recipe, directory, stop
        self.budget = Budget(recipe)
        self.counters = Counters()
        self.callbacks: list[Callback] = []
        self.mesh: Mesh
        self.checkpoints: Checkpoints | None = None
        self.reading = Reading()
        self.watch = FormatsWatch()
        self.guard = Guard(recipe, directory, self.event)
        self.pace = self.guard.pace
        self.validation_streams: dict[str, Stream] = {}
        self._outcome = "failed"
        self._facts: dict[str, Any] = {}
        self._early: list[tuple[str, str]] | None = []  # events before callbacks start

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self.checkpoints is not None:
            self.checkpoints.close(None if error is None else 5.0)
        self.guard.close()
        self.tell("on_end", self._outcome)

    # Beginning

    def join(self, mesh: Mesh, phase: Recipe) -> bool:
        """The mesh of a phase stands; at the first call, find what the run begins with.

        False where what was found belongs to another phase.
        """
        self.mesh = mesh
        self.pace.new_phase()
        if self.checkpoints is not None:
            self.checkpoints.mesh = mesh
            return True
        index = self.counters.phase
        self.guard.stand(mesh, lambda: self.counters.step)
        self.checkpoints = Checkpoints(self.recipe, self.directory, mesh, self.event)
        self._take_counters()
        self.tokenizer: Tokenizer = load_corpus_tokenizer(phase.data.home, phase.data.cache)
        return self.counters.phase == index

    def begin_phase(self, phase: Recipe, engine: Engine) -> bool:
        """Fill the engine from the checkpoint that was found, and open the stream where it was left.

        False where that checkpoint was corrupt and the one before it belongs to another phase.
        """
        assert self.checkpoints is not None
        index = self.counters.phase
        self.event("plan", self._plan(phase, engine))
        state = self.checkpoints.fill(engine)
        if self.checkpoints.fell_back:
            self._take_counters()
            if self.counters.phase != index:
                return False
        budget = self.budget.of_phase(index)
        self.reading.open(
            phase, budget, longest_sequence(self.recipe), state.get("data", {}), self.counters.phase_tokens
        )
        self.validation_streams = validation_streams(phase)
        self._start_callbacks()
        if len(self.budget.phases) > 1:
            self.event("phase", f"{self.phase_name}: {describe_phase(phase)}")
        return True

    def _take_counters(self) -> None:
        """Stand where the found checkpoint stands; a recipe that lost phases since goes on in its last."""
        assert self.checkpoints is not None
        found = self.checkpoints.counters
        self.counters = replace(found, phase=min(found.phase, len(self.budget.phases) - 1))

    def _start_callbacks(self) -> None:
        """Once it is sure where the run begins: a checkpoint may have been found corrupt and an older one taken."""
        early, self._early = self._early, None
        if early is None or self.mesh.rank != 0:
            return
        config = self.recipe.tracker
        self.callbacks = [MetricsFile()]
        if "TRIAXIS_QUIET" not in os.environ:  # set for trials of layouts
            self.callbacks.append(Progress(every_steps=config.every_steps))
        if self.recipe.model.moe.experts:
            self.callbacks.append(RoutingFile(config.routing_every_steps))
        if config.formats_every_steps:
            self.callbacks.append(FormatsFile())
        if config.wandb != "off":
            self.callbacks.append(WandbTracker(config.wandb, config.project, config.entity or None))
        if config.tensorboard:
            self.callbacks.append(TensorBoardTracker())
        baselines = next(iter(self.validation_streams.values())).sources[0].corpus.manifest.baselines
        counted = {"unigram": baselines.unigram, "bigram": baselines.bigram} if baselines else {}
        self._facts = {**environment(), "baselines": counted, "mesh": self.mesh.table()}
        (self.directory / "environment.json").write_text(json.dumps(self._facts, indent=1))
        view = RunView(
            name=self.recipe.run.name,
            directory=self.directory,
            config=to_plain(self.recipe),
            rank=self.mesh.rank,
            world_size=self.mesh.world_size,
            start_step=self.counters.step,
            total_steps=self.budget.total_steps,
            total_tokens=self.budget.total_tokens,
            parameters=count_parameters(self.recipe.model),
            facts=self._facts,
        )
        self.tell("on_start", view)
        for kind, message in early:
            self.event(kind, message)

    def _plan(self, phase: Recipe, engine: Engine) -> str:
        """The layout, what the fullest rank holds, and the budget, for people."""
        declared = [declaration(parameter) for _, parameter in engine.named_parameters()]
        held = sum(found.local_numel for found in declared)
        most, train = int(self.mesh.largest(held)), phase.train
        config, _ = choose_engine(self.mesh.config, self.mesh.world_size)
        precision = resolve_precision(phase.precision, self.mesh.device).name
        _, memory = fullest(Work.of(phase, precision, self.mesh.device.type), config, train.micro_batch)
        sharding = describe_sharding(config, self.mesh.world_size)
        return "\n".join(
            (
                self.mesh.table(),
                f"engine {config.engine}{sharding}, {precision}",
                f"parameters {count_parameters(phase.model):,}, at most {most:,} on a rank",
                memory.line(),
                f"a step has {train.batch_tokens:,} tokens: {train.batch_sequences // train.micro_batch} micro-batches of "
                f"{train.micro_batch} sequences of {train.sequence_length}",
                f"budget {self.budget.total_tokens:,} tokens in {self.budget.total_steps:,} steps",
            )
        )

    # Telling

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback; one that fails is reported once and switched off."""
        for callback in list(self.callbacks):
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:
                if isinstance(callback, MetricsFile):
                    raise
                self.callbacks.remove(callback)
                log.exception("callback failed")
                self.event("warning", f"{type(callback).__name__} is off after an error: {error}")

    def event(self, kind: str, message: str) -> None:
        """Tell callbacks of something worth knowing; what comes before their start is kept for it."""
        if self._early is not None:
            self._early.append((kind, message))
            return
        self.tell("on_event", self.counters.step, kind, message)

    @property
    def phase_name(self) -> str:
        """Name of the current phase."""
        return self.budget.name_of(self.counters.phase)

    def peak_flops(self, phase: Recipe) -> float | None:
        """Peak FLOP/s of all devices together, where it is known."""
        peak = peak_flops(resolve_precision(phase.precision, self.mesh.device).name)
        return peak * self.mesh.world_size if peak else None

    # Saving and ending

    def agree(self, batch_tokens: int) -> tuple[bool, bool]:
        """(stop, save) as all ranks see them: any rank's signal or end of job stops all, counters and rank 0's clock save."""
        assert self.checkpoints is not None
        config, tokens = self.recipe.checkpoint, self.counters.tokens
        due = passed(tokens, batch_tokens, config.every_tokens)
        if config.every_epoch and passed(self.counters.phase_tokens, batch_tokens, epoch_tokens(self.reading.stream)):
            self.checkpoints.keep(self.counters.step)
            due = True
        minutes = self.checkpoints.minutes_since_save
        clock = self.mesh.rank == 0 and config.every_minutes > 0 and minutes >= config.every_minutes
        train = self.recipe.train
        looks = any(passed(tokens, batch_tokens, e) for e in (train.validate_every_tokens, train.sample_every_tokens))
        stop = self.stop.wanted or self.guard.end_is_near(self.checkpoints.save_seconds, looks=looks)
        flags = torch.tensor([float(stop), float(clock), self.guard.limit()], device=self.mesh.device)
        if self.mesh.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self.checkpoints.tell_saves()
        stops, by_clock, limit = flags.tolist()
        self.guard.agreed(limit)
        return bool(stops), due or bool(by_clock)

    def save(self, engine: Engine) -> None:
        """Write a checkpoint of now."""
        assert self.checkpoints is not None
        self.pace.now("saving")
        self.checkpoints.save(engine, self.counters, self.reading.state())

    def interrupted(self) -> None:
        """A signal asked to stop and state is being saved: wait for the commit."""
        assert self.checkpoints is not None
        self.pace.now("saving")
        self.checkpoints.settle(self.counters)
        self._outcome = "interrupted"
        self.event("interrupted", "saved; the same command goes on from here")

    def end_phase(self, engine: Engine) -> None:
        """The border between phases is a checkpoint: the next phase's engine is filled from it."""
        assert self.checkpoints is not None
        self.reading.end_phase(self.counters.phase_tokens)
        self.counters = replace(self.counters, phase=self.counters.phase + 1, phase_tokens=0, skipped_in_a_row=0)
        self.save(engine)
        self.checkpoints.settle(self.counters)

    def finished(self, record: ValidationRecord, samples: list[tuple[str, str]]) -> None:
        """The budget is spent: wait for the last commit and write the summary."""
        assert self.checkpoints is not None
        self.pace.now("saving")
        self.checkpoints.settle(self.counters)
        self._outcome = "finished"
        if self.mesh.rank != 0:
            return
        summary = {
            **self._facts,
            "parameters": count_parameters(self.recipe.model),
            "validation_loss": record.validation_loss,
            "bits_per_byte": record.bits_per_byte,
            "tokens": self.counters.tokens,
            "skipped_steps": self.counters.skipped,
            "samples": [{"prompt": prompt, "text": text} for prompt, text in samples],
        }
        partial = self.directory / "summary.json.partial"
        partial.write_text(json.dumps(summary, indent=1))
        partial.replace(self.directory / "summary.json")


def passed(tokens: int, batch: int, every: int) -> bool:
    """Whether the last batch went past a multiple of `every` tokens; never where every is 0."""
    return every > 0 and tokens // every > (tokens - batch) // every


def describe_phase(phase: Recipe) -> str:
    """A phase in a few words."""
    train = phase.train
    return f"sequences of {train.sequence_length}, batches of {train.batch_tokens} tokens"
