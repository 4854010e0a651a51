"""Continuing a text, one token at a time, through an engine's forward pass at its training shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Predicts(Protocol):
    """Anything with logits for the next token."""

    def next_logits(self, tokens: Tensor, position: int, documents: Tensor | None = None) -> Tensor:
        """tokens [B, S], position, documents int64 [B, S] -> float32 [B, V]."""


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
    encoder: int = 0,
) -> str:
    """Continue `prompt` by at most `length` tokens; stops at the end of a document.

    shape: (B, S) of the forward pass; every row holds the same text, since a pipeline's shapes are fixed. The window keeps
    the last S tokens. encoder: tokens of a row that an encoder reads: it is given the prompt, and the decoder begins from
    nothing. temperature 0 takes the likeliest token. Deterministic in seed; all ranks sample alike. Rows that pad the model's
    vocabulary are never drawn.
    """
    rows, window = shape
    text = tokenizer.encode(prompt).tolist() if prompt else []
    given = (text or [tokenizer.eod])[-encoder:] if encoder else []
    # every document follows the end of another
    ids = [tokenizer.eod, *([] if encoder else text)]
    begin = len(ids)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(length):
        seen = ids[encoder - window :]
        tokens = torch.full((rows, window), tokenizer.eod, dtype=torch.int64)
        tokens[:, encoder : encoder + len(seen)] = torch.tensor(seen)
        documents = None
        if encoder:
            tokens[:, : len(given)] = torch.tensor(given)
            documents = torch.zeros_like(tokens)
            documents[:, len(given) : encoder] = -1  # padding
        logits = engine.next_logits(tokens, encoder + len(seen) - 1, documents)[0, : tokenizer.vocab_size].cpu()
        ids.append(_draw(logits, temperature, generator))
        if ids[-1] == tokenizer.eod:
            break
    return tokenizer.decode([token for token in ids[begin:] if token != tokenizer.eod])


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
