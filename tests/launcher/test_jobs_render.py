"""Batch scripts, and what is refused before anything is queued; sbatch is a stand-in that keeps what it was given."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from launcher.check import with_vocabulary
from launcher.cluster import ClusterError
from launcher.compose import build_recipe, compose_tree, load_recipe
from launcher.config import Recipe, RecipeError
from launcher.jobs.allocation import Allocation, allocate
from launcher.jobs.config import JobError, seconds_of, time_text
from launcher.jobs.folder import Folder
from launcher.jobs.script import container_options, directives, render
from launcher.jobs.submit import device_of, submit
from tests.launcher.running import minute

SITE = ["experiment=llama_1b", "cluster=h100_8x64"]


def recipe_of(*overrides: str) -> Recipe:
    return with_vocabulary(build_recipe(compose_tree([*SITE, *overrides])), 32_000)


def allocation_of(*overrides: str) -> Allocation:
    recipe = recipe_of(*overrides)
    return allocate(recipe, device_of(recipe))


def options_of(*overrides: str) -> dict[str, str]:
    lines = directives(Folder(Path("/runs/first/jobs/001")), "first", allocation_of(*overrides))
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def test_a_job_asks_for_what_the_mesh_needs() -> None:
    found = allocation_of("parallel.data=16", "parallel.tensor=4")
    assert (found.nodes, found.tasks, found.world) == (8, 8, 64)
    found = allocation_of("job.nodes=4")
    assert found.recipe.parallel.data == 32, "what the recipe leaves open fills the allocation"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["job.nodes=65"], "job.nodes=65: takes 65 nodes of 8 ranks, more than cluster.nodes=64"),
        (["job.nodes=2", "parallel.data=4"], "2 nodes of 8 ranks are 16, and the mesh has parallel.data=4 x 1"),
        (["parallel.data=12"], "parallel.data=12: the mesh has 12 ranks, which do not fill nodes of 8"),
        (["job.nodes=1", "job.time=3-00"], "job.time=3-00: longer than cluster.max_time=2-00:00:00"),
        (["cluster.layout=fastest"], "cluster.layout=fastest: is measured where a run starts"),
        (
            ["job.nodes=4", "job.least_nodes=3", "train.micro_batch=4"],
            "job.least_nodes=3: 3 nodes of 8 ranks cannot hold",
        ),
        (["job.nodes=3"], "train.batch_tokens="),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises((JobError, RecipeError)) as told:
        allocation_of(*overrides)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["job.time=soon"], "job.time=soon: is no time limit"),
        (
            ["job.time=2", "job.signal_seconds=120"],
            "job.signal_seconds=120: must be shorter than job.time=2, 120 seconds",
        ),
        (["job.chain=3"], "job.chain=3: a chain cuts a run at time limits, and job.time is empty"),
        (["job.chain_as=array"], "job.chain_as=array: has no effect with job.chain=1"),
        (["job.nodes=2", "job.least_nodes=3"], "job.least_nodes=3: more than job.nodes=2"),
        (["cluster.scheduler=local"], "cluster.cpus_per_task=12: has no effect with cluster.scheduler=local"),
        (["cluster.mounts=[/data]"], "cluster.mounts=['/data']: has no effect without cluster.container"),
        (["cluster.gres=gpu:h100:4"], "cluster.gres=gpu:h100:4: asks for another number"),
        (["cluster.environment.NO-NAME=1"], "cluster.environment.NO-NAME"),
    ],
)
def test_options_without_effect_or_sense_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises((JobError, ClusterError, RecipeError)) as told:
        recipe_of(*overrides)
    assert words in str(told.value)


def test_directives_say_what_job_and_site_ask_for() -> None:
    found = options_of(
        *("job.nodes=8", "job.time=1-12:00:00", "job.exclude=[n7,n9]", "job.signal_seconds=600", "cluster.account=me"),
        *("cluster.partition=gpu", "cluster.qos=high", "cluster.sbatch=['--mail-type=END']"),
    )
    assert found == {
        "--job-name": "first",
        "--nodes": "8",
        "--ntasks-per-node": "8",
        "--gpus-per-node": "8",
        "--cpus-per-task": "12",
        "--mem": "0",
        "--partition": "gpu",
        "--account": "me",
        "--qos": "high",
        "--time": "1-12:00:00",
        "--signal": "USR2@600",
        "--exclude": "n7,n9",
        "--output": "/runs/first/jobs/001/output.log",
        "--open-mode": "append",
        "--exclusive": "",
        "--requeue": "",
        "--mail-type": "END",
    }
    assert options_of("job.nodes=8", "cluster.gres=gpu:h100:8")["--gres"] == "gpu:h100:8"
    assert "--gpus-per-node" not in options_of("job.nodes=8", "cluster.gres=gpu:h100:8")
    assert "--no-requeue" in options_of("job.nodes=8", "job.requeue=false")


def test_a_run_that_may_shrink_asks_for_a_range_and_outlives_a_node() -> None:
    found = allocation_of("job.nodes=8", "job.least_nodes=4")
    assert {nodes: recipe.parallel.data for nodes, recipe in found.recipes.items()} == {8: 64, 4: 32}, (
        "between them the batch does not divide"
    )
    options = options_of("job.nodes=8", "job.least_nodes=4")
    assert options["--nodes"] == "4-8" and "--no-kill" in options


def test_the_script_is_shell_and_holds_the_site(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a run" / "jobs" / "001")
    folder.path.mkdir(parents=True)
    text = render(
        folder,
        "first",
        allocation_of(
            "job.nodes=1",
            "cluster.modules=[cuda/12.8,nccl]",
            "cluster.setup=['ulimit -n 65536']",
            "cluster.environment.NCCL_DEBUG='a b'",
        ),
        tmp_path,
        "/opt/python",
    )
    assert "module load cuda/12.8 nccl\n" in text and "\nulimit -n 65536\n" in text
    assert "export NCCL_DEBUG='a b'\n" in text and "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" in text
    assert text.splitlines()[-1] == f"exec /opt/python -m launcher.jobs.attempt '{folder.path}'"
    assert "@" not in text.replace("USR2@300", ""), "nothing of the template is left open"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    first_command = next(index for index, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in text.splitlines()[first_command:]), "sbatch reads no further"


def test_containers_see_what_ranks_need() -> None:
    cluster = recipe_of("cluster.container=img.sqsh", "cluster.mounts=[/data,/scratch:/s]").cluster
    found = container_options(cluster, ["/home/us", "/home/us/runs/first"], "/home/us")
    assert found == [
        "--container-image=img.sqsh",
        "--container-mounts=/home/us:/home/us,/home/us/runs/first:/home/us/runs/first,/data:/data,/scratch:/s",
        "--container-workdir=/home/us",
    ]


def test_times_are_read_as_sbatch_reads_them() -> None:
    texts = {"90": 5400, "2:30": 150, "1:00:00": 3600, "1-0": 86_400, "1-2:3": 93_780, "2-00:00:10": 172_810}
    assert {text: seconds_of(text, "job.time") for text in texts} == texts
    assert [time_text(seconds) for seconds in (150, 93_780)] == ["00:02:30", "1-02:03:00"]


FAKES = {
    "sbatch": """#!/bin/bash
printf '%s\\n' "$*" >> "$FAKE/sbatch"
cp "${@: -1}" "$FAKE/script"
[ -e "$FAKE/refuse" ] && [ "$(wc -l < "$FAKE/sbatch")" -ge 2 ] && { echo "sbatch: error: QOSMaxSubmitJob" >&2; exit 1; }
echo $((100 + $(wc -l < "$FAKE/sbatch")))
""",
    "squeue": '#!/bin/bash\ncat "$FAKE/listed" 2>/dev/null || true\n',
    "scancel": '#!/bin/bash\nprintf "%s\\n" "$*" >> "$FAKE/scancel"\n',
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's programs on the PATH that write down what they were asked; the test runs in a directory of its own."""
    place = tmp_path / "fake"
    (place / "bin").mkdir(parents=True)
    for name, text in FAKES.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(place))
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRIAXIS_QUEUE", str(tmp_path / "queue"))
    monkeypatch.chdir(tmp_path)
    return place


def small(corpus: Path, *more: str, **options: object) -> Recipe:
    """The minute run on two nodes."""
    return build_recipe(compose_tree(minute(corpus, 20, "cluster=testcluster", *more, parallel__data=2, **options)))


def test_submit_keeps_all_that_the_job_needs(fake: Path, corpus: Path, tmp_path: Path) -> None:
    assert submit(small(corpus)) == ["101"]
    folder = Folder(tmp_path / "runs" / "run" / "jobs" / "001")
    assert (fake / "sbatch").read_text() == f"--parsable {folder.script}\n"
    kept = folder.read()
    assert (kept.nodes, kept.tasks, kept.sizes, kept.total_steps, kept.device) == (2, 1, (2,), 20, "cpu")
    assert (kept.run, kept.work, folder.links) == (str(tmp_path / "runs" / "run"), str(tmp_path), ["101"])
    assert (folder.code / "launcher" / "train.py").exists() and (folder.code / "recipes" / "train.yaml").exists()
    frozen = load_recipe(folder.recipe(2))
    assert frozen.parallel.data == 2 and frozen.model.vocab_size, "the recipe is resolved, its vocabulary known"


def test_a_chain_is_jobs_that_wait_for_one_another(fake: Path, corpus: Path) -> None:
    assert submit(small(corpus, job__chain=3, job__time="30", job__dependency="afterok:9")) == ["101", "102", "103"]
    told = [line.split()[1] for line in (fake / "sbatch").read_text().splitlines()]
    assert told == ["--dependency=afterok:9", "--dependency=afterany:101", "--dependency=afterany:102"]


def test_or_tasks_of_one_array(fake: Path, corpus: Path) -> None:
    assert submit(small(corpus, job__chain=3, job__time="30", job__chain_as="array")) == ["101"]
    assert (fake / "sbatch").read_text().split()[1] == "--array=1-3%1"


def test_a_chain_that_cannot_be_queued_whole_is_taken_back(fake: Path, corpus: Path, tmp_path: Path) -> None:
    (fake / "refuse").touch()
    with pytest.raises(JobError, match="QOSMaxSubmitJob"):
        submit(small(corpus, job__chain=3, job__time="30"))
    assert (fake / "scancel").read_text() == "101\n"
    assert Folder(tmp_path / "runs/run/jobs/001").stopped is not None


def test_a_second_job_of_a_run_that_lives_is_refused(fake: Path, corpus: Path, tmp_path: Path) -> None:
    submit(small(corpus))
    script = tmp_path / "runs" / "run" / "jobs" / "001" / "job.sh"
    (fake / "listed").write_text(f"101|RUNNING|None|n[0-1]|9:59|run|{script}\n")
    with pytest.raises(JobError, match=r"run\.name=run: job 101 of this run is running"):
        submit(small(corpus))


def test_a_dry_run_writes_nothing(fake: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert submit(small(corpus), dry=True) == []
    assert "#SBATCH --nodes=2\n" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_without_slurm_or_corpus_the_cure_is_named(fake: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="there is no corpus, and ranks do not build one"):
        submit(small(corpus, data__path="nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(JobError, match="there is no squeue on this machine"):
        submit(small(corpus))


def test_what_the_controller_reads_is_json(fake: Path, corpus: Path, tmp_path: Path) -> None:
    """It runs outside of containers, with a Python that has no packages."""
    submit(small(corpus))
    place = tmp_path / "runs" / "run" / "jobs" / "001"
    assert json.loads((place / "submission.json").read_text())["name"] == "run"
    done = subprocess.run(
        ["python3", "-S", "-c", "import launcher.jobs.attempt, sys; print('yaml' in sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(place / "code"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
