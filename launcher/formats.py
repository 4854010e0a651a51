"""When figures of block formats go where published runs diverged: one warning for each cause.

Su et al. (arXiv 2506.20752) trained about a thousand models in MX formats. Those that diverged had a gradient with a
multiplicative bias, from values that lie close together at the upper end of their blocks and are all clamped to the last bin:
norm gains, which are never quantised here, and some activations. They give no limits. Those below are ours: half as much
again as the worst that was seen in healthy runs of the smallest models (precision=nvfp4, mxfp4_mxfp6, mxfp8 and mxint8, 76,000
parameters, 120 steps), and beyond what numbers from a normal or a Laplace distribution come to in any format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from models.formats.telemetry import LayerFormats

LAST_BIN = {"nvfp4": 0.35}
"""Share of forward's activations in the last bin beyond which a warning is due, by format. Normal numbers have 0.11 in NVFP4,
where every block of 16 has its largest there, and healthy runs up to 0.23. The weight gradient's blocks are not judged: they
hold one feature of neighbouring tokens, which in young models is nearly the same number 32 times, so that a third may be in
the last bin."""
LAST_BIN_ELSEWHERE = 0.2
"""Of other formats. Normal numbers have 0.05 in MXFP4 under scale=floor, 0.015 or less elsewhere; healthy runs up to 0.12."""
SETTLING = 10
"""Counted steps from whose largest share a later rise is told: a model that has just begun moves much."""
RISE, LEAST = 1.5, 0.1
"""A share that is so many times its largest while settling, and no less than this."""
GRADIENT_BIAS = 0.05
"""Magnitude. Laplace numbers have 0.028 in MXFP4 under scale=floor, which arXiv 2502.20586 scales away, 0.01 under rceil, 0.006
in FP8 and FP6; healthy runs up to 0.033, in NVFP4."""
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
        self._looks = 0
        self._usual: dict[str, float] = {}
        self._causes = [
            Cause(_crowded, _tell_crowded),
            Cause(self._risen, self._tell_risen),
            Cause(_biased, _tell_bias),
            Cause(_noisy, _tell_noise),
        ]

    def look(self, operands: Iterable[LayerFormats]) -> list[str]:
        """Messages about a step's operands."""
        operands, told = list(operands), []
        self._looks += bool(operands)
        if self._looks <= SETTLING:
            self._usual |= {one.place: max(one.last_bin, self._usual.get(one.place, 0.0)) for one in operands}
        for cause in list(self._causes):
            bad = [(badness, one) for one in operands if (badness := cause.badness(one)) is not None]
            if not bad:
                continue
            self._causes.remove(cause)
            worst = max(bad, key=lambda found: found[0])[1]
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            told.append(f"{worst.format}, {worst.place}{others}: {cause.tell(worst)}; {CURE}")
        return told

    def _risen(self, one: LayerFormats) -> float | None:
        usual = self._usual.get(one.place, 1.0)
        return one.last_bin - usual if _judged(one) and one.last_bin > max(RISE * usual, LEAST) else None

    def _tell_risen(self, one: LayerFormats) -> str:
        return f"{one.last_bin:.1%} are in the last bin, up from {self._usual[one.place]:.1%}, {BEFORE}"


def _judged(one: LayerFormats) -> bool:
    return one.role == "activation" and one.product == "forward"


def _limit(one: LayerFormats) -> float:
    return LAST_BIN.get(one.format, LAST_BIN_ELSEWHERE)


def _crowded(one: LayerFormats) -> float | None:
    return one.last_bin - _limit(one) if _judged(one) and one.last_bin > _limit(one) else None


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
