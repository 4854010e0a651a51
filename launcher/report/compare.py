"""Where recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.callbacks.units import ABSENT

_ALWAYS_DIFFERENT = frozenset({"run.name", "run.dir"})


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists as dotted path to text: {"a": {"b": [1]}} is {"a.b.0": "1"}."""
    if isinstance(value, dict) and value:
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = list(enumerate(value))
    else:
        return {prefix: "null" if value is None else str(value)}
    flat: dict[str, str] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def differences(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted path to one text for each recipe, only of what is not the same in all, in the order of the recipes."""
    flats = [flatten(config) if config else {} for config in configs]
    paths = dict.fromkeys(path for flat in flats for path in flat)
    table = {path: [flat.get(path, ABSENT) for flat in flats] for path in paths if path not in _ALWAYS_DIFFERENT}
    return {path: values for path, values in table.items() if len(set(values)) > 1}
