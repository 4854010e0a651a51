"""`triaxis train -m` with launchers of ours: processes at a time, and an array for SLURM, rendered and run by a fake."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from launcher.cli import main
from launcher.sweep.array import array_script
from tests.launcher.running import Triaxis, minute


def line(corpus: Path, *more: str) -> list[str]:
    return [*(text for text in minute(corpus, 2) if not text.startswith("seed=")), *more]


def losses(runs: Path) -> dict[str, float]:
    return {path.parent.name: json.loads(path.read_text())["validation_loss"] for path in runs.glob("*/summary.json")}


def test_processes_run_what_hydra_combines(triaxis: Triaxis, corpus: Path) -> None:
    given = line(corpus, "hydra/launcher=processes", "hydra.launcher.workers=2")
    done = triaxis.run("train", "-m", *given, "seed=1,2", "optimizer.learning_rate=1e-3,-1", code=1)
    assert done.output.count("exit code 0") == 2 and done.output.count("exit code 1") == 2, done.output
    runs = triaxis.directory / "runs"
    found = losses(runs)
    assert len(found) == 2 and set(found) < {"run_0", "run_1", "run_2", "run_3"}, (
        "what cannot be takes no other with it"
    )
    told = [
        (runs / f"run_{number}" / "multirun.log").read_text() for number in range(4) if f"run_{number}" not in found
    ]
    assert len(told) == 2 and all("optimizer.learning_rate=-1" in text for text in told)
    alone = losses_by_seed(runs, found)
    triaxis.run("train", *line(corpus, "seed=2", "run.name=alone"))
    assert losses(runs)["alone"] == alone[2] != alone[1]


def losses_by_seed(runs: Path, found: dict[str, float]) -> dict[int, float]:
    return {yaml.safe_load((runs / name / "config.yaml").read_text())["seed"]: loss for name, loss in found.items()}


def fake(place: Path, name: str, text: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/bash\n{text}\n")
    (place / name).chmod((place / name).stat().st_mode | stat.S_IEXEC)


def test_an_array_is_submitted_and_each_task_is_its_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    fake(tmp_path / "bin", "sbatch", f'cp "${{@: -1}}" {tmp_path}/got; echo "4711;c"')
    given = line(
        corpus, "hydra/launcher=slurm", "hydra.launcher.options=['--partition=short']", "hydra.launcher.at_once=2"
    )
    assert main(["train", "--multirun", *given, "seed=1,2,3"]) == 0
    assert "submitted  array 4711 of 3 runs" in capsys.readouterr().out
    script = (tmp_path / "got").read_text()
    assert "#SBATCH --array=0-2%2\n" in script and "#SBATCH --partition=short\n" in script
    assert script.count("set -- train") == 3 and "hydra" not in script.split("case")[1]
    ran = subprocess.run(
        ["bash", "got"], env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(losses(tmp_path / "runs")) == {"run_1"}


def test_a_task_that_saved_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the script reaches the command, whose exit code 75 queues the task again; other codes are passed on."""
    fake(tmp_path / "bin", "scontrol", f'echo "$@" > {tmp_path}/told')
    fake(
        tmp_path / "bin",
        "python",
        f"trap 'exit 75' USR2; touch {tmp_path}/up; for i in $(seq 600); do sleep 0.1; done; exit 3",
    )
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "job").write_text(array_script("x", [["train"], ["train", "a b"]], tmp_path))
    names = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    task = subprocess.Popen(["bash", str(tmp_path / "job")], env={**os.environ, **names}, start_new_session=True)
    try:
        while not (tmp_path / "up").exists():
            assert task.poll() is None
        task.send_signal(signal.SIGUSR2)
        assert task.wait(30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(task.pid, signal.SIGKILL)
    assert (tmp_path / "told").read_text() == "requeue 7_1\n"


def test_mistakes(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    sweep = [text for text in line(corpus) if not text.startswith(("run.dir", "run.name"))]
    for given, told in (
        (["--sbatch=--time=1"], "no effect without --slurm"),
        (["--slurm=x"], "needs the number of tasks"),
        (["--slurm=2", "sweep.name=s"], "there is no sbatch on this machine; submit sweeps/s/array.sbatch"),
    ):
        assert main(["sweep", *sweep, "sweep.axes.seed=[1,2]", *given]) == 1
        assert told in capsys.readouterr().err
    script = (tmp_path / "sweeps" / "s" / "array.sbatch").read_text()
    assert script.count("set -- sweep run") == 2 and "--slurm" not in script and "sweep.axes.seed=[1,2]" in script
