"""The controller of a job, with ranks that are short shell scripts: what it does after each way in which an attempt may end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.attempts import begin_attempt, read_attempts, running_attempt
from launcher.exits import AGAIN, DONE, FAILED, NEVER
from launcher.failure import Failure, write_word
from launcher.jobs import attempt as controller_module
from launcher.jobs.attempt import TOLD, Controller
from launcher.jobs.folder import Folder, Submission, new_folder, write_json
from launcher.jobs.inside import InSlurm, Ranks, fields_of, moment

SAVE = "mkdir -p checkpoints/step_{:09d}; "


class Site:
    """A scheduler that starts one script after another, and keeps what it was asked."""

    job = "7"

    def __init__(self, run: Path, scripts: Sequence[str], nodes: Sequence[str] = ("n0", "n1"), spare: int = 9) -> None:
        self.directory, self.scripts, self.up, self.spare = run, list(scripts), list(nodes), spare
        self.started: list[tuple[str, ...]] = []
        self.requeued: list[tuple[str, ...]] = []
        self.failed: dict[str, str] = {}
        self.why = "told to save"
        self.ending: float | None = None
        self.told = 0

    @property
    def nodes(self) -> list[str]:
        return list(self.up)

    def start(self, nodes: Sequence[str], recipe: Path, mark: str) -> Ranks:
        self.started.append(tuple(nodes))
        environment = {**os.environ, "TRIAXIS_ATTEMPT": mark}
        script = self.scripts.pop(0)
        return Ranks(subprocess.Popen(["bash", "-c", script], cwd=self.directory, env=environment))

    def ends_at(self) -> float | None:
        return self.ending

    def tell(self, ranks: Ranks) -> None:
        self.told += 1
        ranks.process.send_signal(signal.SIGUSR2)

    def why_told(self) -> str:
        return self.why

    def failed_nodes(self, nodes: Sequence[str], since: float) -> dict[str, str]:
        return {node: how for node, how in self.failed.items() if node in nodes}

    def spares(self, without: Sequence[str]) -> int:
        return self.spare

    def again(self, without: Sequence[str]) -> int:
        self.requeued.append(tuple(without))
        return AGAIN

    def cancel_waiting(self, jobs: Sequence[str]) -> None:
        self.cancelled = list(jobs)

    def ends_with(self, code: int) -> int:
        return code


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """No waiting between attempts; signal handlers as they were."""
    monkeypatch.setattr(controller_module, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(controller_module, "LOOK_SECONDS", 0.02)
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def folder_of(tmp_path: Path, **changes: object) -> Folder:
    """A submission of two nodes with one rank each."""
    run = tmp_path / "run"
    folder = new_folder(run)
    submission = Submission(
        name="run",
        run=str(run),
        scheduler="slurm",
        nodes=2,
        tasks=1,
        sizes=(2,),
        model_parallel=1,
        threads=1,
        device="cpu",
        python="python",
        total_steps=100,
        total_tokens=1000,
        restarts=3,
        requeue=True,
        chain=1,
        signal_seconds=30,
        seconds=0,
        revision="",
        submitted=time.time() - 1,
        work=str(tmp_path),
    )
    submission = replace(submission, **changes)  # type: ignore[arg-type]
    for size in submission.sizes:
        folder.recipe(size).write_text(f"nodes: {size}\n")
    folder.write(submission)
    return folder


def control(folder: Folder, scripts: Sequence[str], **site: object) -> tuple[int, Site]:
    """Run a controller to its end."""
    found = Site(folder.run, scripts, **site)  # type: ignore[arg-type]
    return Controller(folder, found).run(), found


def reasons(folder: Folder) -> list[str]:
    return [found.reason for found in read_attempts(folder.run)]


def test_a_run_that_ends_well_is_finished_for_good(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    code, site = control(folder, [SAVE.format(100) + "exit 0"])
    assert (code, site.requeued, reasons(folder)) == (DONE, [], ["finished"])
    attempt = read_attempts(folder.run)[0]
    assert (attempt.job, attempt.nodes, attempt.world, attempt.saved_step) == ("7", ("n0", "n1"), 2, 100)
    code, site = control(folder, [])
    assert (code, site.started) == (DONE, []), "a job that comes after starts nothing"


def test_saved_state_goes_back_into_the_queue(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    code, site = control(folder, [SAVE.format(10) + f"exit {AGAIN}"])
    assert (code, site.requeued, folder.stopped) == (AGAIN, [()], None)
    assert reasons(folder) == ["told to save, state is saved"]


def test_without_requeueing_the_chain_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, requeue=False, chain=2)
    code, site = control(folder, [SAVE.format(10) + f"exit {AGAIN}"])
    assert (code, site.requeued) == (AGAIN, [])
    folder.add_link("7")
    code, site = control(folder, [SAVE.format(100) + "exit 0"])
    assert (code, site.cancelled) == (DONE, ["7"])


def test_a_failure_is_tried_again_in_place_while_there_is_progress(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    scripts = [SAVE.format(step) + "exit 1" for step in (10, 20, 30, 40, 50)]
    code, site = control(folder, [*scripts, SAVE.format(100) + "exit 0"])
    assert (code, len(site.started), site.requeued) == (DONE, 6, [])
    assert [found.saved_step for found in read_attempts(folder.run)] == [10, 20, 30, 40, 50, 100]


def test_a_crash_loop_ends_after_so_many_attempts_without_progress(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    code, site = control(folder, [SAVE.format(10) + "exit 1", *["exit 1"] * 9])
    assert (code, len(site.started)) == (FAILED, 4)
    assert "given up after 3 attempts in a row" in folder.stopped["reason"]  # type: ignore[index]
    assert control(folder, ["exit 0"])[1].started == [], "nor does a later job of this submission"
    again = new_folder(folder.run)
    again.recipe(2).write_text("")
    again.write(replace(folder.read(), submitted=time.time()))
    assert control(again, ["exit 0"])[0] == DONE, "a new submission begins with a new budget"


def test_what_would_end_the_same_way_is_not_tried_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder.run / "logs").mkdir()
    word = folder.run / "word.error"
    write_word(folder.run, Failure(1, time.time(), "model.layers=0:\nmust be at least 1", code=NEVER))
    (folder.run / "logs" / "rank_00001.error").rename(word)
    # srun gives the highest code, that of a rank which was killed
    code, site = control(folder, [f"cp {word} logs/rank_00001.error; exit 137"])
    assert (code, len(site.started)) == (NEVER, 1)
    assert "model.layers=0: must be at least 1 (node n1)" in reasons(folder)[0]


def test_a_node_that_failed_is_named_and_left(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    site = Site(folder.run, ["exit 1"])
    site.failed = {"n1": "SLURM says DOWN"}
    assert Controller(folder, site).run() == AGAIN
    assert (site.requeued, folder.bad_nodes) == ([("n1",)], {"n1": "SLURM says DOWN"})
    assert reasons(folder) == ["node n1 failed (SLURM says DOWN)"]


def test_unless_there_is_no_other(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    site = Site(folder.run, ["exit 1", "exit 0"], spare=1)
    site.failed = {"n1": "its slurmd was started anew"}
    assert Controller(folder, site).run() == DONE
    assert site.started == [("n0", "n1"), ("n0", "n1")]


def test_fewer_nodes_do_where_the_recipe_allows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, nodes=3, sizes=(3, 2))
    site = Site(folder.run, ["exit 1", "exit 0"], nodes=("n0", "n1", "n2"))
    site.failed = {"n0": "SLURM says DOWN"}
    assert Controller(folder, site).run() == DONE
    assert site.started == [("n0", "n1", "n2"), ("n1", "n2", "n0")], "a node that is back comes last"
    folder = folder_of(tmp_path / "gone", nodes=3, sizes=(3, 2))
    site = Site(folder.run, ["exit 1", "exit 0"], nodes=("n0", "n1"))
    assert Controller(folder, site).run() == DONE
    assert site.started[0] == ("n0", "n1") and read_attempts(folder.run)[0].world == 2
    assert (folder.run / "config.yaml").read_text() == "nodes: 2\n"


def test_too_few_nodes_wait_in_the_queue(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    code, site = control(folder, [], nodes=["n0"])
    assert (code, site.started, site.requeued) == (AGAIN, [], [()])


def test_whoever_comes_after_a_dead_controller_finds_out_why(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    begin_attempt(folder.run, 2, job="7", nodes=("n0", "n1"))
    site = Site(folder.run, [SAVE.format(10) + f"exit {AGAIN}"])
    site.failed = {"n0": "SLURM says DOWN"}
    site.up = ["n1", "n2"]
    Controller(folder, site).run()
    assert reasons(folder)[0] == "node n0 failed (SLURM says DOWN)"
    left = begin_attempt(folder.run, 2, job="7", nodes=("n1", "n2"))
    write_json(folder.path / TOLD, {"attempt": left.attempt, "reason": "preempted or requeued"})
    control(folder, [f"exit {AGAIN}"], nodes=["n1", "n2"])
    begin_attempt(folder.run, 2, job="7", nodes=("n1", "n2"))
    control(folder, ["exit 0"], nodes=["n1", "n2"])
    told = reasons(folder)
    assert told[2] == "preempted or requeued" and read_attempts(folder.run)[2].code == AGAIN
    assert told[4] == "its controller on n1 was killed before it could say why"


def test_preemptions_use_nothing_of_the_budget(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, restarts=2)
    for _ in range(4):
        left = begin_attempt(folder.run, 2, job="7", nodes=("n0", "n1"))
        write_json(folder.path / TOLD, {"attempt": left.attempt, "reason": "preempted"})
        site = Site(folder.run, ["exit 0"])
        Controller(folder, site)._end_predecessor()
    assert control(folder, ["exit 0"])[0] == DONE


def test_a_signal_is_passed_on_and_its_cause_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    script = "trap 'exit 75' USR2; " + SAVE.format(10) + "touch ready; while true; do sleep 0.05; done"
    site = Site(folder.run, [script])
    site.why = "preempted"

    def send() -> None:
        while not (folder.run / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    code = Controller(folder, site).run()
    thread.join()
    assert (code, site.told, site.requeued) == (AGAIN, 1, [()])
    assert reasons(folder) == ["preempted, state is saved"]


def test_ranks_are_told_before_the_time_is_up_whatever_the_scheduler_does(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    site = Site(folder.run, ["trap 'exit 75' USR2; while true; do sleep 0.05; done"])
    site.ending = time.time() + 20  # and 30 s before it they are to save
    assert Controller(folder, site).run() == AGAIN
    # the shell may not have set its trap yet, as ranks may not have come to their handlers
    assert reasons(folder)[0] in ("near the time limit, state is saved", "near the time limit, before ranks listened")


def test_a_cancelled_run_is_not_queued_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder_path = folder.path
    script = f"""echo '{{"code": 1, "reason": "cancelled"}}' > {folder_path}/stopped.json; exit 75"""
    code, site = control(folder, [script])
    assert (code, site.requeued, reasons(folder)) == (FAILED, [], ["cancelled, state is saved"])


def test_an_attempt_that_was_overtaken_ends_its_ranks_and_touches_nothing(tmp_path: Path) -> None:
    """As after a network that was cut: the job runs elsewhere, and SLURM cannot reach this node to say so."""
    folder = folder_of(tmp_path)
    site = Site(folder.run, ["touch ready; sleep 60 & echo $! > child; sleep 60"])

    def overtake() -> None:
        while not (folder.run / "ready").exists():
            time.sleep(0.01)
        begin_attempt(folder.run, 2, job="7", nodes=("n2", "n3"))

    thread = threading.Thread(target=overtake)
    thread.start()
    assert Controller(folder, site).run() == DONE
    thread.join()
    newest = running_attempt(folder.run)
    assert newest is not None and newest.nodes == ("n2", "n3") and site.requeued == []
    child = int((folder.run / "child").read_text())
    end = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, "a rank of the attempt that was overtaken lives on"
        time.sleep(0.01)


TOOLS = """#!/bin/bash
printf '%s %s\\n' "$(basename "$0")" "$*" >> "$FAKE/asked"
case "$(basename "$0") $*" in
    "scontrol show hostnames n[0-2]") printf 'n0\\nn1\\nn2\\n' ;;
    "scontrol show node n1 "*) echo "NodeName=n1 NodeAddr=10.0.0.1 State=DOWN*+DRAIN Reason=Not responding [slurm@2026]" ;;
    "scontrol show node "*) echo "NodeName=$4 NodeAddr=10.0.0.9 State=ALLOCATED SlurmdStartTime=$(cat "$FAKE/began")" ;;
    "scontrol show job "*) cat "$FAKE/job" ;;
    "scontrol show config") cat "$FAKE/config" ;;
    "sinfo "*) printf 'n0 alloc\\nn1 down*\\nn2 idle\\nn3 idle*\\nn4 drain\\n' ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[InSlurm, Path]:
    """The inside of a job, with SLURM's programs replaced by one script."""
    place = tmp_path / "fake"
    (place / "bin").mkdir(parents=True)
    for name in ("scontrol", "sinfo", "scancel"):
        (place / "bin" / name).write_text(TOOLS)
        (place / "bin" / name).chmod(0o755)
    for name, text in {
        "job": "JobId=7 JobState=RUNNING Restarts=2 ExcNodeList=(null)",
        "config": "",
        "began": "Unknown",
    }.items():
        (place / name).write_text(text)
    monkeypatch.setenv("FAKE", str(place))
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("launcher.jobs.inside.KILL_SECONDS", 0.0)
    folder = folder_of(tmp_path)
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "SLURM_JOB_NODELIST": "n[0-2]"}
    return InSlurm(folder, folder.read(), variables), place


def asked(place: Path) -> list[str]:
    return (place / "asked").read_text().splitlines()


def test_nodes_that_are_down_are_left_out_and_named(slurm: tuple[InSlurm, Path]) -> None:
    site, place = slurm
    assert site.nodes == ["n0", "n2"]
    assert site.failed_nodes(["n0", "n1"], 0.0) == {"n1": "SLURM says DOWN*+DRAIN, Not responding [slurm@2026]"}
    (place / "began").write_text("2026-11-22T02:00:00")
    assert site.failed_nodes(["n0"], moment("2026-11-22T01:00:00") or 0) == {"n0": "its slurmd was started anew"}
    assert site.failed_nodes(["n0"], moment("2026-11-22T03:00:00") or 0) == {}
    assert (site.spares([]), site.spares(["n2"])) == (2, 1), "nodes that are down, drained or silent are none"


@pytest.mark.parametrize(
    ("job", "config", "without", "code", "calls"),
    [
        ("JobId=7 JobState=RUNNING Restarts=2", "", [], AGAIN, ["scontrol requeue 7"]),
        (
            "JobId=7 JobState=RUNNING Restarts=2 ExcNodeList=n5",
            "",
            ["n1"],
            AGAIN,
            ["scontrol requeue 7", "scontrol update JobId=7 ExcNodeList=n1,n5"],
        ),
        ("JobId=7 JobState=RUNNING Restarts=2", "RequeueExit             = 75,99", [], AGAIN, []),
        ("JobId=7 JobState=RUNNING Restarts=2", "RequeueExit             = 90-99", [], 90, []),
        ("JobId=7 JobState=RUNNING Restarts=3", "", [], AGAIN, []),  # it runs again already, elsewhere
        ("JobId=7 JobState=PENDING Restarts=3", "", ["n1"], AGAIN, ["scontrol update JobId=7 ExcNodeList=n1"]),
    ],
)
def test_a_job_is_queued_again_as_the_site_wants_it(
    slurm: tuple[InSlurm, Path], job: str, config: str, without: list[str], code: int, calls: list[str]
) -> None:
    site, place = slurm
    (place / "job").write_text(job)
    (place / "config").write_text(config)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert site.again(without) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [line for line in asked(place) if " show " not in line] == calls


def test_no_exit_code_is_taken_for_a_wish_to_be_queued(slurm: tuple[InSlurm, Path]) -> None:
    site, place = slurm
    (place / "config").write_text("RequeueExit             = 1-3,78\n")
    assert [site.ends_with(code) for code in (DONE, FAILED, NEVER)] == [0, 4, 4]
    (place / "config").write_text("RequeueExit             = (null)\n")
    assert [site.ends_with(code) for code in (DONE, FAILED, NEVER)] == [0, 1, 78]


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ("JobState=RUNNING PreemptTime=2026-11-22T02:00:00", "preempted"),
        ("JobState=CANCELLED PreemptTime=None", "cancelled with scancel"),
        ("JobState=TIMEOUT TimeLimit=00:10:00", "time limit of 00:10:00"),
        ("JobState=COMPLETING Restarts=3 PreemptTime=None", "preempted or requeued"),
        ("JobState=RUNNING Restarts=2 PreemptTime=None", "told to save"),
    ],
)
def test_slurm_is_asked_why(slurm: tuple[InSlurm, Path], job: str, why: str) -> None:
    site, place = slurm
    (place / "job").write_text(job)
    assert site.why_told() == why


def test_scontrols_lines_are_read() -> None:
    found = fields_of("JobId=7 JobName=a b Reason=Not responding [x@1] TRES=cpu=2,mem=1G EndTime=Unknown")
    assert found["Reason"] == "Not responding [x@1]" and found["EndTime"] == "Unknown" and found["JobName"] == "a b"
    assert moment(found["EndTime"]) is None
