"""The loop: one step after another until the phase's budget is spent or somebody asks to stop."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from launcher.batches import Fetched, TrainBatches, validation_batches
from launcher.callbacks.base import StepRecord, ValidationRecord
from launcher.config import Recipe
from launcher.optim.schedule import Schedule
from launcher.pace import STEP
from launcher.profile import profiled
from launcher.run import Run, TrainingError, passed
from launcher.sampling import sample_text
from launcher.trace import traced
from models.flops import flops_per_token
from parallel.engines.base import Engine, StepResult


def fit(run: Run, phase: Recipe, engine: Engine, batches: TrainBatches) -> bool:
    """Train one phase to its end; returns True where it was interrupted (state is saved then)."""
    schedule, steps = run.budget.schedule(run.counters.phase), run.budget.steps_left(run.counters)
    for index in range(steps):
        run.pace.now(STEP, quick=index > 0)
        began = time.perf_counter()
        fetched = batches.get(index)
        waited = time.perf_counter() - began
        rate = learning_rate(run, phase, schedule, fetched.slot.tokens)
        with profiled(run, phase, engine), traced(run, phase):
            result = engine.step(fetched.batch, rate, formats=_counts_formats(run, phase))
        seconds = time.perf_counter() - began
        _count(run, fetched, result)
        run.tell("on_step", _record(run, phase, fetched, result, rate, seconds, waited))
        for warning in run.watch.look(result.formats):
            run.event("warning", warning)
        _refuse_endless_skipping(run, phase, result)
        stop, save = run.agree(fetched.slot.tokens)
        last = index == steps - 1
        if not stop:  # before saving: what a kill in between undoes is done again with its step
            _look(run, phase, engine, fetched.slot.tokens, last=last)
        if save or stop:
            run.save(engine)
        if stop:  # the state is safe first, since whoever stops a run may soon kill it
            run.interrupted()
            _look(run, phase, engine, fetched.slot.tokens, last=last)
            return True
    return False


def finish(run: Run, phase: Recipe, engine: Engine) -> int:
    """After the last step: final validation and samples, the last checkpoint, the summary. Returns exit code 0."""
    record = validate(run, phase, engine)
    samples = sample(run, phase, engine)
    run.save(engine)
    run.finished(record, samples)
    return 0


def learning_rate(run: Run, phase: Recipe, schedule: Schedule, tokens: int) -> float:
    """Rate of the step that is about to be made with so many tokens."""
    done = run.counters.phase_tokens if phase.schedule.span == "phase" else run.counters.tokens
    return schedule.at(done + tokens)


def validate(run: Run, phase: Recipe, engine: Engine) -> ValidationRecord:
    """One pass over the validation tokens of every corpus: nats per token and bits per byte of text."""
    nats = tokens = text = 0.0
    by_source = {}
    for name, stream in run.validation_streams.items():
        loss = valid = 0.0
        for number, batch in enumerate(validation_batches(phase, run.mesh, stream)):
            run.pace.now("validation", quick=number > 0)
            found = engine.evaluate(batch)
            loss, valid = loss + found[0], valid + found[1]
        by_source[name] = loss / valid
        nats, tokens, text = nats + loss, tokens + valid, text + valid * stream.sources[0].corpus.bytes_per_token
    record = ValidationRecord(
        step=run.counters.step,
        phase=run.phase_name,
        tokens=run.counters.tokens,
        validation_loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / text,
        by_source=by_source if len(by_source) > 1 else {},
    )
    run.tell("on_validation", record)
    return record


def sample(run: Run, phase: Recipe, engine: Engine) -> list[tuple[str, str]]:
    """Continue every prompt of the recipe; returns (prompt, continuation) pairs."""
    train, told = phase.train, []
    for number, prompt in enumerate(train.sample_prompts if train.sample_length else ()):
        run.pace.now("sampling")
        text = sample_text(
            engine,
            run.tokenizer,
            prompt,
            length=train.sample_length,
            shape=(train.micro_batch, train.sequence_length),
            temperature=train.sample_temperature,
            seed=phase.seed * 1_000_003 + run.counters.step * 101 + number,
            encoder=phase.model.encoder_length,
        )
        run.tell("on_sample", run.counters.step, prompt, text)
        told.append((prompt, text))
    return told


def _count(run: Run, fetched: Fetched, result: StepResult) -> None:
    counters, tokens = run.counters, fetched.slot.tokens
    run.counters = replace(
        counters,
        step=counters.step + 1,
        tokens=counters.tokens + tokens,
        samples=counters.samples + fetched.slot.rows,
        skipped=counters.skipped + result.skipped,
        skipped_in_a_row=counters.skipped_in_a_row + 1 if result.skipped else 0,
        phase_tokens=counters.phase_tokens + tokens,
    )


def _counts_formats(run: Run, phase: Recipe) -> bool:
    """Whether the step that is about to be made counts what becomes of operands in block formats."""
    every = phase.tracker.formats_every_steps
    return every > 0 and (run.counters.step + 1) % every == 0


def _record(
    run: Run, phase: Recipe, fetched: Fetched, result: StepResult, rate: float, seconds: float, waited: float
) -> StepRecord:
    slot = fetched.slot
    speed = slot.tokens / seconds
    peak = run.peak_flops(phase)
    used = speed * flops_per_token(phase.model, slot.length) / peak if peak else None
    return StepRecord(
        step=run.counters.step,
        phase=run.phase_name,
        tokens=run.counters.tokens,
        loss=result.loss,
        grad_norm=result.grad_norm,
        learning_rate=rate,
        tokens_per_second=speed,
        step_seconds=seconds,
        data_seconds=waited,
        skipped=result.skipped,
        skipped_total=run.counters.skipped,
        flops_utilisation=used,
        batch_hash=fetched.hash,
        place=slot.place,
        batch_tokens=slot.tokens,
        sequence_length=slot.length,
        drawn=fetched.drawn,
        routing=result.routing,
        formats=result.formats,
    )


def _refuse_endless_skipping(run: Run, phase: Recipe, result: StepResult) -> None:
    if result.skipped:
        run.event("skip", f"gradient norm {result.grad_norm}: nothing was written")
    if run.counters.skipped_in_a_row >= phase.train.max_skipped_steps:
        raise TrainingError(
            f"train.max_skipped_steps={phase.train.max_skipped_steps}: as many steps in a row had NaN or infinite "
            "gradients; lower optimizer.learning_rate, or start again from an earlier checkpoint"
        )


def _look(run: Run, phase: Recipe, engine: Engine, batch_tokens: int, *, last: bool) -> None:
    """Validate and sample where a multiple of their interval was passed; the end of the run does both anyway."""
    train = phase.train
    if last:
        return
    if passed(run.counters.tokens, batch_tokens, train.validate_every_tokens):
        validate(run, phase, engine)
    if passed(run.counters.tokens, batch_tokens, train.sample_every_tokens):
        sample(run, phase, engine)
