"""An encoder-decoder through the command line: the experiment at one process and at a 3D layout, gone on with at the other,
and asked to go on with a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.tokenizers import Tokenizer
from launcher.sampling import sample_text
from tests.launcher.running import Triaxis, minute
from tests.launcher.test_objective_runs import special  # noqa: F401 (a fixture)

# the experiments' objectives and kind of model, minute
MINUTE = ["model.encoder_layers=2", "model.encoder_length=24", "schedule.warmup_tokens=0"]


def steps_of(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["t5_tiny", "t5_tiny_spans"])
def test_it_trains_alike_at_one_process_and_at_three_axes(experiment: str, special: Path, tmp_path: Path) -> None:  # noqa: F811
    """Four steps at 1 x 1 x 1, where half of them were made at 2 x 2 x 2 the other time."""
    options = [f"experiment={experiment}", *MINUTE]
    recipe = minute(special, 4, *options, train__micro_batch=1, train__sample_length=4, train__sequence_length=32)
    found = {}
    for name, first in (("one", []), ("three", ["parallel=3d", "train.max_steps=2"])):
        (tmp_path / name).mkdir()
        triaxis = Triaxis(tmp_path / name)
        try:
            if first:
                triaxis.run("train", *recipe, *first)
            triaxis.run("train", *recipe)
            found[name] = steps_of(triaxis.directory)
            told = triaxis.run("sample", "runs/run", "the model", "--length", "8", "--seed", "3").output
            assert "the model" in told
        finally:
            triaxis.end()
    assert [line["step"] for line in found["one"]] == [line["step"] for line in found["three"]] == [1, 2, 3, 4]
    for option in ("loss", "grad_norm"):
        ours, theirs = ([line[option] for line in found[name]] for name in ("three", "one"))
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert [line["batch_hash"] for line in found["one"]] == [line["batch_hash"] for line in found["three"]]


def test_an_encoder_is_given_the_prompt_and_padding_is_marked() -> None:
    seen: list[tuple] = []

    class Listener:
        """A model that answers the position it is asked about."""

        def next_logits(
            self, tokens: torch.Tensor, position: int, documents: torch.Tensor | None = None
        ) -> torch.Tensor:
            assert documents is not None
            seen.append((tokens[0].tolist(), position, documents[0].tolist()))
            return torch.eye(257)[position][None]

    tokenizer = Tokenizer("byte")
    end, text = tokenizer.eod, tokenizer.encode("abc").tolist()
    sample_text(Listener(), tokenizer, "abc", length=4, shape=(2, 8), temperature=0, seed=1, encoder=5)
    assert seen[0] == ([*text, end, end, end, end, end], 5, [0, 0, 0, -1, -1, 0, 0, 0])
    assert seen[1] == ([*text, end, end, end, 5, end], 6, [0, 0, 0, -1, -1, 0, 0, 0])
    assert seen[3] == ([*text, end, end, 5, 6, 7], 7, [0, 0, 0, -1, -1, 0, 0, 0]), "the last of what was told"
