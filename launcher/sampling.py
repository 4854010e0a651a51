"""Continuing a text, one token at a time, through an engine's forward pass at its training shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Predicts(Protocol):
    """Anything with logits for the next token."""

    def next_logits(self, tokens: Tensor, position: int) -> Tensor:
        """tokens [B, S], position -> float32 [B, V]."""


class Encodes(Protocol):
    """What sampling needs of a tokenizer."""

    eod: int
    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Text to token ids, without end-of-document ids."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Token ids to text."""


def sample_text(
    engine: Predicts,
    tokenizer: Encodes,
    prompt: str,
    *,
    length: int,
    shape: tuple[int, int],
    temperature: float,
    seed: int,
) -> str:
    """Continue `prompt` by at most `length` tokens; stops at the end of a document.

    shape: (B, S) of the forward pass; every row holds the same text, since a pipeline's shapes are fixed. The window keeps
    the last S tokens. temperature 0 takes the likeliest token. Deterministic in seed; all ranks sample alike. Rows that
    pad the model's vocabulary are never drawn.
    """
    rows, window = shape
    # every document follows the end of another
    ids = [tokenizer.eod, *(tokenizer.encode(prompt).tolist() if prompt else [])]
    begin = len(ids)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(length):
        seen = ids[-window:]
        tokens = torch.full((rows, window), tokenizer.eod, dtype=torch.int64)
        tokens[:, : len(seen)] = torch.tensor(seen)
        logits = engine.next_logits(tokens, len(seen) - 1)[0, : tokenizer.vocab_size].cpu()
        ids.append(_draw(logits, temperature, generator))
        if ids[-1] == tokenizer.eod:
            break
    return tokenizer.decode([token for token in ids[begin:] if token != tokenizer.eod])


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
