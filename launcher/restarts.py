"""Attempts of a run on this machine: after a failure that another attempt may cure, the ranks are started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from launcher.attempts import Attempt, begin_attempt, end_attempt, fruitless_in_a_row
from launcher.exits import AGAIN, DONE, FAILED
from launcher.life import LifeConfig
from launcher.marks import begin_again
from launcher.workers import WorkerError

LONGEST_PAUSE = 60.0  # seconds before an attempt that follows fruitless ones
WORDS = {DONE: "finished", AGAIN: "interrupted, state is saved"}


def run_attempts(
    life: LifeConfig, directory: Path, world: int, start: Callable[[], int], tell: Callable[[str], None]
) -> int:
    """Call `start`, which starts ranks and waits for them, until the run has ended or another attempt is of no use.

    Returns DONE or AGAIN. Each attempt becomes a line of attempts.jsonl. Raises the WorkerError of the last one; those
    before it are told.
    """
    ended: list[Attempt] = []
    while True:
        attempt = begin_attempt(directory, world)
        try:
            code = start()
        except WorkerError as error:
            ended.append(end_attempt(directory, attempt, error.code, _first_line(error)))
            if refusal := no_more(life, ended):
                raise WorkerError(f"{error}\n{refusal}" if life.restarts else str(error), error.code) from error
            tell(_told(ended[-1], error, life.restarts - len(ended)))
            time.sleep(pause(ended))
            begin_again()
        except BaseException as error:
            end_attempt(directory, attempt, FAILED, f"whoever started the ranks was ended: {type(error).__name__}")
            raise
        else:
            end_attempt(directory, attempt, code, WORDS[code])
            return code


def no_more(life: LifeConfig, ended: list[Attempt]) -> str:
    """Why no further attempt is made after those of this command; empty where one is."""
    code, fruitless = ended[-1].code, fruitless_in_a_row(ended)
    if code != FAILED:
        return f"not started again: another attempt would end alike (exit code {code})"
    if len(ended) > life.restarts:
        used = f"life.restarts={life.restarts} are used up"
        return f"not started again: {used}; the same command goes on from the newest checkpoint"
    if fruitless >= life.fruitless:
        return (
            f"not started again: {fruitless} attempts in a row made no progress (life.fruitless={life.fruitless}): no newer "
            f"checkpoint than that of step {ended[-1].saved_step}"
        )
    return ""


def pause(ended: list[Attempt]) -> float:
    """Seconds to wait before the next attempt: none after progress, else longer and longer."""
    fruitless = fruitless_in_a_row(ended)
    return min(LONGEST_PAUSE, 2.0 ** (fruitless - 1)) if fruitless else 0.0


def _told(attempt: Attempt, error: WorkerError, left: int) -> str:
    return (
        f"attempt {attempt.attempt} failed at step {attempt.last_step}: {_first_line(error)}\n"
        f"again from step {attempt.saved_step}; restarts left after this one: {left}"
    )


def _first_line(error: WorkerError) -> str:
    return str(error).split("\n", 1)[0]
