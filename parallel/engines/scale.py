"""The dynamic loss scale of fp16 (Micikevicius et al., arXiv 1710.03740): it lifts small gradients over the smallest number."""

from __future__ import annotations

from parallel.config import PrecisionConfig


class LossScale:
    """What losses are multiplied by before backward, and gradients divided by after it; 1 always but in fp16.

    Every rank adapts it alike, since all know whether the step was skipped.
    """

    def __init__(self, precision: PrecisionConfig) -> None:
        self._dynamic = precision.name == "fp16"
        self._window = precision.loss_scale_window
        self._good_steps = 0
        self.factor = 2.0**precision.initial_loss_scale_power if self._dynamic else 1.0

    def adapt(self, skipped: bool) -> None:
        """After each step: half after an overflow, double after a window of steps without one."""
        if not self._dynamic:
            return
        if skipped:
            self.factor, self._good_steps = max(1.0, self.factor / 2), 0
            return
        self._good_steps += 1
        if self._good_steps == self._window:
            self.factor, self._good_steps = self.factor * 2, 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"loss_scale": self.factor, "good_steps": float(self._good_steps)}

    def load(self, state: dict[str, float]) -> None:
        """Go on with a saved scale; one of 1 was saved by another precision, and fp16 begins anew."""
        if self._dynamic and state.get("loss_scale", 1.0) != 1.0:
            self.factor, self._good_steps = state["loss_scale"], int(state.get("good_steps", 0))
