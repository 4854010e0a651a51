"""`python -m launcher.jobs.attempt FOLDER`: what a batch script becomes, the controller of one job.

It starts the ranks, waits, reads how they ended and decides: the run is done; or state is saved and the job goes back into the
queue; or another attempt starts in the same allocation; or nothing helps. Each attempt is a line of `<run>/attempts.jsonl`.
Whatever it knows stands in files, so that a controller whose predecessor died with its node finds out what happened. It needs
nothing but Python's standard library, since it runs outside of containers.
"""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.attempts import Attempt, begin_attempt, end_attempt, read_attempts, running_attempt
from launcher.endtime import tell_end
from launcher.exits import AGAIN, DONE, FAILED, NEVER
from launcher.failure import clear_failures
from launcher.jobs.folder import Folder, read_json, write_json
from launcher.jobs.inside import TOLD_TO_SAVE, Inside, Ranks, end_marked, inside
from launcher.jobs.outcome import outcome_of

LOOK_SECONDS = 0.5
ASK_SECONDS = 10.0  # between questions to the scheduler
WAIT_SECONDS = 5.0  # before a further attempt, for each one in a row that failed without progress
MOST_WAIT_SECONDS = 60.0
PREEMPTED = "preempted"  # what reasons begin with that are nobody's fault
TOLD = "told.json"  # why this job was asked to end, kept where the controller may not live to write its line


class Controller:
    """One job of a submission, from its start to its exit code."""

    def __init__(self, folder: Folder, site: Inside) -> None:
        self.folder, self.site = folder, site
        self.submission = folder.read()
        self.run_directory = Path(self.submission.run)
        self.signals: list[int] = []
        self.number = 0  # of the attempt

    def run(self) -> int:
        """Attempts, until the job has an end."""
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, lambda caught, frame: self.signals.append(caught))
        if (stopped := self.folder.stopped) is not None:
            self.say(f"nothing to do: {stopped['reason']}")
            return self.site.ends_with(stopped["code"])
        self._end_predecessor()
        if self.submission.requeue and self._must_move():
            return self._again(f"{', '.join(self.folder.bad_nodes)} failed before")
        while True:
            if (code := self._refused()) is not None:
                return code
            nodes = self._nodes()
            if not nodes:
                return self._again("no nodes of this allocation are up")
            ended = self._attempt(nodes)
            if ended is None:
                self.say("another attempt of this run has begun elsewhere; this one is over")
                return self.site.ends_with(DONE)
            if (code := self._decide(ended)) is not None:
                return code

    def say(self, text: str) -> None:
        """A line in the job's output."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)

    # Before an attempt

    def _end_predecessor(self) -> None:
        """Write the line of an attempt whose controller died before it could."""
        left = running_attempt(self.run_directory)
        if left is None:
            return
        told = read_json(self.folder.path / TOLD)
        failed = self._failed_nodes(left, [])
        if failed:
            code, reason = FAILED, _failed_text(failed)
        elif told is not None and told.get("attempt") == left.attempt:
            code, reason = (AGAIN if told["reason"].startswith(PREEMPTED) else FAILED), told["reason"]
        else:
            first = f" on {left.nodes[0]}" if left.nodes else ""
            code, reason = FAILED, f"its controller{first} was killed before it could say why"
        ended = end_attempt(self.run_directory, left, code, reason)
        self.say(f"attempt {ended.attempt} ended at step {ended.last_step}: {reason}")

    def _refused(self) -> int | None:
        """The exit code where no further attempt is to be made."""
        if (stopped := self.folder.stopped) is not None:
            return self.site.ends_with(stopped["code"])
        attempts = [attempt for attempt in read_attempts(self.run_directory) if self._ours(attempt)]
        count = without_progress(attempts)
        if count >= self.submission.restarts:
            return self._stop(
                FAILED,
                f"given up after {count} attempts in a row without a newer checkpoint, the last: {attempts[-1].reason}",
            )
        return None

    def _ours(self, attempt: Attempt) -> bool:
        """Whether an attempt belongs to this submission: a new one begins with a new budget."""
        return attempt.started >= self.submission.submitted

    def _nodes(self) -> list[str]:
        """The nodes that the next attempt runs on: as many of those that are up as the recipe can use."""
        up = self.site.nodes
        bad = self.folder.bad_nodes
        up.sort(key=lambda node: node in bad)  # stable; bad ones only where it cannot do without
        fits = [size for size in self.submission.sizes if size <= len(up)]
        return up[: fits[0]] if fits else []

    # An attempt

    def _attempt(self, nodes: list[str]) -> Attempt | None:
        """Start ranks and see to them until they end; None where another attempt has taken over."""
        told, mark = self.submission, secrets.token_hex(8)
        recipe = self.run_directory / "config.yaml"  # what reports and later commands read
        begun = begin_attempt(self.run_directory, len(nodes) * told.tasks, job=self.site.job, nodes=nodes)
        self.number = begun.attempt
        clear_failures(self.run_directory)
        shutil.copyfile(self.folder.recipe(len(nodes)), recipe)
        place = f"{begun.world} ranks on {', '.join(nodes)}"
        self.say(f"attempt {begun.attempt} of {told.name}, job {self.site.job}: {place}, from step {begun.first_step}")
        ranks = self.site.start(nodes, recipe, mark)
        try:
            if not self._watch(ranks, begun):
                return None
        finally:
            if ranks.process.poll() is None:
                ranks.process.kill()
            end_marked(mark)
        return self._ended(begun, ranks, nodes)

    def _watch(self, ranks: Ranks, begun: Attempt) -> bool:
        """Wait for the end of the ranks; passes on what they must know. False where they were ended for another attempt."""
        asked, told, ends = time.monotonic(), False, self.site.ends_at()
        if ends is not None:  # SLURM before 23.02 does not tell ranks
            tell_end(self.run_directory, ends)
        while True:
            try:
                ranks.process.wait(LOOK_SECONDS)
                return True
            except subprocess.TimeoutExpired:
                pass
            if self._superseded(begun):
                return False
            if time.monotonic() - asked > ASK_SECONDS:
                asked, before, ends = time.monotonic(), ends, self.site.ends_at()
                if ends is not None and ends != before:  # a preemption with a time of grace, say
                    tell_end(self.run_directory, ends)
            late = ends is not None and time.time() > ends - self.submission.signal_seconds
            if (self.signals or late) and not told:  # whatever became of the scheduler's own signal to the ranks
                told = True
                write_json(self.folder.path / TOLD, {"attempt": begun.attempt, "reason": self._cause()})
                tell_end(self.run_directory, time.time())
                self.site.tell(ranks)

    def _superseded(self, begun: Attempt) -> bool:
        """Whether this job was queued again without its own knowledge, as by a network that was cut, and runs elsewhere."""
        newest = running_attempt(self.run_directory)
        return newest is not None and newest.attempt > begun.attempt

    def _ended(self, begun: Attempt, ranks: Ranks, nodes: list[str]) -> Attempt:
        """Write the line of an attempt whose ranks have ended."""
        found = outcome_of(self.run_directory, ranks.process.returncode, ranks.said, nodes, self.submission.tasks)
        code, reason = found.code, found.reason
        failed = self._failed_nodes(begun, ranks.said) if code in (AGAIN, FAILED) else {}
        stopped = self.folder.stopped
        if failed:
            reason = f"{_failed_text(failed)}{', state is saved' if code == AGAIN else ''}"
        elif code == AGAIN:
            why = stopped["reason"] if stopped else self._why()
            reason = f"{why}, {'before ranks listened' if 'before' in found.reason else 'state is saved'}"
        elif code == FAILED and self.signals:
            reason = f"{stopped['reason'] if stopped else self._why()}, and ranks ended before they had saved"
        elif code == FAILED and found.node and self._failed_there_before(found.node):
            self.folder.add_bad_node(found.node, "two attempts in a row failed there first")
        ended = end_attempt(self.run_directory, begun, code, reason)
        self.say(f"attempt {ended.attempt} ended at step {ended.last_step}: {reason}")
        return ended

    def _failed_nodes(self, attempt: Attempt, said: list[str]) -> dict[str, str]:
        """Nodes that failed under an attempt, by what srun said and what the scheduler knows; they are noted."""
        lines = " ".join(said)
        heard: dict[str, str] = {}
        for how in ("Node failure on ", "failed on node "):  # while it ran, and when its ranks were to be started
            heard |= {node: "srun lost it" for node in attempt.nodes if re.search(rf"{how}{re.escape(node)}\b", lines)}
        failed = heard | self.site.failed_nodes(attempt.nodes, attempt.started)
        for node, how in failed.items():
            self.folder.add_bad_node(node, how)
        return failed

    def _why(self) -> str:
        """Why ranks were asked to save."""
        told = read_json(self.folder.path / TOLD)
        if told is not None and told.get("attempt") == self.number:
            return told["reason"]
        return self._cause()

    def _cause(self) -> str:
        """What the scheduler says of it, or the time."""
        why, ends = self.site.why_told(), self.site.ends_at()
        early = self.submission.signal_seconds + 65  # SLURM's signal may come a minute early
        near = ends is not None and time.time() > ends - early
        return "near the time limit" if near and why == TOLD_TO_SAVE else why

    def _failed_there_before(self, node: str) -> bool:
        before = [attempt for attempt in read_attempts(self.run_directory) if self._ours(attempt)]
        return bool(before) and before[-1].code == FAILED and f"(node {node})" in before[-1].reason

    # After an attempt

    def _decide(self, ended: Attempt) -> int | None:
        """The job's exit code, or None for a further attempt in this allocation."""
        if ended.code == DONE:
            return self._stop(DONE, "finished")
        if ended.code == NEVER:
            return self._stop(NEVER, ended.reason)
        if self.folder.stopped is not None:
            return self._refused()
        if ended.code == AGAIN:
            return self._again(ended.reason)
        if self.signals:
            return self._again(ended.reason)
        if (code := self._refused()) is not None:
            return code
        if self._must_move():
            return self._again(f"away from {', '.join(self.folder.bad_nodes)}")
        attempts = [attempt for attempt in read_attempts(self.run_directory) if self._ours(attempt)]
        time.sleep(min(MOST_WAIT_SECONDS, WAIT_SECONDS * without_progress(attempts)))
        return None

    def _must_move(self) -> bool:
        """Whether too few good nodes are left here, and enough elsewhere."""
        bad = self.folder.bad_nodes
        good = [node for node in self.site.nodes if node not in bad]
        return len(good) < min(self.submission.sizes) <= self.site.spares(list(bad))

    def _again(self, reason: str) -> int:
        """Leave the rest of the run to a later job."""
        if not self.submission.requeue:
            chain = "the next job of the chain goes on, if one is left"
            self.say(f"{reason}; {chain if self.submission.chain > 1 else 'submit it again to go on from here'}")
            return AGAIN
        bad = list(self.folder.bad_nodes)
        without = bad if bad and self.site.spares(bad) >= min(self.submission.sizes) else []
        self.say(f"{reason}; queued again" + (f" without {', '.join(without)}" if without else ""))
        return self.site.again(without)

    def _stop(self, code: int, reason: str) -> int:
        """Nothing of this submission shall run any more, later jobs of its chain included."""
        self.folder.stop(code, reason)
        self.say(reason)
        self.site.cancel_waiting(self.folder.links)
        return self.site.ends_with(code)


def _failed_text(failed: dict[str, str]) -> str:
    return "; ".join(f"node {node} failed ({how})" for node, how in failed.items())


def without_progress(attempts: list[Attempt]) -> int:
    """How many of the newest attempts left no newer checkpoint, one after another; preempted ones are nobody's fault."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.progressed:
            break
        count += not attempt.reason.startswith(PREEMPTED)
    return count


def main(arguments: list[str]) -> int:
    """Run the controller of a submission's folder; returns the exit code of the job."""
    folder = Folder(Path(arguments[0]))
    return Controller(folder, inside(folder, folder.read())).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
