"""Published training speeds as rows of a table, and what a plan says to each.

A row gives a model's shape, its layout and what was measured; what it leaves to its paper (micro-batches, stages of a
rank, the stack) comes from further columns, or for the papers below from here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from launcher.plan.chips import chip_of
from launcher.plan.errors import PlanError
from launcher.plan.machine import Machine
from launcher.plan.networks import Fabric, network_of
from launcher.plan.software import SOFTWARE
from launcher.plan.step import Step, Work, step_of
from launcher.schema import build
from models.config import ModelConfig, count_parameters
from models.flops import flops_per_token
from parallel.config import ParallelConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "model"
CHIPS = {
    "A100": "a100_80gb",
    "H100": "h100_sxm",
    "H800": "h800",
    "H200": "h200",
    "B200": "b200",
    "MI300X": "mi300x",
    "GH200": "gh200",
}
FABRICS = {"a100_80gb": "hdr_8x200"}
NARAYANAN = {
    24: (16, 1),
    30: (16, 1),
    36: (16, 1),
    40: (8, 1),
    48: (4, 1),
    60: (2, 3),
    80: (2, 2),
    96: (1, 2),
    105: (1, 3),
    128: (1, 1),
}
"""Layers -> sequences of a micro-batch and stages of a rank: Megatron-LM's examples/sc21/run_table_1.sh."""


@dataclass(frozen=True)
class Row:
    """A published figure. seconds: of a step; micro_batch, stack and the rest of the layout as its source says or as
    assumed."""

    source: str
    work: Work
    parallel: ParallelConfig
    machine: Machine
    seconds: float
    tflops: float
    """TFLOP/s a GPU as the source counts them; 0 where it tells only seconds."""

    @property
    def gpus(self) -> int:
        """Processes."""
        return self.parallel.model_parallel * self.parallel.data


def read_rows(path: Path) -> list[Row]:
    """Rows of a file of tab-separated columns; lines that begin with # are comments."""
    try:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    except OSError as error:
        raise PlanError(f"--rows={path}: cannot be read ({error.strerror}); name a file of published rows") from error
    try:
        return [_row(cells) for cells in csv.DictReader(lines, delimiter="\t")]
    except (KeyError, TypeError) as error:
        raise PlanError(
            f"--rows={path}: a row has no {error}; columns as in tests/benchmarks/throughput.tsv"
        ) from error


def predict(row: Row) -> Step:
    """What the plan says."""
    return step_of(row.work, row.parallel, row.machine)


def _row(cells: dict[str, str]) -> Row:
    told = {key: value for key, value in cells.items() if value not in (None, "", "-")}
    source, layers = told["source"], int(told["layers"])
    details = _details(source, layers) | {
        key: value for key, value in told.items() if key not in ("source", "params_b")
    }
    model = model_of(float(told["params_b"]), layers, int(told["hidden"]), int(told["heads"]), int(told["seq"]))
    stages = int(details["virtual"])
    tensor, pipeline, context = (int(details[name]) for name in ("tp", "pp", "context"))
    gpus, product = int(told["gpus"]), tensor * pipeline * context
    if gpus % product:
        raise PlanError(f"gpus={gpus}: tp x pp x context = {product} does not divide it ({source})")
    parallel = ParallelConfig(
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        data=gpus // product,
        expert=int(details["expert"]),
        virtual_stages=stages,
        schedule=details.get("schedule", "interleaved_1f1b" if stages > 1 else "1f1b"),
        zero_stage=int(details["zero"]),
        sequence_parallel=details["sequence_parallel"] == "yes" and tensor > 1,
        recompute=details["recompute"],
    )
    chip = chip_of(CHIPS.get(told["chip"].split("-")[0].upper(), told["chip"]))
    fabric = Fabric(chip, network_of(details.get("fabric", FABRICS.get(chip.name, "ndr_8x400"))), int(details["node"]))
    machine = Machine(fabric, SOFTWARE[details["stack"]], eight=details["fp8"] == "yes")
    even = stages * pipeline > 1 and layers % (stages * pipeline) == 0
    work = Work(model, int(told["seq"]), int(told["batch"]), int(details["micro_batch"]), even_stages=even)
    tflops = float(told.get("tflops", 0))
    seconds = (
        float(told["step_seconds"]) if "step_seconds" in told else _counted(work, details) / (tflops * 1e12 * gpus)
    )
    return Row(source, work, parallel, machine, seconds, tflops)


def _details(source: str, layers: int) -> dict[str, str]:
    """What a row leaves to its paper."""
    plain = {"micro_batch": "1", "virtual": "1", "context": "1", "expert": "1", "node": "8", "fp8": "no", "zero": "1"}
    plain |= {"recompute": "none", "sequence_parallel": "yes", "stack": "megatron_core", "counts": "model"}
    old = {"recompute": "block", "sequence_parallel": "no", "counts": "narayanan"}
    if source.startswith("Narayanan"):
        micro_batch, stages = NARAYANAN.get(layers, (1, 1))
        own = {"micro_batch": str(micro_batch), "virtual": str(stages), "stack": "megatron_2021", "zero": "0"}
        return plain | old | own
    if source.startswith("MT-NLG"):
        return plain | old | {"stack": "deepspeed_2021"}
    return plain


def _counted(work: Work, details: dict[str, str]) -> float:
    """FLOPs of a step as a source counts them: Narayanan's formula, which has all layers recomputed and whole score
    matrices, or `flops_per_token`."""
    model = work.model
    if details["counts"] == "narayanan":
        hidden, layers, length = model.hidden_size, model.layers, work.sequence
        share = 1 + length / (6 * hidden) + model.vocab_size / (16 * layers * hidden)
        return 96.0 * work.tokens * layers * hidden**2 * share
    return work.tokens * flops_per_token(model, work.sequence)


@lru_cache(maxsize=1)
def _presets() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))]


def model_of(billions: float, layers: int, hidden: int, heads: int, length: int) -> ModelConfig:
    """The preset of that shape, or a GPT of Megatron's, or where neither has so many parameters a gated model that has."""
    for told in _presets():
        same = (told.get("layers"), told.get("hidden_size"), told.get("heads")) == (layers, hidden, heads)
        if not (same or (told["name"] == "deepseek_v3" and (layers, hidden) == (61, 7168))) or "encoder_layers" in told:
            continue
        model = build(ModelConfig, told | {"max_sequence": max(length, told["max_sequence"])}, "model")
        if abs(count_parameters(model) / billions / 1e9 - 1) < 0.02:
            return model
    bare = ModelConfig(
        name=f"{billions:g}B", hidden_size=hidden, layers=layers, heads=heads, max_sequence=length, vocab_size=51200
    )
    gpt = replace(bare, positions="learned", norm="layernorm", activation="gelu", bias=True)
    if abs(count_parameters(gpt) / billions / 1e9 - 1) < 0.05:
        return gpt
    gated = replace(bare, vocab_size=128256, tied_embeddings=False, ffn_size=256)
    per_feature = 3 * layers * hidden
    width = 256 + round((billions * 1e9 - count_parameters(gated)) / per_feature / 256) * 256
    if width < 256:
        raise PlanError(f"params_b={billions:g}: fewer than layers={layers} of hidden={hidden} have; correct the row")
    return replace(gated, ffn_size=width)
