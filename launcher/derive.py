"""What a recipe leaves to be worked out once its model is known: tokens from a budget, batch and learning rate from a law.

N are the parameters of a model, D its tokens. Laws are power laws of both; two published ones have names:

    step_law  learning rate 1.79 N^-0.713 D^0.307, batch of 0.58 D^0.571 tokens, N without embeddings (arXiv 2503.04715)
    porian    learning rate 0.0047 (N/108e6)^-1/3, batch of 160 x 2048 (N/108e6)^2/3 tokens (arXiv 2406.19146; OLMo)

Any other is written out: `0.5*N^-0.4*D^0.1`. Both were fitted on models of 5M parameters and more; below, expect less.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from launcher.compose import phases_of
from launcher.config import Recipe, RecipeError
from models.config import ModelConfig, count_active_parameters
from models.flops import flops_per_token


@dataclass(frozen=True)
class PowerLaw:
    """coefficient x N^parameters x D^tokens."""

    coefficient: float
    parameters: float = 0.0
    tokens: float = 0.0

    def at(self, parameters: float, tokens: float) -> float:
        """The law's value."""
        return float(self.coefficient * parameters**self.parameters * tokens**self.tokens)


RATES = {"step_law": PowerLaw(1.79, -0.713, 0.307), "porian": PowerLaw(0.0047 * 108e6 ** (1 / 3), -1 / 3)}
"""Learning rates by the name of their law."""
BATCHES = {"step_law": PowerLaw(0.58, 0.0, 0.571), "porian": PowerLaw(160 * 2048 / 108e6 ** (2 / 3), 2 / 3)}
"""Tokens of a batch by the name of their law."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORMULA = re.compile(rf"\s*({_NUMBER})\s*(?:\*\s*N\^({_NUMBER})\s*)?(?:\*\s*D\^({_NUMBER})\s*)?")


def law_of(option: str, text: str, named: dict[str, PowerLaw]) -> PowerLaw:
    """The law that an option names or writes out."""
    if text in named:
        return named[text]
    found = _FORMULA.fullmatch(text)
    if not found:
        raise RecipeError(
            f"{option}={text}: choose {' or '.join(named)}, or write a law out, such as '0.5*N^-0.4*D^0.1'"
        )
    return PowerLaw(*(float(part or 0) for part in found.groups()))


def inner_parameters(model: ModelConfig) -> int:
    """Parameters that a token passes through, without embeddings and an untied head: N of laws that leave these out."""
    tables = model.padded_vocab * model.hidden_size * (1 if model.tied_embeddings else 2)
    positions = model.max_sequence * model.hidden_size if model.positions == "learned" else 0
    return count_active_parameters(model) - tables - positions


def settle(recipe: Recipe) -> Recipe:
    """The recipe with tokens, batch and learning rate filled in where a budget or a law decides them; the vocabulary must be
    known. What was filled in is filled in alike when it is done again."""
    model, train, optimizer = recipe.model, recipe.train, recipe.optimizer
    budget = train.flops or train.tokens_per_parameter
    if recipe.phases and (budget or train.batch_law or optimizer.rate_law):
        given = {
            "train.flops": train.flops,
            "train.tokens_per_parameter": train.tokens_per_parameter,
            "train.batch_law": train.batch_law,
            "optimizer.rate_law": optimizer.rate_law,
        }
        option, value = next((option, value) for option, value in given.items() if value)
        raise RecipeError(
            f"{option}={value}: has no effect with phases, which have budgets of their own; set their "
            "tokens, batches and learning rates"
        )
    tokens: float = train.tokens
    if train.flops:
        tokens = train.flops / flops_per_token(model, train.sequence_length)
    elif train.tokens_per_parameter:
        tokens = train.tokens_per_parameter * count_active_parameters(model)
    inner = inner_parameters(model)
    if train.batch_law:
        law = law_of("train.batch_law", train.batch_law, BATCHES)
        unit = train.sequence_length * train.micro_batch * max(1, recipe.parallel.data)
        train = replace(train, batch_tokens=max(1, round(law.at(inner, tokens) / unit)) * unit)
    if budget:  # whole batches, so that runs of one budget differ as little as can be
        train = replace(train, tokens=max(1, round(tokens / train.batch_tokens)) * train.batch_tokens)
    if optimizer.rate_law:
        law = law_of("optimizer.rate_law", optimizer.rate_law, RATES)
        optimizer = replace(optimizer, learning_rate=float(f"{law.at(inner, tokens):.4g}"))
    return replace(recipe, train=train, optimizer=optimizer)


def flops_of(recipe: Recipe) -> float:
    """Floating-point operations of a whole run, forward and backward, all of its phases; train.max_steps of plain batches cuts
    it short."""
    phases = phases_of(recipe)
    budgets = [phase.tokens for phase in recipe.phases] or [recipe.train.tokens]
    total, steps = 0.0, recipe.train.max_steps or math.inf
    for phase, tokens in zip(phases, budgets, strict=True):
        used = min(float(tokens), steps * phase.train.batch_tokens)
        steps -= used / phase.train.batch_tokens
        total += used * flops_per_token(phase.model, phase.train.sequence_length)
    return total
