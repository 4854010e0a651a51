"""The commands around a run, on a minute run: what they print, what they draw, what they refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.tokenizers import Tokenizer
from launcher.cli import HANDLERS, main
from launcher.help import COMMANDS
from launcher.sampling import sample_text
from parallel.checkpoint.files import data_name
from tests.launcher.running import BATCH, Together, Triaxis, checkpoint, curve, flip_byte, minute, records, validations

Call = Callable[..., str]


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path) -> Together:
    """A run of twelve steps with samples; a sweep of two seeds."""
    recipe = minute(corpus, 12, tracker__report=True, train__sample_length=5, checkpoint__every_tokens=4 * BATCH)
    more = ["train.sample_prompts=['the ',def]", f"train.sample_every_tokens={6 * BATCH}"]
    together.add("run", lambda triaxis: train(triaxis, *recipe, *more))
    swept = minute(corpus, 2, run__name="swept")
    together.add("sweep", lambda triaxis: train(triaxis, *swept, "--multirun", "seed=1,2"))
    return together


def train(triaxis: Triaxis, *arguments: str) -> tuple[Path, str]:
    """Train; returns where, and what was said."""
    done = triaxis.run("train", *arguments)
    return triaxis.directory, done.output


@pytest.fixture
def call(ran: Together, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """call(*arguments, code=0): what a command prints, in the directory that holds runs/run. In this process, since a
    start costs seconds."""
    monkeypatch.chdir(ran["run"][0])
    threads = torch.get_num_threads()

    def run(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == code
        out, err = capfd.readouterr()
        if code:
            assert "Traceback" not in err
            assert err.count("\n") <= 1, err
        return out + err

    yield run
    torch.set_num_threads(threads)


def test_a_run_leaves_what_the_readme_says(ran: Together) -> None:
    directory, output = ran["run"]
    run = directory / "runs" / "run"
    for name in ("config.yaml", "metrics.jsonl", "environment.json", "summary.json", "report.html", "report.png"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "logs" / "rank_00000.log").exists()
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["vocab_size"] == 257 and config["parallel"]["data"] == 1
    for part in (
        "mesh  tensor 1 x pipeline 1 x data 1",
        "parameters 28,896",
        "12 steps",
        "bigram baseline",
        "report.html",
    ):
        assert part in output, part
    nats, bits = validations(run)[12]
    assert f"{nats:.4f} nats/token" in output and f"{bits:.4f} bits/byte" in output
    samples = [(record["step"], record["prompt"]) for record in records(run, "sample")]
    assert samples == [(6, "the "), (6, "def"), (12, "the "), (12, "def")]


def test_sample_continues_a_text_and_is_deterministic(call: Call) -> None:
    text = call("sample", "runs/run", "the model", "--length", "20", "--seed", "3")
    assert text.startswith("the model") and len(text.strip()) > len("the model")
    assert call("sample", "runs/run", "the model", "--length", "20", "--seed", "3") == text
    assert call("sample", "runs/run", "the model", "--length=20", "--seed=4") != text
    assert call("sample", "runs/run", "the model", "--length=20", "--seed=3", "--step=4") != text
    both = call("sample", "runs/run", "the model", "--length=20", "--seed=3", "--count=2")
    assert both.startswith(text) and len(both) > len(text)


def test_rows_that_pad_the_vocabulary_are_never_sampled() -> None:
    class Padded:
        """A model that likes nothing better than its padding."""

        def next_logits(
            self, tokens: torch.Tensor, position: int, documents: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.tensor([[0.0] * 257 + [1000.0] * 3])

    text = sample_text(Padded(), Tokenizer("byte"), "", length=40, shape=(1, 8), temperature=1.0, seed=1)
    assert len(text.encode()) >= 8


def test_checkpoint_commands_tell_what_is_there(call: Call) -> None:
    lines = call("checkpoint", "list", "runs/run").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["4", "8", "12"]
    assert all("whole" in line for line in lines[2:]) and "1,536" in lines[-1]
    inspected = call("checkpoint", "inspect", "runs/run")
    for part in ("layers.1.attention.qkv.weight", "96×32", "optimizer.exp_avg", "step 12", "counters", "data"):
        assert part in inspected, part
    assert "step 4," in call("checkpoint", "inspect", "runs/run/checkpoints/step_000000004")
    assert "every byte is as it was committed" in call("checkpoint", "verify", "runs/run")


def test_checkpoint_commands_tell_what_is_damaged(call: Call, tmp_path: Path) -> None:
    run = Path(shutil.copytree("runs/run", tmp_path / "run"))
    flip_byte(checkpoint(run, 12) / data_name(0))
    (checkpoint(run, 8) / data_name(0)).unlink()
    verified = call("checkpoint", "verify", str(run), code=1)
    assert "CORRUPT" in verified and data_name(0) in verified
    listed = call("checkpoint", "list", str(run)).splitlines()
    assert "NOT WHOLE" in listed[3] and data_name(0) in listed[3] and "whole" in listed[2]


def test_report_of_two_runs_shows_where_their_recipes_differ(call: Call, straight: Path, tmp_path: Path) -> None:
    paths = call("report", "runs/run", str(straight), "--out", str(tmp_path / "both")).split()
    page = Path(next(path for path in paths if path.endswith(".html"))).read_text()
    assert "train.tokens" in page and "model.hidden_size" not in page.replace('"model.hidden_size', "")
    assert Path(next(path for path in paths if path.endswith(".png"))).read_bytes().startswith(b"\x89PNG")


def test_compare_tells_how_far_two_curves_are_apart(call: Call, ran: Together, tmp_path: Path) -> None:
    swept = ran["sweep"][0] / "runs"
    assert "12 common steps: bitwise equal" in call("compare", "runs/run", "runs/run")
    told = call("compare", str(swept / "swept_0"), str(swept / "swept_1"), code=1)
    assert "2 common steps: largest relative differences" in told and "loss" in told and "at step" in told
    call("compare", str(swept / "swept_0"), str(swept / "swept_1"), "--tolerance=10")
    golden = tmp_path / "curve.jsonl"
    call("compare", "runs/run", f"--write={golden}")
    assert "bitwise equal" in call("compare", "runs/run", str(golden))


def test_data_commands(call: Call, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    options = ["corpus=files", "tokenizer=byte", "corpus.name=mine", f"corpus.sources=[{text}]"]
    built = call("data", "build", *options, f"corpus.directory={place}", "corpus.validation_fraction=0.2")
    assert "training tokens" in built and "bigram" in built and "vocabulary 257" in built
    assert "tokenizer byte" in call("data", "inspect", str(place))
    assert "train is whole" in call("data", "verify", str(place))
    shard = next(place.glob("train*.tar"))
    flip_byte(shard, at=2000)
    assert shard.name in call("data", "verify", str(place), code=1)


def test_multirun_trains_every_combination(ran: Together) -> None:
    runs = ran["sweep"][0] / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["swept_0", "swept_1"]
    first, second = (curve(runs / name) for name in ("swept_0", "swept_1"))
    assert len(first) == len(second) == 2
    assert all(a[3] != b[3] for a, b in zip(first, second, strict=True))
    seeds = [yaml.safe_load((runs / name / "config.yaml").read_text())["seed"] for name in ("swept_0", "swept_1")]
    assert seeds == [1, 2]


def test_hydras_flags_print_the_composed_recipe(triaxis: Triaxis) -> None:
    done = triaxis.run("train", "experiment=tiny", "--cfg", "job", "optimizer.learning_rate=0.5")
    tree = yaml.safe_load(done.output)
    assert tree["optimizer"]["learning_rate"] == 0.5 and tree["run"]["name"] == "tiny"
    assert not (triaxis.directory / "runs").exists(), "nothing was trained"
    refused = triaxis.run("train", "optimizer.learning_rte=0.5", "--cfg", "job", code=1)
    assert "did you mean optimizer.learning_rate" in refused.output and "Traceback" not in refused.output


def test_plan_prints_the_parameters_of_the_largest(call: Call) -> None:
    told = call("plan", "experiment=mtnlg_530b")
    assert "mtnlg_530b: 529," in told or "mtnlg_530b: 530," in told, told.splitlines()[0]
    assert "tensor 8 x pipeline 35 x data 8 = 2240 processes" in told


def test_help_names_every_command(call: Call) -> None:
    assert set(COMMANDS) == set(HANDLERS) - {"complete", "help"}
    for arguments in ([], ["--help"], ["help"]):
        assert all(f"  {name}" in call(*arguments) for name in COMMANDS)
    shown = call("train", "--help")
    assert "optimizer.learning_rate=0.001" in shown and "Peak learning rate" in shown and "--multirun" in shown


def test_completion_serves_bash(call: Call) -> None:
    assert "complete -F _triaxis triaxis" in call("completion", "bash")
    assert "experiment=tiny" in call("complete", "triaxis train experiment=ti").splitlines()
    assert call("complete", "triaxis sample runs/r") == "runs/run\n"


MISTAKES: list[tuple[list[str], list[Any]]] = [
    (["nonsense"], ["no such command", "train"]),
    (["data"], ["no such command"]),
    (["checkpoint", "lst", "runs/run"], ["no such command", "checkpoint list"]),
    (["sample", "runs/run"], ["needs a run and a prompt"]),
    (["sample", "runs/none", "x"], ["runs/none"]),
    (["sample", "runs/run", "x", "--lenght=3"], ["--lenght=3"]),
    (["sample", "runs/run", "x", "--length=many"], ["--length=many", "whole number"]),
    (["sample", "runs/run", "x", "--temperature=hot"], ["--temperature=hot", "a number"]),
    (["sample", "runs/run", "x", "--length=1.5"], ["--length=1.5", "whole number"]),
    (["sample", "runs/run", "x", "--step=5"], ["step_000000005", "4, 8, 12"]),
    (["report"], ["name at least one run"]),
    (["report", "runs/none"], ["runs/none"]),
    (["report", "runs/run", "--out"], ["--out"]),
    (["compare", "runs/run"], ["takes two runs"]),
    (["compare", "runs/run", "runs/none"], ["runs/none"]),
    (["compare", "runs/run", "runs/run", "--tolerance=x"], ["--tolerance"]),
    (["compare", "runs/run", "runs/run", "--tolrance=1"], ["--tolrance=1", "--tolerance"]),
    (["checkpoint", "list"], ["takes one path"]),
    (["checkpoint", "verify", "runs/none"], ["runs/none"]),
    (["checkpoint", "inspect", "runs"], ["runs"]),
    (["data", "inspect", "nowhere"], ["nowhere"]),
    (["data", "verify", "nowhere"], ["nowhere"]),
    (["data", "build", "corpus=files", "corpus.sources=[nowhere.txt]"], ["nowhere.txt"]),
    (["data", "build", "corpus=nothing"], ["corpus=nothing"]),
    (["train", "--config-dir", "nowhere"], ["--config-dir"]),
    (["train", "runs/run"], ["runs/run"]),
    (["plan", "--world=7", "parallel.tensor=2"], ["7"]),
    (["plan", "--wrld=7"], ["--wrld=7"]),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=lambda value: " ".join(value))
def test_mistakes_are_one_message_and_exit_code_1(call: Call, arguments: list[str], told: list[str]) -> None:
    text = call(*arguments, code=1)
    assert all(part in text for part in told), text


def test_plan_layout_prints_ranks_and_draws_the_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "layout.png"
    recipe = ["experiment=tiny_3d", "train.micro_batch=1", "parallel.schedule=zbv"]
    assert main(["plan", "layout", *recipe, f"--png={picture}"]) == 0
    told = capsys.readouterr().out
    assert "engine torch, FSDP2 (ZeRO 1), zbv (DeepSpeed has no schedule=zbv)" in told
    assert len([line for line in told.splitlines() if line.strip()[:1].isdigit()]) == 8
    assert "bubble  2.0 % of a step with equal stages (in theory 2.0 %)" in told
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert main(["plan", "layout", "experiment=tiny", f"--png={tmp_path / 'none.png'}"]) == 1
    assert "nothing to draw with parallel.pipeline=1" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()
