"""Everything that can be refused before a process starts. Imports no torch: the launcher is light."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from data.corpus import Corpus
from data.manifest import Manifest
from data.open import check_cache
from data.plan import Progress
from data.stream_config import CacheConfig
from data.tokenizers import load_corpus_tokenizer
from launcher.compose import phases_of
from launcher.config import Recipe, RecipeError
from launcher.derive import settle
from launcher.objective import check_objectives
from launcher.reading import epoch_tokens, longest_sequence, phase_stream
from launcher.slots import Slots, lengths_of
from launcher.vocabulary import special_tokens
from models.kernels.choice import check_choice
from parallel.blocks import check_products
from parallel.check import check_engine, check_model, choose_engine, resolve_world
from parallel.shapes import check_shapes


def with_vocabulary(recipe: Recipe, size: int, end: int = 0) -> Recipe:
    """The recipe with the vocabulary of its corpus and the token that ends its documents; a model that names its own
    vocabulary must hold every token."""
    if recipe.model.vocab_size and recipe.model.vocab_size < size:
        raise RecipeError(
            f"model.vocab_size={recipe.model.vocab_size}: smaller than the tokenizer of {recipe.data.home}, which has "
            f"{size} tokens; set model.vocab_size=0 to take its size"
        )
    model = recipe.model if recipe.model.vocab_size else replace(recipe.model, vocab_size=size)
    if model.document_mask and model.document_end < 0:
        model = replace(model, document_end=end)
    return replace(recipe, model=model)


def check_corpus(recipe: Recipe) -> Recipe:
    """Open the corpus of every phase; all must share a tokenizer. Returns the recipe with its vocabulary filled in."""
    first = _open(recipe.data.home, recipe.data.cache)
    for phase in phases_of(recipe):
        check_cache(phase.data)
        special_tokens(phase.objective, load_corpus_tokenizer(phase.data.home, phase.data.cache), phase.data.home)
        for path in dict.fromkeys([phase.data.home, *(part.path for part in phase.data.parts)]):
            if _open(path, phase.data.cache).tokenizer_fingerprint != first.tokenizer_fingerprint:
                raise RecipeError(
                    f"data.path={path}: was tokenized differently from {recipe.data.home}; rebuild it with the same "
                    "tokenizer (tokenizer=file tokenizer.path=…)"
                )
    return with_vocabulary(recipe, first.vocab_size, first.eod)


def _open(path: str, cache: CacheConfig) -> Manifest:
    """A corpus whose shards are all there, with the tokenizer that they were made with."""
    for split in ("train", "validation"):
        corpus = Corpus(path, split, cache)
        corpus.check_present()
    load_corpus_tokenizer(path, cache)
    return corpus.manifest


def check_streams(recipe: Recipe, progress: Progress | None = None) -> None:
    """Open the stream of every phase, which works out what packings need and refuses mixtures that cannot be."""
    begin: dict[str, int] = {}
    longest = longest_sequence(recipe)
    for index, phase in enumerate(phases_of(recipe)):
        tokens = recipe.phases[index].tokens if recipe.phases else recipe.train.tokens
        stream = phase_stream(phase, tokens, longest, begin, progress)
        begin |= {
            source.fingerprint: used for source, used in zip(stream.sources, stream.consumed(tokens), strict=True)
        }


def with_budget(recipe: Recipe) -> Recipe:
    """The recipe with what its budget and its laws decide filled in: train.epochs or train.flops as train.tokens, and so on."""
    if not recipe.train.epochs:
        return settle(recipe)
    if recipe.phases:
        raise RecipeError(
            f"train.epochs={recipe.train.epochs}: has no effect with phases, which have budgets of their own; set their tokens"
        )
    tokens = round(recipe.train.epochs * epoch_tokens(phase_stream(recipe, 0, longest_sequence(recipe), {})))
    return settle(replace(recipe, train=replace(recipe.train, tokens=max(1, tokens))))


def check_layout(recipe: Recipe, world_size: int) -> None:
    """Refuse a world, batch, sequence or model that does not divide, in any phase. The vocabulary must be known."""
    check_objectives(phases_of(recipe))
    for phase in phases_of(recipe):
        layout, _ = choose_engine(resolve_world(phase.parallel, world_size), world_size)
        check_model(layout, phase.model, phase.train.sequence_length)
        for length in lengths_of(phase):
            check_products(layout, phase.model, phase.precision.products, length)
        check_batch(phase, layout.data)
        check_shapes(
            layout,
            phase.model,
            [(size // length, length) for size in Slots(phase.train).sizes for length in lengths_of(phase)],
            micro_batch=phase.train.micro_batch,
            sequence_length=phase.train.sequence_length,
        )


def check_recipe(recipe: Recipe, world_size: int, device: str) -> None:
    """Everything that can be known before a process starts; the vocabulary must be filled in. device: cpu or cuda."""
    check_layout(recipe, world_size)
    for phase in phases_of(recipe):
        check_choice(phase.kernels)
        products = phase.precision.products
        if phase.loss.fused and products.quantised and "head" not in products.high:
            raise RecipeError(
                "loss.fused=true: computes the head's product in the model's own precision, and precision.products.high leaves "
                "the head out; add head to it or set loss.fused=false"
            )
        engine, _ = choose_engine(resolve_world(phase.parallel, world_size), world_size)
        check_engine(engine, phase.precision, device, world_size, phase.optimizer.master)
        if phase.train.profile_step and phase.parallel.pipeline == 1:
            raise RecipeError(
                f"train.profile_step={phase.train.profile_step}: shows a pipeline's time, and parallel.pipeline=1 has none; "
                "set it to 0 or parallel.pipeline above 1"
            )
        if 0 < phase.train.profile_step == phase.train.trace_step:
            raise RecipeError(
                f"train.profile_step={phase.train.profile_step} and train.trace_step={phase.train.trace_step}: recording every "
                "operator slows the step whose pipeline is timed; choose two steps"
            )
        check_depth(phase)
    check_formats(recipe)
    check_budget(recipe)
    check_life(recipe)


def check_life(recipe: Recipe) -> None:
    """Refuse a watchdog that would wake after a collective has given up by itself."""
    hangs, timeout = recipe.life.hang_seconds, recipe.parallel.timeout_seconds
    if hangs >= timeout:
        raise RecipeError(
            f"life.hang_seconds={hangs:g}: has no effect, since a collective waits parallel.timeout_seconds={timeout} at most; "
            "lower the one or raise the other"
        )


def check_depth(recipe: Recipe) -> None:
    """Refuse an optimizer for which nobody has said how it follows depth."""
    if recipe.model.parametrization.kind == "completep" and recipe.optimizer.name != "adamw":
        raise RecipeError(
            f"optimizer.name={recipe.optimizer.name}: model.parametrization.kind=completep is published for adamw alone; set "
            "optimizer=adamw or model.parametrization.kind=mup"
        )


def check_formats(recipe: Recipe) -> None:
    """Refuse figures of block formats where there can be none."""
    every = recipe.tracker.formats_every_steps
    quantised = [phase for phase in phases_of(recipe) if phase.precision.products.quantised]
    if every and not quantised:
        raise RecipeError(
            f"tracker.formats_every_steps={every}: has no effect where no product is quantised; set it to 0 or choose formats "
            "(precision=mxfp8, say)"
        )
    for phase in quantised:
        if every and phase.parallel.compile != "none":
            raise RecipeError(
                f"tracker.formats_every_steps={every}: compiled layers do not count what becomes of their operands, and "
                f"parallel.compile={phase.parallel.compile}; set parallel.compile=none, or tracker.formats_every_steps=0"
            )


def check_budget(recipe: Recipe) -> None:
    """Refuse a schedule longer than what it spans."""
    phases = phases_of(recipe)
    budgets = [phase.tokens for phase in recipe.phases] or [recipe.train.tokens]
    for phase, budget in zip(phases, budgets, strict=True):
        span = budget if phase.schedule.span == "phase" else sum(budgets)
        share = phase.schedule.warmup_share
        used = (phase.schedule.warmup_tokens or share * span) + phase.schedule.decay_tokens
        if used > span:
            raise RecipeError(
                (
                    f"schedule.warmup_share={share}"
                    if share
                    else f"schedule.warmup_tokens={phase.schedule.warmup_tokens}"
                )
                + (f" and schedule.decay_tokens={phase.schedule.decay_tokens}" if phase.schedule.decay_tokens else "")
                + f": longer than the {span} tokens that the schedule spans; shorten it or raise train.tokens"
            )


def check_batch(recipe: Recipe, data: int) -> None:
    """Refuse a batch that does not divide into micro-batches on every data rank, or sequences beyond the model."""
    train, model = recipe.train, recipe.model
    for length in lengths_of(recipe):
        if model.positions != "none" and length > model.max_sequence:
            option = "data.buckets.lengths" if recipe.data.buckets.lengths else "train.sequence_length"
            raise RecipeError(
                f"{option}={length}: longer than model.max_sequence={model.max_sequence}; shorten it or raise "
                "model.max_sequence"
            )
    share = train.micro_batch * data
    for size in Slots(train).sizes:
        if size % (share * train.sequence_length):
            near = max(share, size // train.sequence_length // share * share) * train.sequence_length
            stage = f" (train.ramp_from={train.ramp_from} gives such batches)" if size != train.batch_tokens else ""
            raise RecipeError(
                f"train.batch_tokens={size}: its {size // train.sequence_length} sequences do not divide into "
                f"micro-batches of {train.micro_batch} on {data} data ranks{stage}; the nearest is {near}, or choose another "
                "train.micro_batch"
            )


def check_directory(recipe: Recipe) -> Path:
    """The run's directory, made and known to be writable."""
    directory = Path(recipe.run.dir) / recipe.run.name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".write_test.{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise RecipeError(
            f"run.dir={recipe.run.dir}: {directory} cannot be written ({error.strerror}); free space there or set run.dir"
        ) from error
    return directory


IDENTITY = ("seed", "model", "objective")  # what a run may not change between attempts


def check_same_run(recipe: Recipe, saved: dict, place: str) -> list[str]:
    """Compare with the recipe a checkpoint was made by: refuse what changes the model, list the rest.

    saved: the resolved recipe as plain data. Returns `option: old -> new` of every other difference.
    """
    from launcher.schema import to_plain

    old, new = flatten(saved), flatten(to_plain(recipe))
    plain = flatten(to_plain(Recipe()))  # an option younger than the checkpoint was at its default there
    old = {key: value for key, value in plain.items() if key in new} | old
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    for key in differing:
        if key.split(".")[0] in IDENTITY and key != "model.name":
            raise RecipeError(
                f"{key}={new.get(key)}: {place} was made with {old.get(key)}; set it back, give the run another run.name, or "
                "start from its weights with run.init_from"
            )
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in differing]


def check_same_multipliers(recipe: Recipe, saved: dict, place: str) -> None:
    """Refuse weights that would compute something else here: by the multipliers of the model's parametrization.

    saved: the resolved recipe that they were made by, as plain data.
    """
    from launcher.compose import build_recipe

    theirs, ours = build_recipe(saved).model.scales.multipliers, recipe.model.scales.multipliers
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        told = ", ".join(f"{name} by {ours[name]:g} here and by {theirs[name]:g} there" for name in differing)
        raise RecipeError(
            f"model.parametrization.kind={recipe.model.parametrization.kind}: weights of {place} mean something else here, "
            f"where what is multiplied differs ({told}); give model.parametrization as it was there"
        )


def flatten(tree: dict, path: str = "") -> dict[str, object]:
    """Dotted path -> leaf of nested plain data."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            found.update(flatten(value, place))
        else:
            found[place] = value
    return found
