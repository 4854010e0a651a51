"""`triaxis compare`: two curves step by step; what golden curves are held against."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from launcher.config import RecipeError

Curve = dict[int, tuple[float, float]]  # step -> (loss, gradient norm)


@dataclass(frozen=True)
class Difference:
    """Largest relative differences over the steps that both curves have."""

    steps: int
    loss: float
    loss_step: int
    grad_norm: float
    grad_norm_step: int

    @property
    def bitwise(self) -> bool:
        """Whether every number is the same."""
        return self.loss == 0 and self.grad_norm == 0


def read_curve(path: Path) -> Curve:
    """Loss and gradient norm by step, of a run directory, a metrics.jsonl or a golden file."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{file}: cannot be read as a curve ({error}); name a run directory or a .jsonl file"
        ) from error
    steps = [line for line in lines if "loss" in line and line.get("kind", "step") == "step"]
    if not steps:
        raise RecipeError(f"{file}: holds no step with a loss; name a run that has trained")
    return {line["step"]: (_number(line["loss"]), _number(line["grad_norm"])) for line in steps}


def write_golden(curve: Curve, path: Path) -> None:
    """Write a curve as a golden file: one line a step, all digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "loss": loss, "grad_norm": norm}) for step, (loss, norm) in sorted(curve.items())
    ]
    path.write_text("\n".join(lines) + "\n")


def compare(first: Curve, second: Curve) -> Difference:
    """Largest relative differences on common steps."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise RecipeError("compare: the curves share no step")
    found: list[tuple[float, int]] = []
    for index in (0, 1):
        found.append(max((_relative(first[step][index], second[step][index]), step) for step in common))
    (loss, loss_step), (norm, norm_step) = found
    return Difference(len(common), loss, loss_step, norm, norm_step)


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _tolerance(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"--tolerance={text}: must be a number, such as 1e-5") from None


def compare_command(arguments: list[str]) -> int:
    """Compare two runs or files; with --write, keep the first as a golden file. Exit code 1 beyond the tolerance."""
    tolerance = 0.0
    places = [argument for argument in arguments if not argument.startswith("--")]
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--tolerance" and value:
            tolerance = _tolerance(value)
        elif name == "--write" and value and len(places) == 1:
            write_golden(read_curve(Path(places[0])), Path(value))
            print(value)
            return 0
        elif argument.startswith("--"):
            raise RecipeError(f"{argument}: compare knows --tolerance=X (relative) and --write=FILE (with one run)")
    if len(places) != 2:
        raise RecipeError("compare: takes two runs or curve files, such as runs/tiny tests/golden/tiny.jsonl")
    found = compare(read_curve(Path(places[0])), read_curve(Path(places[1])))
    print(f"{found.steps} common steps: " + ("bitwise equal" if found.bitwise else "largest relative differences"))
    if not found.bitwise:
        print(f"  loss       {found.loss:.3e} at step {found.loss_step}")
        print(f"  grad norm  {found.grad_norm:.3e} at step {found.grad_norm_step}")
    return 0 if max(found.loss, found.grad_norm) <= tolerance or found.bitwise else 1
