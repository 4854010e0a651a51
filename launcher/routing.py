"""`triaxis checkpoint routing`: how a mixture's choices change from checkpoint to checkpoint, and which tokens go where.

The same held-out text runs through every checkpoint; what is compared are the experts that each token of it is sent to, so the
figures are those of OpenMoE (arXiv 2402.01739): routing is decided early, and by the token more than by its context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from data.open import ordered_stream
from data.tokenizers import load_corpus_tokenizer
from launcher.config import Recipe, RecipeError
from launcher.generate import LoadedModel, load_model
from launcher.terminal import open_console
from models.moe.layer import MixtureOfExperts
from parallel.checkpoint.store import whole_steps

USAGE = "triaxis checkpoint routing RUN [OTHER …] [--tokens N] [--layer I] [--top N]"
SHOWN = 6  # tokens of an expert


@dataclass(frozen=True)
class Choices:
    """What one checkpoint did. experts: layer -> int64 [S, B, K]; tokens: int64 [B, S], the text that was routed."""

    name: str
    experts: dict[int, Tensor]
    tokens: Tensor


def routing_command(arguments: list[str]) -> int:
    """Load, route, print."""
    places, tokens, layer, top = _parse(arguments)
    found: list[Choices] = []
    recipe: Recipe | None = None
    for name, place, step in _checkpoints(places):
        model, recipe = load_model(place, step)
        if not recipe.model.moe.experts:
            raise RecipeError(f"{place}: model.moe.experts=0, there is no routing; name a run of a model with experts")
        found.append(_route(name, model, recipe, tokens))
    assert recipe is not None
    console = open_console()
    if len(found) > 1:
        console.print(_stability(found))
    console.print(_by_token(found[-1], recipe.model.moe.experts))
    if layer is not None:
        if layer not in found[-1].experts:
            layers = ", ".join(map(str, sorted(found[-1].experts)))
            raise RecipeError(f"--layer {layer}: has no experts; choose one of {layers}")
        console.print(_tokens_of_experts(found[-1], layer, recipe, top))
    return 0


def _parse(arguments: list[str]) -> tuple[list[Path], int, int | None, int]:
    options = {"--tokens": 16_384, "--layer": -1, "--top": SHOWN}
    places, queue = [], list(arguments)
    while queue:
        word = queue.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            places.append(Path(word))
            continue
        value = value or (queue.pop(0) if queue else "")
        if name not in options or not value.isdigit():
            raise RecipeError(f"{word}: not an option of `{USAGE}`, or without a whole number")
        options[name] = int(value)
    if not places or min(options["--tokens"], options["--top"]) < 1:
        raise RecipeError(f"checkpoint routing: needs a run, and --tokens and --top above 0: {USAGE}")
    return places, options["--tokens"], options["--layer"] if options["--layer"] >= 0 else None, options["--top"]


def _checkpoints(places: list[Path]) -> list[tuple[str, Path, int | None]]:
    """Every checkpoint of a single run; of several places the newest of each."""
    if len(places) > 1:
        return [(str(place), place, None) for place in places]
    steps = whole_steps(places[0])
    return [(f"step {step}", places[0], step) for step in steps] or [(str(places[0]), places[0], None)]


def _route(name: str, model: LoadedModel, recipe: Recipe, tokens: int) -> Choices:
    length = recipe.train.sequence_length
    rows = max(1, tokens // length)
    text = torch.from_numpy(
        ordered_stream(recipe.data.home, "validation", length, recipe.data.cache).batch(0, rows, length).tokens
    )
    inputs = text[:, :-1].long()
    seen: dict[int, list[Tensor]] = {}
    hooks = []
    for part in model.model.modules():
        if isinstance(part, MixtureOfExperts):
            into = seen.setdefault(part.router.layer, [])
            hooks.append(part.router.register_forward_hook(lambda module, args, out, into=into: into.append(out[1])))
    for start in range(0, rows, 4):
        model.next_logits(inputs[start : start + 4], length - 1)
    for hook in hooks:
        hook.remove()
    return Choices(name, {layer: torch.cat(parts, dim=1) for layer, parts in seen.items()}, inputs)


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of a token's experts [..., K] that two checkpoints choose alike, whatever their order."""
    return float((one.unsqueeze(-1) == other.unsqueeze(-2)).any(-1).double().mean())


def by_token(experts: Tensor, tokens: Tensor, count: int) -> tuple[float, float]:
    """(share of choices that a table from token to its usual K experts foretells, the same for the K busiest of all).

    experts: int64 [S, B, K]; tokens: int64 [B, S]; count: experts of the layer. Of tokens that occur twice or more: the
    table is made from the first half of the text and judged on the second.
    """
    top_k = experts.shape[-1]
    chosen, ids = experts.transpose(0, 1).flatten(0, 1), tokens.flatten()
    half = len(ids) // 2
    table = torch.zeros(int(ids.max()) + 1, count, dtype=torch.float64)
    table.index_put_((ids[:half, None].expand(-1, top_k), chosen[:half]), torch.ones(()).double(), accumulate=True)
    known = table.sum(1)[ids[half:]] > 0
    busiest = chosen[:half].flatten().bincount(minlength=count).topk(top_k).indices
    usual = table.topk(top_k, dim=1).indices[ids[half:]]
    told, judged = chosen[half:][known], usual[known]
    return agreement(told, judged), agreement(told, busiest.expand_as(judged))


def _stability(found: list[Choices]) -> Table:
    table = Table(title="experts chosen as in the checkpoint before, and as in the last", title_justify="left")
    table.add_column("checkpoint")
    layers = sorted(found[-1].experts)
    for layer in layers:
        table.add_column(f"layer {layer}", justify="right")
    for index, one in enumerate(found[:-1]):
        after = found[index + 1]
        cells = []
        for layer in layers:
            near = agreement(one.experts[layer], after.experts[layer])
            far = agreement(one.experts[layer], found[-1].experts[layer])
            cells.append(f"{near:.0%}  {far:.0%}")
        table.add_row(f"{one.name} → {after.name}", *cells)
    return table


def _by_token(found: Choices, experts: int) -> Table:
    table = Table(title=f"{found.name}: choices that the token alone foretells", title_justify="left")
    for name in ("layer", "by token", "by the busiest experts", "busiest expert"):
        table.add_column(name, justify="right")
    for layer, chosen in sorted(found.experts.items()):
        token, busy = by_token(chosen, found.tokens, experts)
        share = chosen.flatten().bincount(minlength=experts).max() / chosen.numel() * experts
        table.add_row(str(layer), f"{token:.0%}", f"{busy:.0%}", f"{share:.2f} × even")
    return table


def _tokens_of_experts(found: Choices, layer: int, recipe: Recipe, top: int) -> Table:
    """For each expert, the tokens that it gets a larger share of than of all, among those seen often enough to tell."""
    tokenizer = load_corpus_tokenizer(recipe.data.home, recipe.data.cache)
    experts, size = recipe.model.moe.experts, recipe.model.padded_vocab
    chosen, ids = found.experts[layer].transpose(0, 1).flatten(0, 1), found.tokens.flatten()
    counts = torch.zeros(experts, size, dtype=torch.float64)
    counts.index_put_((chosen, ids[:, None].expand_as(chosen)), torch.ones(()).double(), accumulate=True)
    seen = ids.bincount(minlength=size)
    share = counts / seen.clamp(min=1)
    share[:, seen < max(4, len(ids) // 4096)] = 0
    table = Table(title=f"layer {layer}: tokens of each expert, and how many of them it gets", title_justify="left")
    table.add_column("expert", justify="right")
    table.add_column("tokens")
    for expert in range(experts):
        best = share[expert].topk(top)
        words = [
            f"{tokenizer.decode([token])!r} {value:.0%}"
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if value > 0
        ]
        table.add_row(str(expert), "  ".join(words))
    return table
