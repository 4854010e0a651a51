"""The formats by name: an element format, a block length, and the kind of scale."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import ModelError
from models.formats.elements import ELEMENTS, Element


@dataclass(frozen=True)
class Format:
    """A block format. block: elements that share a scale, 0 for all along a dimension. scale: `e8m0`, a power of two a block,
    or `e4m3` under a float32 of the whole tensor."""

    name: str
    element: Element
    block: int
    scale: str

    @property
    def bits(self) -> float:
        """Of one element with its share of the scale: 8.25 for MXFP8."""
        return self.element.bits + (8 / self.block if self.block else 0)


FORMATS = {
    format_.name: format_
    for format_ in (
        *(Format(f"mxfp8_{name}", ELEMENTS[name], 32, "e8m0") for name in ("e4m3", "e5m2")),
        *(Format(f"mxfp6_{name}", ELEMENTS[name], 32, "e8m0") for name in ("e3m2", "e2m3")),
        Format("mxfp4_e2m1", ELEMENTS["e2m1"], 32, "e8m0"),
        Format("mxint8", ELEMENTS["int8"], 32, "e8m0"),
        Format("nvfp4", ELEMENTS["e2m1"], 16, "e4m3"),
    )
}


def format_of(name: str) -> Format:
    """The format of a name; ModelError tells which there are."""
    if name not in FORMATS:
        raise ModelError(f"number format {name!r}: no such format; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
