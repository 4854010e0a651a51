"""Logits, loss and all gradients equal megatron-core's own GPTModel with the same weights, to 1e-5 in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOLERANCE = 1e-5
ROOT = Path(__file__).parents[2]
# as in megatron_oracle.py, which is not imported here: megatron-core is to stay out of this process
DIALECTS = (
    "gpt",
    "gpt-untied-grouped",
    "gpt-squared-relu",
    "llama",
    "llama-tied-multi-query",
    "llama-stretched",
    "llama-qk-norm-wide-heads",
    "llama-geglu-biases",
    "qwen2",
    "rotary-layernorm",
)


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Errors of every dialect, from one process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.megatron_oracle"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(DIALECTS)
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_logits_loss_and_gradients_equal_megatron_core(errors: dict[str, dict[str, float]], dialect: str) -> None:
    found = errors[dialect]
    print(dialect, found)
    assert found["logits"] <= TOLERANCE
    assert found["losses"] <= TOLERANCE
    assert found["gradients"] <= TOLERANCE, found["where"]
