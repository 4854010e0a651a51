"""A run on one rank: its directory, counters, callbacks and checkpoints, from the first attempt to the last."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.stream import Stream
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from launcher.batches import Counters
from launcher.callbacks.base import Callback, RunView
from launcher.callbacks.metrics import MetricsFile
from launcher.callbacks.progress import Progress
from launcher.callbacks.tensorboard import TensorBoardTracker
from launcher.callbacks.wandb import WandbTracker
from launcher.check import check_same_run, flatten, phases_of
from launcher.config import Recipe, RecipeError, RunConfig
from launcher.machine import environment, peak_flops
from launcher.optim.schedule import Schedule
from launcher.plan.memory import estimate
from launcher.schema import to_plain
from launcher.workers import StopRequest
from models.config import count_parameters
from models.parameters import declaration
from parallel.check import choose_engine
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import Retention, Store, resolve
from parallel.checkpoint.writer import SaveEvent, Saver
from parallel.engines.base import Engine, resolve_precision
from parallel.mesh import Mesh

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class Run:
    """State and surroundings of a run; a context manager that ends callbacks and saves in flight."""

    def __init__(self, recipe: Recipe, directory: Path, stop: StopRequest) -> None:
        self.recipe, self.directory, self.stop = recipe, directory, stop
        self.counters = Counters()
        self.callbacks: list[Callback] = []
        self.out_of_steps = False
        self.mesh: Mesh
        self._store: Store | None = None
        self._saver: Saver | None = None
        self._found: Path | None = None  # the checkpoint that the next engine is filled from
        self._weights_only = False
        self._outcome = "failed"
        self._last_save = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self._saver is not None:
            self._saver.close(None if error is None else 5.0)
            self._tell_saves()
        self.tell("on_end", self._outcome)

    # Beginning ------------------------------------------------------------------------------------------------------

    def join(self, mesh: Mesh, phase: Recipe) -> None:
        """The mesh of a phase stands: find what the run begins with, at the first call."""
        self.mesh = mesh
        if self._store is not None:
            return
        self._open_store()
        self._find_state()
        self.tokenizer: Tokenizer = load_corpus_tokenizer(phase.data.path)
        self.validation_stream = Stream(phase.data.path, "validation", self.recipe.seed, ordered=True)
        self._start_callbacks()

    def begin_phase(self, index: int, phase: Recipe, engine: Engine, stream: Stream) -> None:
        """Fill the engine from the checkpoint that was found, and take up the stream where it was left."""
        if self.counters.phase != index:
            self.counters = replace(self.counters, phase=index, phase_tokens=0)
        state = self._fill(engine)
        streams = dict(state.get("streams", {}))
        self.event("plan", self._plan(phase, engine))
        self._streams = streams
        self._stream_key = stream.fingerprint
        self.counters = replace(self.counters, stream_tokens=int(streams.get(stream.fingerprint, 0)))
        if len(phases_of(self.recipe)) > 1:
            self.event("phase", f"{self.phase_name(phase)}: {describe_phase(phase)}")
        self._check_seen_stream(streams, stream)

    def _check_seen_stream(self, streams: dict[str, int], stream: Stream) -> None:
        if streams and stream.fingerprint not in streams and self.counters.phase_tokens:
            raise RecipeError(
                f"data.path={stream.path}: is not the corpus (or order) that this phase was reading; build it again with the "
                "same options, set data.span_tokens back, or give the run another run.name"
            )

    def _open_store(self) -> None:
        directory = self.directory / "checkpoints"
        attempt = [Store(directory).open_attempt() if self.mesh.rank == 0 else None]
        if self.mesh.world_size > 1:
            dist.broadcast_object_list(attempt, src=0, device=self.mesh.device)
        self._store = Store(directory, self.mesh.rank, self.mesh.world_size, attempt[0])
        config = self.recipe.checkpoint
        self._saver = Saver(
            self._store,
            retention=Retention(config.keep_last, config.keep_every_steps or None),
            asynchronous=config.asynchronous,
        )

    def _find_state(self) -> None:
        """The newest whole checkpoint of this run, else `run.init_from`, else nothing; rank 0 looks, all agree."""
        told: list[Any] = [None]
        if self.mesh.rank == 0:
            try:
                told = [self._look()]
            except (CheckpointError, RecipeError) as error:
                told = [error]
        if self.mesh.world_size > 1:
            dist.broadcast_object_list(told, src=0, device=self.mesh.device)
        if isinstance(told[0], Exception):
            raise told[0]
        if told[0] is None:
            return
        path, weights_only = told[0]
        self._found, self._weights_only = path, weights_only
        if not weights_only:
            self.counters = Counters(**read_state(path)["counters"])

    def _look(self) -> tuple[Path, bool] | None:
        assert self._store is not None
        found = self._store.latest(fall_back=self.recipe.checkpoint.fall_back)
        if found is not None:
            check_same_run(self.recipe, read_state(found.path)["recipe"], str(found.path))
            return found.path, False
        begin: RunConfig = self.recipe.run
        if begin.init_from:
            return resolve(Path(begin.init_from)), begin.init_what == "weights"
        return None

    def _fill(self, engine: Engine) -> dict[str, Any]:
        """Load the found checkpoint into the engine; a corrupt one is set aside and the one before it used, if allowed."""
        while self._found is not None:
            trouble: CheckpointCorrupt | None = None
            state: dict[str, Any] = {}
            try:
                pieces = engine.pieces(for_saving=False, weights_only=self._weights_only)
                state = load(self._found, pieces, verify=self.recipe.checkpoint.verify, rank=self.mesh.rank)
            except CheckpointCorrupt as error:
                trouble = error
            if not self.mesh.any_rank(trouble is not None):
                engine.loaded({} if self._weights_only else state["engine"])
                self.event("resume" if not self._weights_only else "init", f"from {self._found}")
                return {} if self._weights_only else state
            self._set_aside(trouble)
        return {}

    def _set_aside(self, trouble: CheckpointCorrupt | None) -> None:
        assert self._store is not None and self._found is not None
        text = str(trouble) if trouble else f"{self._found}: another rank found it corrupt"
        if not self.recipe.checkpoint.fall_back or self._found.parent != self._store.directory:
            raise CheckpointError(f"{text}; set checkpoint.fall_back=true to use the one before it")
        if self.mesh.rank == 0:
            self._store.quarantine(int(self._found.name.split("_")[1]))
        self.event("warning", f"{text}; using the checkpoint before it")
        self.mesh.barrier()
        self._found = None
        self.counters = Counters()
        self._find_state()

    def _plan(self, phase: Recipe, engine: Engine) -> str:
        """The layout, what the fullest rank holds, and the budget, for people."""
        held = sum(declaration(parameter).local_numel for _, parameter in engine.named_parameters())
        most = int(self.mesh.largest(held))
        config, _ = choose_engine(self.mesh.config, self.mesh.world_size)
        precision = resolve_precision(phase.precision, self.mesh.device).name
        memory = estimate(most, phase.model, config, precision, phase.train.micro_batch, phase.train.sequence_length)
        train = phase.train
        return "\n".join(
            (
                self.mesh.table(),
                f"engine {config.engine}, ZeRO {config.zero_stage}, {precision}"
                if config.engine == "deepspeed"
                else f"engine {config.engine}, {precision}",
                f"parameters {count_parameters(phase.model):,}, at most {most:,} on a rank",
                memory.line(),
                f"a step has {train.batch_tokens:,} tokens in {train.batch_sequences // train.micro_batch} micro-batches of "
                f"{train.micro_batch} sequences of {train.sequence_length}; budget {self.total_tokens:,} tokens, "
                f"{self.total_steps:,} steps",
            )
        )

    # Telling --------------------------------------------------------------------------------------------------------

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
        """Tell callbacks of something worth knowing."""
        self.tell("on_event", self.counters.step, kind, message)

    def _start_callbacks(self) -> None:
        config = self.recipe.tracker
        if self.mesh.rank != 0:
            return
        self.callbacks = [MetricsFile()]
        if "TRIAXIS_QUIET" not in os.environ:  # set for trials of layouts
            self.callbacks.append(Progress(every_steps=config.every_steps))
        if config.wandb != "off":
            self.callbacks.append(WandbTracker(config.wandb, config.project, config.entity or None))
        if config.tensorboard:
            self.callbacks.append(TensorBoardTracker())
        facts = {**environment(), "baselines": self._baselines(), "mesh": self.mesh.table()}
        (self.directory / "environment.json").write_text(json.dumps(facts, indent=1))
        self._facts = facts
        view = RunView(
            name=self.recipe.run.name,
            directory=self.directory,
            config=to_plain(self.recipe),
            rank=self.mesh.rank,
            world_size=self.mesh.world_size,
            start_step=self.counters.step,
            total_steps=self.total_steps,
            total_tokens=self.total_tokens,
            parameters=count_parameters(self.recipe.model),
            facts=facts,
        )
        self.tell("on_start", view)

    def _baselines(self) -> dict[str, float]:
        found = self.validation_stream.manifest.baselines
        return {"unigram": found.unigram, "bigram": found.bigram} if found else {}

    # Budget ---------------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Tokens of the whole run."""
        return sum(phase.tokens for phase in self.recipe.phases) or self.recipe.train.tokens

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, train.max_steps included."""
        steps = sum(-(-self._phase_budget(i) // p.train.batch_tokens) for i, p in enumerate(phases_of(self.recipe)))
        return min(steps, self.recipe.train.max_steps or steps)

    @property
    def total_tokens(self) -> int:
        """Tokens that will really be trained on, whole batches and train.max_steps counted."""
        left, tokens = self.total_steps, 0
        for index, phase in enumerate(phases_of(self.recipe)):
            steps = min(left, -(-self._phase_budget(index) // phase.train.batch_tokens))
            left, tokens = left - steps, tokens + steps * phase.train.batch_tokens
        return tokens

    def _phase_budget(self, index: int) -> int:
        return self.recipe.phases[index].tokens if self.recipe.phases else self.recipe.train.tokens

    def steps_left(self, phase: Recipe, since: int | None = None) -> int:
        """Steps of the current phase from here on, or from an earlier step of the same process."""
        done = self.counters.phase_tokens
        if since is not None:
            done -= (self.counters.step - since) * phase.train.batch_tokens
        steps = -(-(self._phase_budget(self.counters.phase) - done) // phase.train.batch_tokens)
        limit = self.recipe.train.max_steps
        at = self.counters.step if since is None else since
        if limit and limit - at <= steps:
            self.out_of_steps = True
            steps = limit - at
        return max(0, steps)

    def schedule(self, phase: Recipe) -> Schedule:
        """The learning-rate schedule that applies in a phase."""
        total = self._phase_budget(self.counters.phase) if phase.schedule.span == "phase" else self.budget
        return Schedule(phase.schedule, phase.optimizer.learning_rate, total)

    def phase_name(self, phase: Recipe) -> str:
        """Name of the current phase; a run without phases has one called `main`."""
        return self.recipe.phases[self.counters.phase].name if self.recipe.phases else "main"

    def peak_flops(self, phase: Recipe) -> float | None:
        """Peak FLOP/s of all devices together, where it is known."""
        if not hasattr(self, "_peak"):
            peak = peak_flops(resolve_precision(phase.precision, self.mesh.device).name)
            self._peak = peak * self.mesh.world_size if peak else None
        return self._peak

    # Saving and ending ----------------------------------------------------------------------------------------------

    def agree(self, phase: Recipe, engine: Engine) -> tuple[bool, bool]:
        """(stop, save) as all ranks see them: any rank's signal stops all, rank 0's clock and counters save."""
        config, tokens = self.recipe.checkpoint, self.counters.tokens
        due = config.every_tokens > 0 and tokens // config.every_tokens > (
            (tokens - phase.train.batch_tokens) // config.every_tokens
        )
        minutes = (time.monotonic() - self._last_save) / 60
        clock = self.mesh.rank == 0 and config.every_minutes > 0 and minutes >= config.every_minutes
        flags = torch.tensor([float(self.stop.wanted), float(clock)], device=self.mesh.device)
        if self.mesh.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._tell_saves()
        stop, by_clock = flags.tolist()
        return bool(stop), due or bool(by_clock)

    def save(self, engine: Engine) -> None:
        """Write a checkpoint of now; asynchronous unless the recipe says otherwise."""
        assert self._saver is not None
        if self._found is not None and self._found.name == f"step_{self.counters.step:09d}":
            return  # nothing happened since it was loaded
        recipe = to_plain(self.recipe)
        state = {
            "counters": asdict(self.counters),
            "engine": engine.state(),
            "streams": {**self._streams, self._stream_key: self.counters.stream_tokens},
            "tokens": self.counters.tokens,
            "recipe": recipe,
            "recipe_hash": recipe_hash(recipe),
            "layout": to_plain(self.mesh.config),
        }
        self._saver.save(self.counters.step, engine.pieces(for_saving=True), state)
        self._last_save = time.monotonic()

    def _tell_saves(self) -> None:
        if self._saver is None:
            return
        for saved in self._saver.poll():
            self.event("checkpoint" if saved.committed else "warning", describe_save(saved))

    def interrupted(self, engine: Engine) -> None:
        """A signal asked to stop and state is being saved: wait for the commit."""
        assert self._saver is not None
        self._saver.wait()
        self._tell_saves()
        self._outcome = "interrupted"
        self.event("interrupted", "saved; the same command goes on from here")

    def end_phase(self, index: int, engine: Engine) -> None:
        """The border between phases is a checkpoint: the next phase's engine is filled from it."""
        assert self._saver is not None and self._store is not None
        self.counters = replace(self.counters, phase=index + 1, phase_tokens=0, skipped_in_a_row=0)
        self.save(engine)
        self._saver.wait()
        self._tell_saves()
        self.mesh.barrier()
        self._found, self._weights_only = self._store.path(self.counters.step), False

    def finished(self, record: Any, samples: list[tuple[str, str]]) -> None:
        """The budget is spent: wait for the last commit and write the summary."""
        assert self._saver is not None
        self._saver.wait()
        self._tell_saves()
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

    def already_finished(self) -> int:
        """Every phase was done when this process began."""
        self._outcome = "finished"
        return 0


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Short hash of a resolved recipe."""
    return hashlib.sha256(json.dumps(flatten(recipe), sort_keys=True, default=str).encode()).hexdigest()[:16]


def describe_save(saved: SaveEvent) -> str:
    """How a save ended, in a line."""
    if not saved.committed:
        return f"checkpoint of step {saved.step} failed: {saved.message}"
    size = f"{saved.size / 1e6:.1f} MB a rank"
    text = f"step {saved.step} saved in {saved.seconds:.2f} s, held training up {1000 * saved.stall:.0f} ms, {size}"
    return f"{text}; {saved.message}" if saved.message else text


def describe_phase(phase: Recipe) -> str:
    """A phase in a few words."""
    train = phase.train
    return f"sequences of {train.sequence_length}, batches of {train.batch_tokens} tokens, {phase.precision.name}"
