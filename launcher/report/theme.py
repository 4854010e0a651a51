"""The colours of a picture: those of Okabe and Ito, which people with any kind of colour vision tell apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pen:
    """The colour and dashes of a line."""

    colour: str
    dashes: str


@dataclass(frozen=True)
class Theme:
    """The colours of a picture."""

    paper: str
    ink: str
    quiet: str  # labels of axes, baselines, borders
    grid: str
    series: tuple[str, ...]  # one for each run

    def pen(self, index: int) -> Pen:
        """What the run at an index is drawn with; when the colours are used up they come again, dashed."""
        again, colour = divmod(index, len(self.series))
        return Pen(self.series[colour], "--" if again else "-")


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2127",
    quiet="#6a737d",
    grid="#e6e9ec",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"),
)
DARK = Theme(
    paper="#15181d",
    ink="#e6e9ec",
    quiet="#98a2ad",
    grid="#2b3037",
    series=("#56b4e9", "#f28e3c", "#2bc197", "#d995bd", "#f0e442", "#3f8fd6", "#b8bec5"),
)
