"""Checkpoints as text, for `triaxis checkpoint {list,inspect,verify}`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.files import data_name
from parallel.checkpoint.manifest import Manifest, read_manifest
from parallel.checkpoint.store import Store, resolve
from parallel.checkpoint.verify import verify_files


def table(rows: list[list[str]], right: set[int] | None = None) -> str:
    """Rows as aligned columns, the first row as heading; columns in `right` are aligned right."""
    right = right or set()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def size_text(size: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def age_text(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def list_text(path: Path | str) -> str:
    """The checkpoints of a run (or `checkpoints`) directory: step, tokens where the state has them, size, age, health."""
    path = Path(path)
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give a run's directory")
    rows = [["step", "tokens", "size", "age", "ranks", "state"]]
    for found in Store(directory).list():
        if found.manifest is None:
            rows.append([str(found.step), "", "", "", "", f"NOT WHOLE: {found.problem}"])
            continue
        m = found.manifest
        tokens = find_key(m.state, "tokens")
        tokens_text = f"{tokens:,}" if isinstance(tokens, int) else "-"
        age = age_text(time.time() - m.time)
        rows.append([str(m.step), tokens_text, size_text(m.size), age, str(m.world_size), "whole"])
    if len(rows) == 1:
        return f"{directory}: no checkpoints"
    return table(rows, right={0, 1, 2, 3, 4})


def find_key(state: dict[str, Any], key: str) -> Any:
    """The value of `key` in the state or in the nearest dictionary inside it, None where there is none."""
    level = [state]
    while level:
        for mapping in level:
            if key in mapping:
                return mapping[key]
        level = [v for mapping in level for v in mapping.values() if isinstance(v, dict)]
    return None


def inspect_text(path: Path | str, step: int | None = None, *, tensors: int | None = 40) -> str:
    """What is in a checkpoint: a summary, its state, its tensors (the first `tensors`, None: all), bytes per rank."""
    path = resolve(path, step)
    m = read_manifest(path)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(m.time))
    head = (
        f"{path}\nstep {m.step}, saved {when} by attempt {m.attempt} on {m.world_size} ranks, "
        f"{len(m.tensors)} tensors, {size_text(m.size)}"
    )
    parts = [head, "State\n" + _state_text(m.state), "Tensors\n" + _tensors_text(m, tensors), _ranks_text(m)]
    return "\n\n".join(parts)


def _state_text(state: dict[str, Any]) -> str:
    if not state:
        return "(empty)"
    width = max(map(len, state))
    return "\n".join(f"{key.ljust(width)}  {_short(json.dumps(value))}" for key, value in state.items())


def _short(text: str, limit: int = 96) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _tensors_text(m: Manifest, limit: int | None) -> str:
    rows = [["name", "shape", "dtype", "ranks"]]
    for name, t in list(m.tensors.items())[:limit]:
        rows.append([name, "×".join(map(str, t.shape)) or "scalar", t.dtype, str(len(t.ranks))])
    more = len(m.tensors) - len(rows) + 1
    return table(rows, right={3}) + (f"\n… and {more} more" if more else "")


def _ranks_text(m: Manifest) -> str:
    sizes = [m.file(data_name(rank)).size for rank in range(m.world_size)]
    rows = [["rank", "size"], *([str(rank), size_text(size)] for rank, size in list(enumerate(sizes))[:16])]
    text = "Bytes per rank\n" + table(rows, right={0, 1})
    if len(sizes) > 16:
        text += f"\n… and {len(sizes) - 16} more, from {size_text(min(sizes))} to {size_text(max(sizes))}"
    return text


def verify_text(path: Path | str, step: int | None = None) -> tuple[str, bool]:
    """Check every byte of a checkpoint; returns a line a file, and whether all are good."""
    path = resolve(path, step)
    reports = verify_files(path)
    rows = [["file", "size", "result"], *([r.name, size_text(r.size), r.problem or "ok"] for r in reports)]
    good = not any(report.problem for report in reports)
    verdict = "every byte is as it was committed" if good else "CORRUPT: do not load it; use another checkpoint"
    return f"{path}\n{table(rows, right={1})}\n{verdict}", good
