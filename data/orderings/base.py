"""What an ordering is made by, and of: a method's options are a frozen dataclass that is called on documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data.documents import Documents
from data.progress import Progress


@dataclass(frozen=True)
class Ordered:
    """An ordering of one split.

    numbers: int64 [at most documents], each document's number at most once, in reading order.
    columns: what was found out about each document, for the table beside the ordering, [documents] in storage order.
    measured: figures that say how good the ordering is, for people; plain data.
    """

    numbers: np.ndarray
    columns: dict[str, pa.Array] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """The options of a method. Reads nothing but the documents and its options, and is deterministic to the last bit."""

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        """The ordering of one split; DataError for options that do not fit these documents."""
        ...
