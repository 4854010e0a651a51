"""`sweep:` of a recipe: the axes along which its runs differ, and how their figures are laid beside one another."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.sweep.search import SearchConfig
from launcher.sweep.search import SweepError as SweepError


@dataclass(frozen=True)
class SweepConfig:
    """What `triaxis sweep` runs. `triaxis train` trains the recipe as it stands, without any of this."""

    name: str = ""
    """Name of the sweep; its directory is sweep.dir/sweep.name. Empty takes run.name."""
    dir: str = "sweeps"
    """Directory that holds sweeps."""
    axes: dict = field(default_factory=dict)
    """Axes by name, each a map of labels to overrides, {small: [model.layers=2], large: [model.layers=8]}, or, named for an
    option or a group, a list of its values, {seed: [1, 2]}. A run for every combination, the last axis fastest."""
    only: dict = field(default_factory=dict)
    """Some labels of an axis instead of all: sweep.only.size=[small]."""
    workers: int = 1
    """Runs at a time on this machine."""
    metric: str = "validation_loss"
    """The figure that is compared: validation_loss, bits_per_byte, tokens, parameters, and of its steps seconds and flops."""
    compare: str = ""
    """Axis whose labels are laid beside one another; empty takes the last that is not `repeat`."""
    baseline: str = ""
    """Label of that axis from which gaps are counted; empty for none."""
    repeat: str = "seed"
    """Axis whose runs repeat one another, where there is one of this name: means are over it, and spreads."""
    law: str = ""
    """Law of `triaxis fit` that the sweep is run for: its report fits it and draws its picture; empty for none."""
    published: dict = field(default_factory=dict)
    """Gaps that others found, by label of the compared axis: {mxfp6: {GPT-20M: 0.03}}."""
    flops: float = 0.0
    """Most floating-point operations, forward and backward, of all runs together: more are refused before the first begins, and
    a search ends before the trial that would exceed them; 0 for no limit."""
    search: SearchConfig = SearchConfig()
    """How runs are found where they are not every combination of the axes."""
    keep_checkpoints: bool = True
    """Keep the checkpoints of finished runs; false leaves their curves, figures and reports."""

    def __post_init__(self) -> None:
        """Refuse names, axes and labels that cannot be."""
        if self.name and (not self.name.strip(".") or "/" in self.name):
            raise SweepError(f"sweep.name={self.name!r}: must be a plain name; set sweep.dir for the directory")
        if self.workers < 1:
            raise SweepError(f"sweep.workers={self.workers}: must be at least 1")
        if self.flops < 0:
            raise SweepError(f"sweep.flops={self.flops:g}: must be at least 0")
        if self.axes and self.search.space:
            raise SweepError(
                "sweep.axes and sweep.search.space: a search draws its trials from the space alone; leave one out"
            )
        if self.metric not in METRICS:
            raise SweepError(f"sweep.metric={self.metric}: choose one of {', '.join(METRICS)}")
        labels = {name: list(overrides_of(name, axis)) for name, axis in self.axes.items()}
        for name, chosen in self.only.items():
            _known(f"sweep.only.{name}", str(name), labels, "axis", "axes")
            for label in _each(chosen):
                _known(f"sweep.only.{name}={label}", _label_of(label, labels[name]), labels[name], "label", "labels")
        if self.axes:
            self._check_comparison(labels)

    def _check_comparison(self, labels: dict[str, list[str]]) -> None:
        if self.compare:
            _known(f"sweep.compare={self.compare}", self.compare, labels, "axis", "axes")
        if self.compare and self.compare == self.repeat:
            raise SweepError(
                f"sweep.compare={self.compare}: runs of the axis sweep.repeat={self.repeat} repeat one another; choose "
                "another axis to compare"
            )
        compared = labels[self.compared]
        if self.baseline:
            _known(f"sweep.baseline={self.baseline}", self.baseline, compared, "label", "labels")
        for label, found in self.published.items():
            _known(f"sweep.published.{label}", str(label), compared, "label", "labels")
            gaps = found.values() if isinstance(found, Mapping) else [found]
            if not isinstance(found, Mapping) or not all(isinstance(gap, (int, float)) for gap in gaps):
                raise SweepError(f"sweep.published.{label}={found!r}: must be a map of names to gaps")

    @property
    def compared(self) -> str:
        """The axis whose labels are compared."""
        if not self.axes:
            return "trial"
        others = [name for name in self.axes if name != self.repeat]
        return self.compare or str((others or list(self.axes))[-1])

    def labels(self, axis: str) -> list[str]:
        """Labels of an axis that were chosen, in the axis's order."""
        known = list(overrides_of(axis, self.axes[axis]))
        if axis not in self.only:
            return known
        wanted = {_label_of(label, known) for label in _each(self.only[axis])}
        return [label for label in known if label in wanted]


METRICS = ("validation_loss", "bits_per_byte", "tokens", "parameters", "seconds", "flops")
"""Figures that a table may be of."""


def overrides_of(name: str, axis: Any) -> dict[str, list[str]]:
    """Overrides by label of an axis, whichever way it is written."""
    if isinstance(axis, (list, tuple)):
        axis = {str(value): [f"{name}={value}"] for value in axis}
    if not isinstance(axis, Mapping) or not axis:
        raise SweepError(f"sweep.axes.{name}={axis!r}: must be a map of labels to overrides, or a list of values")
    found = {str(label): _overrides(f"sweep.axes.{name}.{label}", given) for label, given in axis.items()}
    return found


def _overrides(place: str, given: Any) -> list[str]:
    given = [] if given is None else given
    if not isinstance(given, (list, tuple)):
        raise SweepError(f"{place}={given!r}: must be a list of overrides, such as [optimizer.learning_rate=1e-3]")
    for text in given:
        if not isinstance(text, str) or "=" not in text:
            raise SweepError(f"{place}: {text!r} is not an override; write option=value")
        if text.lstrip("+").startswith(("sweep.", "run.name=", "run.dir=", "experiment=")):
            raise SweepError(f"{place}: {text} cannot differ from run to run; leave it out")
    return list(given)


def _each(chosen: Any) -> Sequence[Any]:
    return chosen if isinstance(chosen, (list, tuple)) else [chosen]


def _label_of(given: Any, known: Sequence[str]) -> str:
    """A label as it was given; of a number, which Hydra reads 3e11 as, the label that is that number."""

    def number(label: str) -> float | None:
        with contextlib.suppress(ValueError):
            return float(label)
        return None

    same = [label for label in known if not isinstance(given, str) and number(label) == given]
    return same[0] if same and str(given) not in known else str(given)


def _known(place: str, name: str, known: Any, what: str, plural: str) -> None:
    names = [str(one) for one in known]
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    cure = f"did you mean {near[0]}?" if near else f"{plural}: {', '.join(names) or 'none'}"
    raise SweepError(f"{place}: no such {what}; {cure}")
