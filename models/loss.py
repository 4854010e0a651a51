"""What is summed up for each target beside its negative log-likelihood, and how it is computed. Imports no torch: the launcher
is light."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import ModelError


@dataclass(frozen=True)
class Terms:
    """The loss of a token is lse - (1 - s) logit[target] - s mean(logits) + z lse², in nats, where lse is the logarithm of the
    sum of exp(logits).

    z_loss: z, which keeps lse near 0 (PaLM, arXiv 2204.02311, section 5, has 1e-4). label_smoothing: s, the share of a target
    that is spread evenly over the vocabulary (arXiv 1512.00567), of which padding rows are a part, as they are of the softmax.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no such share."""
        if not self.z_loss >= 0:
            raise ModelError(f"loss.z_loss={self.z_loss}: must be at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise ModelError(f"loss.label_smoothing={self.label_smoothing}: must be at least 0 and below 1")

    @property
    def plain(self) -> bool:
        """Whether the loss is the target's negative log-likelihood alone."""
        return not self.z_loss and not self.label_smoothing


PLAIN = Terms()


@dataclass(frozen=True)
class LossConfig:
    """The loss of a target. Losses of training steps are told with all its terms, validation is the negative log-likelihood."""

    fused: bool = False
    """The output head gives losses, chunk of tokens by chunk, so that logits never take more than 256 MiB."""
    z_loss: float = 0.0
    """Times the square of the logarithm of the softmax's denominator, which it keeps near 0; PaLM has 1e-4."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        """Refuse what the terms refuse."""
        assert self.terms

    @property
    def terms(self) -> Terms:
        """Those of training."""
        return Terms(self.z_loss, self.label_smoothing)
