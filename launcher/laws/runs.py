"""Our own runs as rows: of a sweep those that are done, of a directory those that have a summary; and their curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.laws.columns import DIRECTORY
from launcher.laws.form import LawError
from launcher.laws.table import flat


def runs_table(path: Path) -> Iterator[dict[str, str]]:
    """A row a run: labels of the sweep, figures, what its recipe says of batch and learning rate, and FLOPs."""
    from launcher.sweep.store import FILE_NAME as SWEEP

    if (path / SWEEP).is_file():
        yield from _sweep(path)
        return
    for summary in sorted([*path.glob("summary.json"), *path.glob("*/summary.json")]):
        yield _row(summary.parent, _json(summary), {"name": summary.parent.name})


def _sweep(path: Path) -> Iterator[dict[str, str]]:
    from launcher.sweep.store import Store

    store, seen = Store(path), set()
    try:
        rows = store.rows()
    finally:
        store.close()
    if not any(row.state == "done" for row in rows):
        raise LawError(
            f"{path}: none of its {len(rows)} runs is done; `triaxis sweep status {path}` tells how far they are"
        )
    for row in rows:
        if row.state == "done" and row.fingerprint not in seen:  # two points of one configuration are one run
            seen.add(row.fingerprint)
            yield _row(path / row.directory, dict(row.figures), dict(row.labels))


def _row(directory: Path, figures: dict[str, Any], labels: dict[str, str]) -> dict[str, str]:
    own = {"validation_loss", "tokens", "parameters", "bits_per_byte", "skipped_steps", "seconds"}
    chosen = {name: value for name, value in figures.items() if name in own}
    return flat({**labels, **_of_recipe(directory, chosen), **chosen, DIRECTORY: str(directory)})


def _of_recipe(directory: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Counts that the run's recipe gives: weights without embeddings, those a token uses, batch, rate, FLOPs."""
    if not (directory / "config.yaml").is_file():
        return {}
    from launcher.schema import recorded_model
    from models.config import count_active_parameters
    from models.flops import flops_per_token

    model, recipe = recorded_model(directory)
    train = recipe["train"]
    found: dict[str, Any] = {
        "batch_tokens": train["batch_tokens"],
        "learning_rate": recipe["optimizer"]["learning_rate"],
        "sequence_length": train["sequence_length"],
    }
    if model.vocab_size:
        tables = 1 if model.tied_embeddings else 2
        active = count_active_parameters(model)
        found["active_parameters"] = active
        found["parameters_without_embedding"] = active - tables * model.padded_vocab * model.hidden_size
        if "tokens" in figures:
            found["flops"] = flops_per_token(model, train["sequence_length"]) * float(figures["tokens"])
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LawError(f"{path}: cannot be read ({error})") from None


def curve(directory: Path) -> tuple[list[float], list[float]]:
    """(tokens, training losses) of every step of a run. LawError where it has no curve."""
    tokens: list[float] = []
    losses: list[float] = []
    try:
        with (directory / FILE_NAME).open() as lines:
            for line in lines:
                record = parse_line(line) or {}
                if record.get("kind") == "step" and isinstance(record.get("loss"), float):
                    tokens.append(float(record["tokens"]))
                    losses.append(record["loss"])
    except OSError as error:
        raise LawError(
            f"{directory}: has no curve ({error.strerror}); the envelope needs {FILE_NAME} of each run"
        ) from None
    return tokens, losses
