"""Which objectives a model can answer: what is refused before a process starts. Imports no torch."""

from __future__ import annotations

from launcher.config import Recipe, RecipeError
from launcher.slots import lengths_of
from models.config import ModelConfig
from models.objectives.config import PAIRS, ObjectiveConfig


def check_objectives(phases: list[Recipe]) -> None:
    """Refuse, in any phase, an objective that the model would answer by looking or could not answer, and options of the model
    that no objective of the run has a use for."""
    for phase in phases:
        for part in phase.objective.parts:
            _check_sight(part, phase)
            _check_units(part, phase)
            _check_sentinels(part, max(lengths_of(phase)))
    marking = ("masked_lm", *PAIRS)
    names = [part.name for phase in phases for part in phase.objective.parts]
    if phases[0].model.prefix_mask and not any(name in marking for name in names):
        raise RecipeError(
            f"model.prefix_mask=true: has no effect with objective.name={phases[0].objective.name}, which marks no prefix; "
            f"leave it out or choose one of {', '.join(marking)}"
        )


def _check_sight(part: ObjectiveConfig, phase: Recipe) -> None:
    """What is asked for must be hidden, and what is given be seen."""
    model = phase.model
    if model.encoder_layers:
        if part.name not in PAIRS:
            raise RecipeError(
                f"objective.name={part.name}: gives an encoder nothing to read; choose one of {', '.join(PAIRS)}, or "
                "model.encoder_layers=0"
            )
        return
    if part.name == "masked_lm":
        if model.causal and not model.prefix_mask:
            raise RecipeError(
                "model.causal=true: objective.name=masked_lm asks for hidden tokens from both their sides; set "
                "model.causal=false, or model.prefix_mask=true to mix it with others"
            )
        if not model.causal and phase.train.sample_length:
            raise RecipeError(
                f"train.sample_length={phase.train.sample_length}: with model.causal=false there is no next token to sample; "
                "set it to 0"
            )
    elif not model.causal:
        raise RecipeError(
            f"model.causal=false: objective.name={part.name} asks for the next token, which attention would see; set "
            "model.causal=true or choose an objective that hides what it asks for"
        )
    if part.name == "prefix_lm" and not model.prefix_mask:
        raise RecipeError(
            "model.prefix_mask=false: objective.name=prefix_lm gives prefixes to be seen both ways; set model.prefix_mask=true"
        )


def _check_units(part: ObjectiveConfig, phase: Recipe) -> None:
    """Attention and objective must part a sample alike, else targets would not see their sources, or see those of others."""
    if part.name not in PAIRS:
        return
    model: ModelConfig = phase.model
    if part.unit == "sample" and model.document_mask:
        raise RecipeError(
            f"objective.unit=sample: {part.name} makes one text of a sample, and model.document_mask=true parts it; set "
            "objective.unit=document or model.document_mask=false"
        )
    if part.unit == "document" and model.prefix_mask and not model.document_mask:
        raise RecipeError(
            f"objective.unit=document: {part.name} gives each document its own prefix, which with model.prefix_mask=true those "
            "before it would see; set model.document_mask=true or objective.unit=sample"
        )


def _check_sentinels(part: ObjectiveConfig, length: int) -> None:
    if part.name != "span_corruption":
        return
    config = part.span_corruption
    spans = max(1, round(length * max(config.rate, config.final_rate) / config.mean_length))
    if spans > config.sentinels:
        raise RecipeError(
            f"objective.span_corruption.sentinels={config.sentinels}: a sample of {length} tokens may have {spans} "
            f"spans; raise it to {spans}, or raise objective.span_corruption.mean_length"
        )
