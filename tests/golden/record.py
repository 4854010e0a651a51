"""The run behind the golden curve; as a script it records the curve anew (`make golden`).

The text is made up (`corpus.py`) and read as bytes: the curve does not depend on the Python that runs it. Twelve lines of a
curve say little about learning, but any change of initial weights, order, loss, optimizer or schedule moves them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.compare import Curve, read_curve, write_golden
from tests.golden.corpus import write_corpus
from tests.launcher.running import Triaxis

GOLDEN = Path(__file__).with_name("tiny.jsonl")
STEPS = 12


def recipe(text: Path) -> list[str]:
    """Overrides of the golden run: the model, optimizer and schedule of `experiment=tiny`, few tokens of bytes."""
    return [
        "experiment=tiny",
        "cluster=local",
        "tracker=none",
        "tokenizer=byte",
        "corpus=files",
        "precision=fp32",
        "corpus.name=golden",
        f"corpus.sources=[{text}]",
        "corpus.validation_fraction=0.2",
        "run.name=golden",
        f"train.tokens={STEPS * 1024}",
        "train.batch_tokens=1024",
        "train.micro_batch=2",
        "train.validation_tokens=1024",
        "train.sample_length=0",
        "schedule.warmup_tokens=4096",
        "optimizer.learning_rate=5e-4",  # gentle, so that rounding is not amplified
    ]


def run(triaxis: Triaxis, *more: str, **environment: str) -> Curve:
    """Train the golden run, with further overrides; returns its curve."""
    triaxis.run("train", *recipe(write_corpus(triaxis.directory / "text")), *more, **environment)
    return read_curve(triaxis.directory / "runs" / "golden")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        triaxis = Triaxis(Path(scratch))
        try:
            write_golden(run(triaxis), GOLDEN)
        finally:
            triaxis.end()
    print(GOLDEN)
