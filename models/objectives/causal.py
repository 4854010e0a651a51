"""The next token of a packed sample."""

from __future__ import annotations

from models.objectives.base import Example, Samples


class Causal:
    """Predict every next token."""

    marks_prefix = False

    def __call__(self, samples: Samples) -> Example:
        """Row for row: inputs are the first S tokens, targets the last S."""
        tokens = samples.tokens
        weights = samples.token_weights()[:, 1:]
        return Example(tokens[:, :-1].copy(), tokens[:, 1:].copy(), weights.copy())
