"""`triaxis plan budget=…`: what to train with so many FLOPs, as a recipe.

    triaxis plan budget=1e21 [law=chinchilla|hoffmann|FILE] [vocab=32768] [sequence_length=2048] [name=NAME] [out=DIR] [--json]

law: how parameters and tokens share the budget. chinchilla: Chinchilla's data fitted to the end (Besiroglu et al. 2024, arXiv
2404.10102); hoffmann: the coefficients printed in the paper (arXiv 2203.15556, equation 10), which its other two approaches
contradict; FILE: what `triaxis fit … --json` printed. Learning rate and batch are the Step Law's (arXiv 2503.04715). out: a
directory in which experiment/NAME.yaml is written; `triaxis train experiment=NAME --config-dir DIR` takes it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, LawError
from launcher.laws.shape import Shape, shape_of
from launcher.laws.step import FINAL_RATE, PUBLISHED, RANGE, rate_and_batch
from launcher.terminal import open_console, warn

OPTIONS = ("budget", "law", "vocab", "sequence_length", "name", "out")
"""Words of the form option=value."""
WARMUP_STEPS = 2000  # Step Law's runs: arXiv 2503.04715, section 3
MOST_WARMUP = 0.1  # of the run, where 2,000 steps would be more
WHOLE_BATCH = 64  # sequences: above, batches are whole multiples of this many


@dataclass(frozen=True)
class BudgetPlan:
    """A recipe for a budget. loss: the law's for these parameters and tokens; None where it foretells none."""

    budget: float
    law: str
    shape: Shape
    sequence_length: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    loss: float | None
    ideal: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Updates of the run."""
        return self.tokens // self.batch_tokens

    def sections(self, name: str) -> dict[str, Any]:
        """The recipe's sections, as an experiment has them."""
        warmup = min(WARMUP_STEPS, int(MOST_WARMUP * self.steps)) * self.batch_tokens
        model = self.shape.model
        return {
            "run": {"name": name},
            "model": self.shape.fields(),
            "tokenizer": {"vocab_size": model.vocab_size},
            "corpus": {"name": "stdlib" if model.vocab_size == 1024 else f"stdlib_{model.vocab_size}"},
            "train": {
                "tokens": self.tokens,
                "sequence_length": self.sequence_length,
                "batch_tokens": self.batch_tokens,
                "micro_batch": 1,
            },
            "optimizer": {"learning_rate": self.learning_rate},
            "schedule": {
                "name": "cosine",
                "warmup_tokens": warmup,
                "final_ratio": float(f"{min(1.0, FINAL_RATE / self.learning_rate):.3g}"),
            },
        }

    def overrides(self, name: str) -> list[str]:
        """The same as words of a command line."""
        return [
            f"{section}.{key}={str(value).lower() if isinstance(value, bool) else value}"
            for section, fields in self.sections(name).items()
            for key, value in fields.items()
        ]


def budget_command(arguments: list[str]) -> int:
    """`triaxis plan budget=…`."""
    values = _values([argument for argument in arguments if argument != "--json"])
    budget, vocab = _number(values, "budget", 0.0), int(_number(values, "vocab", 0))
    plan = plan_for(budget, values.get("law", "chinchilla"), vocab, int(_number(values, "sequence_length", 2048)))
    name = values.get("name", f"budget_{budget:.3g}".replace("+", ""))
    if "/" in name or not name.strip("."):
        raise LawError(f"name={name}: must be a plain name; out=DIR sets the directory")
    place = _write(plan, name, Path(values["out"])) if "out" in values else None
    if "--json" in arguments:
        print(json.dumps(plain(plan, name), indent=1))
        return 0
    _show(plan, name, place)
    return 0


def _values(arguments: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in OPTIONS or not equals:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            cure = (
                f"did you mean {near[0]}=?"
                if near
                else f"there are {', '.join(f'{one}=' for one in OPTIONS)}, and --json"
            )
            raise LawError(f"{argument}: no option of `triaxis plan budget=…`; {cure}")
        found[name] = value
    return found


def _number(values: Mapping[str, str], name: str, default: float) -> float:
    text = values.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (name == "budget" and value < 1e12):
        limit = "FLOPs, at least 1e12" if name == "budget" else "a number of at least 0"
        raise LawError(f"{name}={text}: must be {limit}, such as {'1e21' if name == 'budget' else '32768'}")
    return value


def plan_for(budget: float, law: str = "chinchilla", vocab: int = 0, sequence_length: int = 2048) -> BudgetPlan:
    """The recipe for a budget in FLOPs, C = 6 N D with N all parameters."""
    name, split, loss_of, warnings = _law(law, budget)
    ideal = split(budget)
    shape = shape_of(ideal["params"], vocab, sequence_length)
    tokens = budget / (FLOPS_PER_PARAMETER_TOKEN * shape.parameters)
    rate, batch = rate_and_batch(PUBLISHED, shape.without_embedding, tokens)
    batch_tokens = _whole_batch(batch, sequence_length, tokens)
    whole = max(1, round(tokens / batch_tokens)) * batch_tokens
    for role, value in (("params", shape.without_embedding), ("tokens", whole)):
        low, high = RANGE[role]
        if not low <= value <= high:
            warnings.append(
                f"learning rate and batch: {role} of {value:.3g} lie outside what the Step Law was measured on ({low:.3g} to "
                f"{high:.3g}): an extrapolation"
            )
    away = shape.parameters / ideal["params"] - 1
    if abs(away) > 0.1:
        warnings.append(f"no model has {ideal['params']:.3g} parameters; the nearest has {100 * away:+.0f} %")
    return BudgetPlan(budget, name, shape, sequence_length, whole, batch_tokens, float(f"{rate:.4g}"),
                      loss_of(shape.parameters, whole), ideal, tuple(warnings))  # fmt: skip


def _whole_batch(batch: float, sequence: int, tokens: float) -> int:
    """Tokens of a batch of whole sequences, at least one and at most the run's."""
    sequences = max(1, min(round(batch / sequence), int(tokens // sequence) or 1))
    if sequences > WHOLE_BATCH:
        sequences = round(sequences / WHOLE_BATCH) * WHOLE_BATCH
    return sequences * sequence


Split = Callable[[float], dict[str, float]]


def _law(law: str, budget: float) -> tuple[str, Split, Callable[[float, float], float | None], list[str]]:
    """(name, split of a budget, loss of parameters and tokens, warnings) of a published law or a file of ours."""
    from launcher.laws import allocation, chinchilla, gadre

    published = {"chinchilla": chinchilla.REPLICATED, "hoffmann": chinchilla.PUBLISHED}
    if law in published:
        found: dict[str, Any] = {"law": "chinchilla", "coefficients": published[law]}
    else:
        found = _file(law)
    name, own = found["law"], found["coefficients"]
    warnings = [f"{law}: {text}" for text in found.get("warnings", ()) if "extrapolation" not in text]
    if name in ("isoflop", "envelope"):
        return f"{name} of {law}", lambda c: allocation.split(own, c), lambda n, d: None, warnings
    form = {"chinchilla": chinchilla.CHINCHILLA, "gadre": gadre.GADRE}.get(name)
    if form is None or form.optimum is None:
        raise LawError(
            f"law={law}: a fit of {name} does not split a budget; fit chinchilla, isoflop, envelope or gadre"
        )
    best, theta = form.optimum, form.inner(own)

    def loss(params: float, tokens: float) -> float:
        import numpy as np

        return float(np.exp(form.predict(theta, {"params": np.array([params]), "tokens": np.array([tokens])})[0][0]))

    return (law if law in published else f"{name} of {law}"), lambda c: best(own, c), loss, warnings


def _file(place: str) -> dict[str, Any]:
    path = Path(place)
    if path.is_dir():
        path = path / "fit.json"
    if not path.is_file():
        raise LawError(f"law={place}: no such file; name chinchilla, hoffmann, or what `triaxis fit … --json` printed")
    try:
        found = json.loads(path.read_text())
        found["law"], found["coefficients"]
    except (ValueError, KeyError, TypeError):
        raise LawError(
            f"law={place}: holds no fit; write one with `triaxis fit chinchilla DATA --json > {place}`"
        ) from None
    return found


def plain(plan: BudgetPlan, name: str) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "budget": plan.budget,
        "law": plan.law,
        "params": plan.shape.parameters,
        "params_without_embedding": plan.shape.without_embedding,
        "tokens": plan.tokens,
        "tokens_per_parameter": plan.tokens / plan.shape.parameters,
        "flops": FLOPS_PER_PARAMETER_TOKEN * plan.shape.parameters * plan.tokens,
        "loss": plan.loss,
        "batch_tokens": plan.batch_tokens,
        "learning_rate": plan.learning_rate,
        "steps": plan.steps,
        "best": plan.ideal,
        "recipe": plan.sections(name),
        "overrides": plan.overrides(name),
        "warnings": list(plan.warnings),
    }


def _write(plan: BudgetPlan, name: str, directory: Path) -> Path:
    path = directory / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (
        "# @package _global_\n"
        f"# {plan.budget:.3g} FLOPs by {plan.law}: {plan.shape.parameters:,} parameters, {plan.tokens:,} tokens.\n"
        "# Learning rate and batch: Step Law, arXiv 2503.04715.\n"
    )
    path.write_text(head + yaml.safe_dump(plan.sections(name), sort_keys=False))
    return path


def _show(plan: BudgetPlan, name: str, place: Path | None) -> None:
    console = open_console(soft_wrap=True)
    shape, model = plan.shape, plan.shape.model
    loss = f", loss {plan.loss:.3f} by that law" if plan.loss is not None else ""
    for line in (
        f"{plan.budget:.3g} FLOPs by {plan.law}: {shape.parameters:,} parameters, {plan.tokens:,} tokens "
        f"({plan.tokens / shape.parameters:.3g} a parameter){loss}",
        f"model  {model.layers} layers of {model.hidden_size}, {model.heads} heads, feed-forward {model.ffn_size}, vocabulary "
        f"{model.vocab_size}; {shape.without_embedding:,} parameters without embeddings",
        f"batch  {plan.batch_tokens:,} tokens in sequences of {plan.sequence_length}, {plan.steps:,} steps; learning rate "
        f"{plan.learning_rate:g} falling to {FINAL_RATE:g} (Step Law, arXiv 2503.04715)",
    ):
        console.print(line)
    for text in plan.warnings:
        warn(console, text)
    if place is not None:
        console.print(f"written  {place}: triaxis train experiment={name} --config-dir {place.parent.parent}")
    else:
        console.print("triaxis train " + " ".join(plan.overrides(name)))
