"""Number formats of blocks: OCP Microscaling v1.0 and NVFP4, in storage as in arithmetic."""

from models.formats.elements import ELEMENTS, ROUNDINGS, Element
from models.formats.names import FORMATS, Format, format_of
from models.formats.quantize import Draw, quantize
from models.formats.scales import MODES
from models.formats.tensor import MXTensor

__all__ = [
    "ELEMENTS",
    "FORMATS",
    "MODES",
    "ROUNDINGS",
    "Draw",
    "Element",
    "Format",
    "MXTensor",
    "format_of",
    "quantize",
]
