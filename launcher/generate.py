"""`triaxis sample`: text from a checkpoint, on one process, whatever layout it was trained at."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from data.tokenizers import load_corpus_tokenizer
from launcher.compose import build_recipe
from launcher.config import Recipe, RecipeError
from launcher.sampling import sample_text
from models.decoder import Decoder, named_parameters
from models.layers import PlainLayers
from models.parameters import declaration
from models.precision import UNQUANTISED, ProductsConfig
from models.random import Clock
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import resolve
from parallel.context import documents_of
from parallel.engines.state import routing_pieces

USAGE = "triaxis sample RUN PROMPT [--length N] [--temperature T] [--count N] [--step N] [--seed N]"


def sample_command(arguments: list[str]) -> int:
    """Parse the command line, load, print."""
    places, options = _parse(arguments)
    model, recipe = load_model(Path(places[0]), int(options["--step"]) if "--step" in options else None)
    tokenizer = load_corpus_tokenizer(recipe.data.home, recipe.data.cache)
    window = min(recipe.model.max_sequence, max(recipe.train.sequence_length, 1))
    for number in range(int(options.get("--count", 1))):
        text = sample_text(
            model,
            tokenizer,
            places[1],
            length=int(options.get("--length", 200)),
            shape=(1, window),
            temperature=float(options.get("--temperature", recipe.train.sample_temperature)),
            seed=int(options.get("--seed", recipe.seed)) + number,
            encoder=recipe.model.encoder_length,
        )
        print(places[1] + text)
    return 0


def _parse(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    known = {"--length", "--temperature", "--count", "--step", "--seed"}
    places: list[str] = []
    options: dict[str, str] = {}
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("--"):
            places.append(word)
        elif name not in known or not (value or queue):
            raise RecipeError(f"{word}: not an option of `{USAGE}`")
        else:
            options[name] = value or queue.pop(0)
    if len(places) != 2:
        raise RecipeError(f"sample: needs a run and a prompt: {USAGE}")
    for name, value in options.items():
        try:
            float(value) if name == "--temperature" else int(value)
        except ValueError:
            kind = "a number" if name == "--temperature" else "a whole number"
            raise RecipeError(f"{name}={value}: must be {kind}: {USAGE}") from None
    return places, options


class LoadedModel:
    """A whole model for looking at, in one process."""

    def __init__(self, model: Decoder, recipe: Recipe, clock: Clock) -> None:
        self.model, self.config, self.clock = model.eval(), recipe.model, clock

    @torch.no_grad()
    def next_logits(self, tokens: torch.Tensor, position: int, documents: torch.Tensor | None = None) -> torch.Tensor:
        """tokens [B, S] -> logits float32 [B, V] after `position`. documents: int64 [B, S], or None for what ends part."""
        documents = documents_of(self.config, tokens, tokens.device) if documents is None else documents
        self.clock.start(0, None if documents is None else documents[:, : position + 1])
        return self.model(tokens[:, : position + 1])[-1].float()


def load_model(
    place: Path, step: int | None = None, dtype: torch.dtype = torch.float32, products: ProductsConfig = UNQUANTISED
) -> tuple[LoadedModel, Recipe]:
    """The model of a run or checkpoint, with the recipe it was trained by. CheckpointError where there is none. dtype,
    products: what it computes in, whatever it was trained in."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    path = resolve(place, step)
    recipe = build_recipe(read_state(path)["recipe"])
    clock = Clock(recipe.seed)
    layers = PlainLayers(dtype, clock, products=products)
    model = Decoder(recipe.model, layers)
    pieces = [
        Piece(name, declaration(parameter).shape, (0,) * parameter.dim(), parameter.data)
        for name, parameter in named_parameters(iter(model.blocks))
    ]
    load(path, [*pieces, *routing_pieces(layers.routing, recipe.model)])
    return LoadedModel(model, recipe, clock), recipe
