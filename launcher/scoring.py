"""What a run's model thinks of texts: nats, tokens and bytes of each, for the cleaning step `perplexity`.

A text is read after an end-of-document token, in windows of the model's sequence length that do not overlap, each predicted
from what stands before it in its window. Batches have few fixed shapes and one thread computes, so a text's score is the same
bits whatever stands beside it and however many processes score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.clean.base import Scorer, Scores
from data.config import DataError
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from launcher.generate import LoadedModel, load_model
from models.core import document_numbers
from parallel.checkpoint.errors import CheckpointError

BATCH_TOKENS, BATCH_LOGITS = 1 << 12, 1 << 24
"""Tokens of a batch at most, and logits computed at once, in float32 64 MiB. Batches are filled up, so larger ones would waste
more where texts are few."""

_SHORTEST = 16  # tokens of the smallest window shape; others are its doubles


def load_scorer(run: str, tokens: int, option: str = "corpus.clean: step perplexity, run") -> Scorer:
    """Scores with the newest checkpoint of a run. tokens: read of a text at most; 0 = all. DataError where none is there,
    which names the option."""
    try:
        model, recipe = load_model(Path(run))
    except CheckpointError as error:
        raise DataError(f"{option} = {run!r}: {error}") from error
    if not recipe.model.causal or recipe.model.encoder_layers:
        why = f"encoder_layers={recipe.model.encoder_layers}" if recipe.model.encoder_layers else "causal=false"
        raise DataError(
            f"{option} = {run!r}: model.{why}, and only a model that predicts the next token of a whole text gives a "
            "perplexity; name another run"
        )
    torch.set_num_threads(1)  # a build has a process a core; and sums in a fixed order
    window = min(recipe.model.max_sequence, recipe.train.sequence_length)
    return RunScorer(
        model, load_corpus_tokenizer(recipe.data.home, recipe.data.cache), recipe.model.padded_vocab, window, tokens
    )


class RunScorer:
    """A loaded model as a `Scorer`. window: tokens that the model sees at once; vocab: logits of a token."""

    def __init__(self, model: LoadedModel, tokenizer: Tokenizer, vocab: int, window: int, tokens: int) -> None:
        self.model, self.tokenizer, self.vocab, self.window, self.tokens = model, tokenizer, vocab, window, tokens

    def __call__(self, texts: Sequence[str]) -> Scores:
        read = [self._read(text) for text in texts]
        nats = np.zeros(len(texts))
        for owners, losses in self._windows([ids for ids, _ in read]):
            np.add.at(nats, owners, losses)
        sizes = np.array([len(ids) for ids, _ in read], dtype=np.int64)
        return Scores(nats, sizes, np.array([size for _, size in read], dtype=np.int64))

    def _read(self, text: str) -> tuple[np.ndarray, int]:
        """(ids that are read, bytes of UTF-8 that they stand for)."""
        if self.tokens:  # 64 characters a token are more than any text has, but for runs of white space
            text = text[: 64 * self.tokens]
        ids = self.tokenizer.encode(text) if text else np.zeros(0, dtype=np.int64)
        if self.tokens and len(ids) > self.tokens:
            ids = ids[: self.tokens]
            return ids, len(self.tokenizer.decode(ids).encode())
        return ids, len(text.encode())

    def _windows(self, read: list[np.ndarray]) -> Iterator[tuple[list[int], np.ndarray]]:
        """(text of each window, its nats), a batch at a time; windows of like length together."""
        shapes: dict[int, list[tuple[int, np.ndarray]]] = {}
        for text, ids in enumerate(read):
            line = np.concatenate([[self.tokenizer.eod], ids])
            for start in range(0, len(ids), self.window):
                part = line[start : start + self.window + 1]
                shapes.setdefault(self._shape(len(part) - 1), []).append((text, part))
        for length, windows in sorted(shapes.items()):
            rows = max(1, min(BATCH_TOKENS // length, BATCH_LOGITS // (length * self.vocab)))
            for start in range(0, len(windows), rows):
                batch = windows[start : start + rows]
                yield [text for text, _ in batch], self._nats([part for _, part in batch], rows, length)

    def _shape(self, length: int) -> int:
        shape = _SHORTEST
        while shape < length:
            shape *= 2
        return min(shape, self.window)

    @torch.inference_mode()
    def _nats(self, parts: list[np.ndarray], rows: int, length: int) -> np.ndarray:
        """Nats of each window, float64: its tokens but the first, each given those before."""
        samples = torch.full((rows, length + 1), self.tokenizer.eod, dtype=torch.int64)
        for row, part in enumerate(parts):
            samples[row, : len(part)] = torch.from_numpy(part)
        inputs, targets = samples[:, :-1], samples[:, 1:]
        self.model.clock.start(0, document_numbers(inputs, self.model.config.document_end))
        logits = self.model.model(inputs.contiguous())[..., : self.tokenizer.vocab_size].float()  # [S, B, V]
        losses = F.cross_entropy(logits.permute(1, 2, 0), targets, reduction="none").double()
        sizes = torch.tensor([len(part) - 1 for part in parts])
        there = torch.arange(length)[None, :] < sizes[:, None]
        return (losses[: len(parts)] * there).sum(1).numpy()
