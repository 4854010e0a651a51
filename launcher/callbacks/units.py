"""Numbers as people read them: `2.8M`, `4 min 12 s`. Shared by the progress display and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "\N{EN DASH}"  # where there is no number
PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def count(number: float | None) -> str:
    """Three significant digits and a prefix: 2813000 is `2.81M`, 950 is `950`."""
    if number is None or not math.isfinite(number):
        return ABSENT
    for scale, prefix in PREFIXES:
        if abs(number) >= 0.9995 * scale:
            scaled = number / scale
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{prefix}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """The two largest units: `2 d 3 h`, `4 min 12 s`, `0.8 s`."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def baselines(facts: Mapping[str, Any]) -> dict[str, float]:
    """The baselines in the facts of a run, name to nats per token, worst first; empty where none were computed."""
    found = facts.get("baselines")
    values = {str(name): finite(value) for name, value in found.items()} if isinstance(found, Mapping) else {}
    known = [(name, value) for name, value in values.items() if value is not None]
    return dict(sorted(known, key=lambda pair: -pair[1]))
