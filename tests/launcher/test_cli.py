"""The commands around a run, on a minute run: what they print, what they draw, what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.running import Triaxis, checkpoint, curve, flip_byte, last_step, minute


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Triaxis]:
    """A directory with runs/run, twelve steps long."""
    triaxis = Triaxis(tmp_path_factory.mktemp("cli"))
    triaxis.run(
        "train",
        *minute(corpus, 12, train__sample_length=5, checkpoint__every_tokens=512, train__sample_prompts="[the]"),
    )
    yield triaxis
    triaxis.end()


def test_a_run_leaves_what_the_readme_says(trained: Triaxis) -> None:
    run = trained.directory / "runs" / "run"
    for name in ("config.yaml", "metrics.jsonl", "environment.json", "summary.json", "report.html", "report.png"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "logs" / "rank_00000.log").exists()
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")


def test_sample_continues_a_text_and_is_deterministic(trained: Triaxis) -> None:
    outputs = [trained.run("sample", "runs/run", "the model", "--length", "20", "--seed", "3").output for _ in range(2)]
    assert outputs[0].startswith("the model")
    assert len(outputs[0].strip()) > len("the model")
    assert outputs[0] == outputs[1]
    assert trained.run("sample", "runs/run", "the model", "--length=20", "--seed=4").output != outputs[0]


def test_checkpoint_commands_tell_what_is_there(trained: Triaxis, tmp_path: Path) -> None:
    listed = trained.run("checkpoint", "list", "runs/run").output
    assert "whole" in listed
    assert "12" in listed
    inspected = trained.run("checkpoint", "inspect", "runs/run").output
    assert "layers.1.attention.qkv.weight" in inspected
    assert "96×32" in inspected
    assert "every byte is as it was committed" in trained.run("checkpoint", "verify", "runs/run").output
    flip_byte(checkpoint(trained.directory / "runs" / "run", 4) / "rank_00000.safetensors")
    assert "whole" in trained.run("checkpoint", "list", "runs/run").output


def test_report_of_two_runs_shows_where_their_recipes_differ(trained: Triaxis, corpus: Path) -> None:
    trained.run("train", *minute(corpus, 3, run__name="other", optimizer__learning_rate=1e-3))
    trained.run("report", "runs/run", "runs/other", "--out", "both")
    page = next(trained.directory.glob("both*/*.html"), None) or next(trained.directory.glob("both*.html"))
    assert "optimizer.learning_rate" in page.read_text()


def test_data_commands(trained: Triaxis, text: Path) -> None:
    options = ["corpus=files", "tokenizer=byte", "corpus.name=mine", f"corpus.sources=[{text}]"]
    built = trained.run("data", "build", *options, "corpus.validation_fraction=0.2").output
    assert "training tokens" in built
    assert "bigram" in built
    assert "tokenizer byte" in trained.run("data", "inspect", "corpora/mine").output
    assert "train is whole" in trained.run("data", "verify", "corpora/mine").output
    flip_byte(next((trained.directory / "corpora" / "mine").glob("**/*train*.tar")), at=2000)
    damaged = trained.run("data", "verify", "corpora/mine", code=1).output
    assert "Traceback" not in damaged
    assert ".tar" in damaged


def test_multirun_trains_every_combination(trained: Triaxis, corpus: Path) -> None:
    trained.run("train", *minute(corpus, 2, run__name="swept"), "--multirun", "seed=1,2")
    runs = sorted(path.name for path in (trained.directory / "runs").glob("swept*"))
    assert runs == ["swept_0", "swept_1"]
    first, second = (curve(trained.directory / "runs" / name) for name in runs)
    assert first != second
    assert last_step(trained.directory / "runs" / "swept_1") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "no such command"),
        (["sample", "runs/run"], "needs a run and a prompt"),
        (["sample", "runs/none", "x"], "runs/none"),
        (["sample", "runs/run", "x", "--lenght=3"], "--lenght=3"),
        (["report"], "name at least one run"),
        (["report", "runs/none"], "runs/none"),
        (["compare", "runs/run"], "takes two runs"),
        (["checkpoint", "list"], "takes one path"),
        (["checkpoint", "verify", "runs/none"], "runs/none"),
        (["data", "inspect", "nowhere"], "nowhere"),
        (["train", "--config-dir", "nowhere"], "--config-dir"),
        (["plan", "--world=7", "parallel.tensor=2"], "7"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_message_and_exit_code_1(trained: Triaxis, arguments: list[str], told: str) -> None:
    output = trained.run(*arguments, code=1).output
    assert told in " ".join(output.split())
    assert "Traceback" not in output
