"""What a person meets when something is wrong: one clear message, before workers start wherever that can be, and an end
within seconds with nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from launcher.cli import main
from tests.launcher.running import (
    BATCH,
    ROOT,
    Triaxis,
    committed,
    curve,
    last_step,
    minute,
    rank_processes,
    records,
)

# Before workers start


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refuse(arguments) -> the one line that `triaxis` ends with, exit code 1, no worker started."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: object, **more: object) -> int:
        raise AssertionError("workers were started")

    monkeypatch.setattr("launcher.submit.run_workers", start)
    monkeypatch.setattr("launcher.plan.choose.run_workers", start)

    def run(*arguments: str) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == 1
        out, err = capfd.readouterr()
        assert err.startswith("triaxis: ") and err.count("\n") == 1, err
        assert "Traceback" not in out + err
        return err

    return run


def test_no_corpus(refuse: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    text = refuse("train", *minute(tmp_path / "nowhere", 2))
    assert "nowhere" in text and "manifest.json is missing" in text and "triaxis data build" in text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_shard(refuse: Callable[..., str], corpus: Path, tmp_path: Path, split: str) -> None:
    damaged = shutil.copytree(corpus, tmp_path / "damaged")
    shard = sorted(damaged.glob(f"{split}-*.tar"))[-1]
    shard.unlink()
    assert shard.name in refuse("train", *minute(damaged, 2))


def test_a_truncated_shard(refuse: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(corpus, tmp_path / "damaged")
    shard = sorted(damaged.glob("train-*.tar"))[0]
    os.truncate(shard, shard.stat().st_size - 512)
    assert shard.name in refuse("train", *minute(damaged, 2))


@pytest.fixture(scope="module")
def bpe_corpus(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The same documents with a vocabulary of 300."""
    directory = tmp_path_factory.mktemp("corpora") / "bpe"
    build(CorpusConfig("bpe", (str(text),), str(directory), workers=1), TokenizerConfig("bpe", 300))
    return directory


def test_a_tokenizer_that_is_not_the_shards(
    refuse: Callable[..., str], corpus: Path, bpe_corpus: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(corpus, tmp_path / "damaged")
    shutil.rmtree(damaged / "tokenizer")
    shutil.copytree(bpe_corpus / "tokenizer", damaged / "tokenizer")
    text = refuse("train", *minute(damaged, 2))
    assert "damaged/tokenizer" in text and "vocabulary 300, the shards' 257" in text


def test_a_recipe_that_asks_for_another_tokenizer(refuse: Callable[..., str], bpe_corpus: Path, text: Path) -> None:
    same = ["corpus=files", f"corpus.sources=[{text}]", f"corpus.directory={bpe_corpus}"]
    found = refuse("train", *minute(bpe_corpus, 2), *same, "corpus.name=bpe", "tokenizer=byte")
    assert str(bpe_corpus) in found and "tokenizer" in found and "built otherwise" in found


def test_phases_with_other_tokenizers(refuse: Callable[..., str], corpus: Path, bpe_corpus: Path) -> None:
    phases = f"phases=[{{tokens: 256}}, {{tokens: 256, data: {{path: {bpe_corpus}}}}}]"
    text = refuse("train", *minute(corpus, 2, phases))
    assert str(bpe_corpus) in text and "tokenized differently" in text


def test_a_vocabulary_too_small_for_the_shards(refuse: Callable[..., str], corpus: Path) -> None:
    text = refuse("train", *minute(corpus, 2, model__vocab_size=256))
    assert "model.vocab_size=256" in text and "257 tokens" in text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["parallel.tensor=4"], ["model.heads=2", "parallel.tensor=4"]),
        (["parallel.pipeline=3"], ["parallel.pipeline=3", "model.layers=2"]),
        (["parallel.pipeline=2", "parallel.zero_stage=2"], ["parallel.zero_stage=2", "limit is 1"]),
        (["parallel.tensor=2", "model.vocab_multiple=1"], ["257", "model.vocab_multiple"]),
        (["parallel.data=3"], ["train.batch_tokens=128", "3 data ranks"]),
        (["train.sequence_length=48", "train.batch_tokens=192"], ["train.sequence_length=48", "model.max_sequence=32"]),
        (["schedule.warmup_tokens=9999"], ["schedule.warmup_tokens=9999", "256 tokens"]),
        (["train.tokens=many"], ["train.tokens='many'", "whole number"]),
        (["model.hiden_size=3"], ["model.hiden_size", "did you mean model.hidden_size"]),
        (["--multrun"], ["--multrun"]),
        (["life.hang_seconds=700"], ["life.hang_seconds=700", "parallel.timeout_seconds=600"]),
        (["life.fruitless=5"], ["life.fruitless=5", "no effect without life.restarts"]),
        (["cluster.device=cuda"], ["cluster.device=cuda", "no GPU"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_recipe_that_cannot_be(
    refuse: Callable[..., str], corpus: Path, overrides: list[str], told: list[str]
) -> None:
    if overrides == ["cluster.device=cuda"] and Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a GPU here")
    text = refuse("train", *minute(corpus, 2), *overrides)
    assert all(part in text for part in told), text


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.hidden_size=64", "model.hidden_size=64"),
        ("model.norm=layernorm", "model.norm=layernorm"),
        ("model.vocab_multiple=4", "model.vocab_multiple=4"),
        ("seed=2", "seed=2"),
    ],
)
def test_a_resume_with_another_model(
    refuse: Callable[..., str], corpus: Path, straight: Path, option: str, told: str
) -> None:
    text = refuse("train", *minute(corpus, 2, run__name=straight.name, run__dir=straight.parent), option)
    assert told in text and str(straight) in text and "run.init_from" in text and "run.name" in text


def test_a_file_in_place_of_the_run_directory(refuse: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    text = refuse("train", *minute(corpus, 2))
    assert "run.dir=runs" in text and "runs/run cannot be written" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_directory_without_permission(refuse: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    text = refuse("train", *minute(corpus, 2))
    assert "run.dir=runs" in text and "cannot be written" in text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no right to mount a file system here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Use a disk up but for some bytes."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    with open(disk / "filler", "rb+") as file:
        file.truncate(max(0, (disk / "filler").stat().st_size - leave))


def test_a_full_disk(refuse: Callable[..., str], corpus: Path, small_disk: Path) -> None:
    fill(small_disk)
    text = refuse("train", *minute(corpus, 2, run__dir=small_disk))
    assert f"run.dir={small_disk}" in text and "No space left" in text


# While workers run


def test_a_disk_that_becomes_full_costs_the_save_and_says_so(triaxis: Triaxis, corpus: Path, small_disk: Path) -> None:
    """Half-written checkpoints are taken away again, so that metrics and logs can still be written, and the run goes on;
    at the end it must not claim that all is well."""
    recipe = minute(corpus, 60, run__dir=small_disk, checkpoint__every_tokens=20 * BATCH)
    run = small_disk / "run"
    started = triaxis.start("train", *recipe)
    started.until(lambda: (run / "metrics.jsonl").exists(), "the first line")
    fill(small_disk, leave=100_000)
    done = started.wait(120, code=1)
    triaxis.assert_nothing_runs()
    assert last_step(run) == 60
    assert not list((run / "checkpoints").glob("step_*/"))
    warnings = [record["text"] for record in records(run, "event") if record["event"] == "warning"]
    assert len(warnings) == 4 and all("disk full" in text for text in warnings), warnings
    message = done.output[done.output.index("triaxis: ") :]
    assert message.startswith("triaxis: step 60 is not saved: ") and message.count("\n") == 1
    assert "Traceback" not in done.output
    (small_disk / "filler").unlink()
    triaxis.run("train", *recipe)
    assert committed(run)[-1] == 60
    assert len(curve(run)) == 60


def fault(directory: Path, rank: int, code: str) -> dict[str, str]:
    """Environment in which one rank runs `code`, with `launcher.loop` as `loop`, before it reads its recipe."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import importlib.abc, importlib.machinery, os, sys
            class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
                def find_spec(self, name, path, target=None):
                    if name != "launcher.rank":
                        return None
                    sys.meta_path.remove(self)
                    spec = importlib.machinery.PathFinder.find_spec(name, path)
                    execute = spec.loader.exec_module
                    def exec_module(module):
                        execute(module)
                        obtain = module.obtain_recipe
                        def obtain_recipe(arguments):  # ranks may be forks of a process that has imported this
                            if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == os.environ["FAULT_RANK"]:
                                import launcher.loop
                                exec(os.environ["FAULT_CODE"], {"loop": launcher.loop})
                            return obtain(arguments)
                        module.obtain_recipe = obtain_recipe
                    spec.loader.exec_module = exec_module
                    return spec
            sys.meta_path.insert(0, Finder())
            """
        )
    )
    path = os.pathsep.join((str(directory), str(ROOT)))
    return {"PYTHONPATH": path, "FAULT_RANK": str(rank), "FAULT_CODE": textwrap.dedent(code)}


AT_STEP_3 = """
    rate = loop.learning_rate
    def learning_rate(run, phase, schedule, tokens):
        if run.counters.step == 3:
            {}
        return rate(run, phase, schedule, tokens)
    loop.learning_rate = learning_rate
"""


def test_the_first_failing_ranks_error_is_shown_and_all_end(triaxis: Triaxis, corpus: Path, tmp_path: Path) -> None:
    environment = fault(tmp_path / "fault", 1, AT_STEP_3.format("raise ArithmeticError('the first one')"))
    recipe = minute(corpus, 4000, parallel__data=2, checkpoint__every_tokens=BATCH)
    started = triaxis.start("train", *recipe, **environment)
    started.until_step(tmp_path / "runs" / "run", 3)
    began = time.monotonic()
    done = started.wait(120, code=1)
    triaxis.assert_nothing_runs()
    assert time.monotonic() - began < 10
    message = done.output[done.output.index("triaxis: ") :]
    assert message.startswith("triaxis: rank 1 failed first: ArithmeticError: the first one")
    assert "learning_rate" in message and "logs/rank_00001.log" in message
    assert "the first one" in (tmp_path / "runs" / "run" / "logs" / "rank_00001.log").read_text()
    # the same command, without the fault, goes on
    assert committed(tmp_path / "runs" / "run")[-1] in (2, 3)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(triaxis: Triaxis, corpus: Path, tmp_path: Path, victim: int) -> None:
    started = triaxis.start("train", *minute(corpus, 4000, parallel__data=2))
    started.until_step(tmp_path / "runs" / "run", 3)
    began = time.monotonic()
    os.kill(rank_processes(triaxis)[victim], signal.SIGKILL)
    done = started.wait(120, code=1)
    triaxis.assert_nothing_runs()
    assert time.monotonic() - began < 10
    message = done.output[done.output.index("triaxis: ") :]
    assert f"rank {victim}" in message and "killed by SIGKILL (out of memory?)" in message
    assert f"logs/rank_{victim:05d}.log" in message and "Traceback" not in message


def test_ranks_end_with_the_process_that_they_are_forks_of(triaxis: Triaxis, corpus: Path, tmp_path: Path) -> None:
    started = triaxis.start("train", *minute(corpus, 4000, parallel__data=2))
    started.until_step(tmp_path / "runs" / "run", 3)
    (nursery,) = [pid for pid in triaxis.processes() if Path(f"/proc/{pid}/comm").read_text() == "nursery\n"]
    os.kill(nursery, signal.SIGKILL)
    done = started.wait(120, code=1)
    triaxis.assert_nothing_runs()
    assert "killed by SIGKILL (out of memory?)" in done.output and "Traceback" not in done.output


def test_a_run_of_nothing_but_nan_ends_and_says_why(triaxis: Triaxis, corpus: Path, tmp_path: Path) -> None:
    options = {"optimizer__learning_rate": 1e38, "train__max_skipped_steps": 5, "checkpoint__every_tokens": BATCH}
    done = triaxis.run("train", *minute(corpus, 100, **options), code=1)
    run = tmp_path / "runs" / "run"
    message = done.output[done.output.index("triaxis: ") :]
    assert message.startswith("triaxis: train.max_skipped_steps=5") and message.count("\n") == 1, message
    assert "optimizer.learning_rate" in message and "Traceback" not in done.output
    steps = records(run, "step")
    assert [record["skipped"] for record in steps[-5:]] == [True] * 5 and steps[-6]["skipped"] is False
    assert steps[-1]["skipped_total"] == 5 and steps[-1]["grad_norm"] is None
    assert records(run, "end")[-1]["outcome"] == "failed"


def test_init_from_a_place_without_checkpoints(triaxis: Triaxis, corpus: Path, tmp_path: Path) -> None:
    done = triaxis.run("train", *minute(corpus, 2, run__init_from=tmp_path / "nowhere"), code=1)
    message = done.output[done.output.index("triaxis: ") :]
    assert "nowhere" in message and message.count("\n") == 1


def test_torchrun_ranks_tell_a_mistake_once_each_and_end(triaxis: Triaxis, corpus: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = triaxis.start("-m", "launcher.train", *minute(corpus, 2, parallel__data=3), program=program)
    done = started.wait(120, code=1)
    triaxis.assert_nothing_runs()
    assert "parallel.data=3" in done.output and "the world has 2" in done.output
