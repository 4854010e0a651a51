"""A scheduler as it is seen from inside one of its jobs, by the controller: nodes, time, starting ranks, queueing again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol

from launcher.exits import AGAIN
from launcher.jobs.folder import Folder, Submission
from launcher.workers import free_port

KILL_SECONDS = 120.0  # that SLURM may take to end a job which was queued again
TOLD_TO_SAVE = "told to save"  # by a signal, and the scheduler knows of no reason
DOWN = ("DOWN", "FAIL", "ERROR", "NOT_RESPONDING", "POWERED_DOWN", "REBOOT")


@dataclass
class Ranks:
    """The ranks of one attempt, seen through the process that started them. said: its errors, line by line."""

    process: subprocess.Popen
    said: list[str] = field(default_factory=list)


class Inside(Protocol):
    """What the controller asks of where it runs."""

    job: str

    @property
    def nodes(self) -> list[str]:
        """Nodes of this allocation that are up, the batch host first."""

    def start(self, nodes: Sequence[str], recipe: Path, mark: str) -> Ranks:
        """Start the ranks. mark: in their environment, to know them by."""

    def ends_at(self) -> float | None:
        """When the job's time is up, in seconds since the epoch; it may change. None without a limit."""

    def tell(self, ranks: Ranks) -> None:
        """Let the ranks save and end."""

    def why_told(self) -> str:
        """Why this job was asked to end, in words."""

    def failed_nodes(self, nodes: Sequence[str], since: float) -> dict[str, str]:
        """Which nodes failed since a moment, and how."""

    def spares(self, without: Sequence[str]) -> int:
        """Nodes on which the job could run if these were left out."""

    def again(self, without: Sequence[str]) -> int:
        """Queue this job again, away from some nodes; the exit code to end with, where it is not ended before."""

    def cancel_waiting(self, jobs: Sequence[str]) -> None:
        """Take those of some jobs out of the queue that wait."""

    def ends_with(self, code: int) -> int:
        """An exit code that the scheduler does not take for a wish to be queued again."""


def tool(*command: str) -> str:
    """The output of one of SLURM's programs, empty where it fails: the controller lives without its answers."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def fields_of(text: str) -> dict[str, str]:
    """`Name=value` of a line that scontrol -o prints; a value ends where the next name begins."""
    return {
        name: value.strip() for name, value in re.findall(r"([A-Z][A-Za-z:/]*)=(.*?)(?=\s[A-Z][A-Za-z:/]*=|$)", text)
    }


def moment(text: str) -> float | None:
    """SLURM's 2026-11-22T01:02:03 in seconds since the epoch; None for Unknown, None, N/A."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


class InSlurm:
    """Inside a SLURM allocation."""

    def __init__(self, folder: Folder, submission: Submission, environment: Mapping[str, str] = os.environ) -> None:
        self.folder, self.submission, self.environment = folder, submission, environment
        self.job = environment["SLURM_JOB_ID"]
        self.restart = int(environment.get("SLURM_RESTART_COUNT", "0"))

    @property
    def nodes(self) -> list[str]:
        listed = tool("scontrol", "show", "hostnames", self.environment["SLURM_JOB_NODELIST"]).split()
        states = {node: self._node(node).get("State", "") for node in listed}
        return [node for node, state in states.items() if not any(word in state for word in DOWN) and "*" not in state]

    def start(self, nodes: Sequence[str], recipe: Path, mark: str) -> Ranks:
        told = self.submission
        logs = Path(told.run) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        command = [
            "srun",
            f"--nodes={len(nodes)}",
            f"--ntasks={len(nodes) * told.tasks}",
            f"--ntasks-per-node={told.tasks}",
            f"--nodelist={','.join(nodes)}",
            "--kill-on-bad-exit=1",  # one rank that fails ends all
            "--wait=60",  # and when one has ended well, the others may take so long
            f"--output={logs}/rank_%5t.log",
            "--open-mode=append",
            *told.srun,
            told.python,
            "-u",
            "-m",
            "launcher.train",
        ]
        variables = {**self.environment, **self._variables(nodes, recipe), "TRIAXIS_ATTEMPT": mark}
        process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        ranks = Ranks(process)
        assert process.stderr is not None
        threading.Thread(target=_pass_on, args=(process.stderr, ranks.said), daemon=True).start()
        return ranks

    def _variables(self, nodes: Sequence[str], recipe: Path) -> dict[str, str]:
        """What ranks find one another by. The port is one that nobody listens on here, where rank 0 will."""
        told = self.submission
        variables = {
            "MASTER_ADDR": self._node(nodes[0]).get("NodeAddr", nodes[0]),
            "MASTER_PORT": str(free_port(int(self.job) * 101 + self.restart * 13)),
            "LOCAL_WORLD_SIZE": str(told.tasks),
            "DS_ACCELERATOR": told.device,
            "TRIAXIS_RECIPE": str(recipe),
        }
        if told.threads:
            variables["OMP_NUM_THREADS"] = str(told.threads)
        if cores := self.environment.get("SLURM_CPUS_PER_TASK"):
            variables["SRUN_CPUS_PER_TASK"] = cores  # since 22.05 srun no longer inherits it
        return variables

    def ends_at(self) -> float | None:
        return moment(self._self().get("EndTime", ""))

    def tell(self, ranks: Ranks) -> None:
        tool("scancel", "--signal=USR2", self.job)

    def why_told(self) -> str:
        found = self._self()
        state = found.get("JobState", "")
        if moment(found.get("PreemptTime", "")) is not None or state == "PREEMPTED":
            return "preempted"
        if state == "CANCELLED":
            return "cancelled with scancel"
        if state == "TIMEOUT":
            return f"time limit of {found.get('TimeLimit', 'the job')}"
        if state == "NODE_FAIL":
            return "a node of the job failed"
        if int(found.get("Restarts", self.restart)) > self.restart:  # at once: SLURM does not say which of the two
            return "preempted or requeued"
        return TOLD_TO_SAVE

    def failed_nodes(self, nodes: Sequence[str], since: float) -> dict[str, str]:
        failed = {}
        for node in nodes:
            found = self._node(node)
            state, began = found.get("State", ""), moment(found.get("SlurmdStartTime", ""))
            if any(word in state for word in DOWN) or "*" in state:
                failed[node] = f"SLURM says {state}" + (f", {found['Reason']}" if found.get("Reason") else "")
            elif began is not None and began > since:
                failed[node] = "its slurmd was started anew"
        return failed

    def spares(self, without: Sequence[str]) -> int:
        partition = self.environment.get("SLURM_JOB_PARTITION", "")
        command = [
            "sinfo",
            "--noheader",
            "--Node",
            "--format=%N %t",
            *([f"--partition={partition}"] if partition else []),
        ]
        # a mark behind the state: * does not answer, ~ and # sleep or wake up, - is planned for another job
        up = {
            line.split()[0] for line in tool(*command).splitlines() if re.search(r" (idle|mix|alloc|comp)[~#-]?$", line)
        }
        return len(up - set(without))

    def again(self, without: Sequence[str]) -> int:
        found = self._self()
        if found.get("JobState") != "RUNNING" or found.get("Restarts", str(self.restart)) != str(self.restart):
            self._exclude(without)
            return (
                AGAIN  # SLURM has queued it again already, and whatever runs under this number now is another attempt
            )
        codes = self._requeue_codes()
        if codes and not without:  # the site requeues what ends so
            return AGAIN if AGAIN in codes else codes[0]
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # it comes with the requeue, and there is something to do after it
        done = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"cannot be requeued: {' '.join(done.stderr.split())}", flush=True)
            return AGAIN
        self._exclude(without)
        time.sleep(KILL_SECONDS)
        return AGAIN

    def _exclude(self, nodes: Sequence[str]) -> None:
        """Keep a waiting job away from nodes; SLURM refuses where it runs already."""
        if nodes:
            listed = {*self._self().get("ExcNodeList", "").split(","), *nodes} - {"", "(null)"}
            tool("scontrol", "update", f"JobId={self.job}", f"ExcNodeList={','.join(sorted(listed))}")

    def cancel_waiting(self, jobs: Sequence[str]) -> None:
        if jobs and self.submission.chain > 1:
            tool("scancel", "--state=PENDING", *jobs)

    def ends_with(self, code: int) -> int:
        codes = self._requeue_codes()
        return next(found for found in (code, *range(1, 256)) if found not in codes)

    def _requeue_codes(self) -> list[int]:
        found = re.search(r"^RequeueExit\s*=\s*(\S+)", tool("scontrol", "show", "config"), re.MULTILINE)
        codes: list[int] = []
        for part in (found[1] if found else "").split(","):
            first, _, last = part.partition("-")
            if first.isdigit():
                codes += range(int(first), int(last or first) + 1)
        return [code for code in codes if code]

    def _self(self) -> dict[str, str]:
        return fields_of(tool("scontrol", "show", "job", self.job, "--oneliner"))

    @staticmethod
    def _node(node: str) -> dict[str, str]:
        return fields_of(tool("scontrol", "show", "node", node, "--oneliner"))


class InQueue:
    """Inside a job of this machine's queue (queue.py): one node, ranks as `triaxis train` starts them."""

    def __init__(self, folder: Folder, submission: Submission, environment: Mapping[str, str] = os.environ) -> None:
        self.folder, self.submission, self.environment = folder, submission, environment
        self.job = environment["TRIAXIS_JOB"]

    @property
    def nodes(self) -> list[str]:
        return [socket.gethostname()]

    def start(self, nodes: Sequence[str], recipe: Path, mark: str) -> Ranks:
        logs = Path(self.submission.run) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        variables = {**self.environment, "TRIAXIS_ATTEMPT": mark, "TRIAXIS_PARENT": str(os.getpid())}
        arguments = [self.submission.python, "-u", "-m", "launcher.jobs.ranks", str(self.folder.path), str(recipe)]
        with open(logs / "rank_00000.log", "ab") as log:  # as under srun: the terminal of rank 0 is its log
            process = subprocess.Popen(
                arguments, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.PIPE, text=True
            )
        ranks = Ranks(process)
        assert process.stderr is not None
        threading.Thread(target=_pass_on, args=(process.stderr, ranks.said), daemon=True).start()
        return ranks

    def ends_at(self) -> float | None:
        return float(found) if (found := self.environment.get("TRIAXIS_END_TIME", "")) else None

    def tell(self, ranks: Ranks) -> None:
        ranks.process.send_signal(signal.SIGUSR2)

    def why_told(self) -> str:
        ends = self.ends_at()
        if ends is not None and time.time() > ends - self.submission.signal_seconds - 1:
            return f"time limit of {self.submission.seconds} s"
        return TOLD_TO_SAVE

    def failed_nodes(self, nodes: Sequence[str], since: float) -> dict[str, str]:
        return {}

    def spares(self, without: Sequence[str]) -> int:
        return 1

    def again(self, without: Sequence[str]) -> int:
        return AGAIN  # the queue takes it for what it is

    def cancel_waiting(self, jobs: Sequence[str]) -> None:
        """They find out by themselves, and end at once."""

    def ends_with(self, code: int) -> int:
        return code


def inside(folder: Folder, submission: Submission) -> Inside:
    """Where this process runs."""
    kind = InSlurm if submission.scheduler == "slurm" else InQueue
    return kind(folder, submission)


def _pass_on(stream: IO[str], said: list[str]) -> None:
    for line in stream:
        said.append(line.rstrip())
        sys.stderr.write(line)
        sys.stderr.flush()


def end_marked(mark: str) -> None:
    """Kill what is left on this node of the ranks with a mark: whose slurmd has died nobody else ends."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if f"TRIAXIS_ATTEMPT={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
