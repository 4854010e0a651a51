"""When figures of block formats go where published runs diverged: one warning for each cause.

Su et al. (arXiv 2506.20752) trained about a thousand models in MX formats. Those that diverged had a gradient with a
multiplicative bias, from values that lie close together at the upper end of their blocks and are all clamped to the last bin:
norm gains, which are never quantised here, and some activations. They give no limits; those below are ours, set so that numbers
from a normal or a Laplace distribution, rounded to nearest, stay within them in every format, but for FP4 under scale=floor,
which is known for its bias (arXiv 2502.20586 scales it away).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from models.formats.telemetry import LayerFormats

LAST_BIN = {"nvfp4": 0.2}
"""Share of activations in the last bin beyond which a warning is due, by format. Normal numbers have 0.05 in MXFP4 under
scale=floor, 0.015 or less in other MX formats, and 0.11 in NVFP4, where every block of 16 has its largest there."""
LAST_BIN_ELSEWHERE = 0.1
RISE, LEAST_RISE = 1.5, 0.01
"""A share of activations in the last bin that has become so many times what this process saw first, and by as much more."""
GRADIENT_BIAS = 0.02
"""Magnitude. Normal and Laplace numbers have 0.006 or less in FP8 and FP6, 0.01 in MXFP4 under scale=rceil."""
GRADIENT_SNR = 5.0
"""dB: noise of more than half of the gradient's own size. Stochastic MXFP4, the noisiest format in use, has about 15 dB."""

BEFORE = "as before divergences in arXiv 2506.20752"
CURE = (
    "keep such layers high (precision.products.high, high_first, high_last), or choose scales that nothing saturates "
    "(precision.products.scale=rceil) or more bits"
)


@dataclass(frozen=True)
class Cause:
    """Something to warn of. badness: of an operand, None where it is well; tell: what the worst is like."""

    badness: Callable[[LayerFormats], float | None]
    tell: Callable[[LayerFormats], str]


class FormatsWatch:
    """Warns once for each cause in the life of a process, and names the worst operand."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._causes = [
            Cause(_crowded, _tell_crowded),
            Cause(self._rise, self._tell_rise),
            Cause(_biased, _tell_bias),
            Cause(_noisy, _tell_noise),
        ]

    def look(self, operands: Iterable[LayerFormats]) -> list[str]:
        """Messages about a step's operands."""
        operands, told = list(operands), []
        for one in operands:
            self._first.setdefault(one.place, one.last_bin)
        for cause in list(self._causes):
            bad = [(badness, one) for one in operands if (badness := cause.badness(one)) is not None]
            if not bad:
                continue
            self._causes.remove(cause)
            worst = max(bad, key=lambda found: found[0])[1]
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            told.append(f"{worst.format}, {worst.place}{others}: {cause.tell(worst)}; {CURE}")
        return told

    def _tell_rise(self, one: LayerFormats) -> str:
        return f"{one.last_bin:.1%} are in the last bin, at first {self._first[one.place]:.1%}, {BEFORE}"

    def _rise(self, one: LayerFormats) -> float | None:
        first = self._first[one.place]
        risen = one.role == "activation" and one.last_bin > first * RISE and one.last_bin > first + LEAST_RISE
        return one.last_bin - first if risen else None


def _limit(one: LayerFormats) -> float:
    return LAST_BIN.get(one.format, LAST_BIN_ELSEWHERE)


def _crowded(one: LayerFormats) -> float | None:
    return one.last_bin - _limit(one) if one.role == "activation" and one.last_bin > _limit(one) else None


def _biased(one: LayerFormats) -> float | None:
    return abs(one.bias) if one.role == "gradient" and abs(one.bias) > GRADIENT_BIAS else None


def _noisy(one: LayerFormats) -> float | None:
    return -one.snr if one.role == "gradient" and one.snr < GRADIENT_SNR else None


def _tell_crowded(one: LayerFormats) -> str:
    return f"{one.last_bin:.1%} are in the last bin, more than {_limit(one):.0%}, {BEFORE}"


def _tell_bias(one: LayerFormats) -> str:
    return (
        f"is multiplied by {1 + one.bias:.3f} where it is quantised, a bias of more than {GRADIENT_BIAS:.0%}, {BEFORE}"
    )


def _tell_noise(one: LayerFormats) -> str:
    return f"{one.snr:.1f} dB of signal to noise, less than {GRADIENT_SNR:g}: noise of more than half of its size"
