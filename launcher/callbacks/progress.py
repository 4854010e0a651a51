"""What a person sees while a run trains: a live display on a terminal, plain lines anywhere else.

The display is redrawn by the hooks themselves, without a refresh thread, and never hides the cursor or leaves the
normal screen: even a SIGKILL leaves a usable terminal behind, which no handler at exit could promise.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import accumulate

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.callbacks.base import Callback, RunView, StepRecord, ValidationRecord
from launcher.callbacks.units import ABSENT, baselines, count, duration

_REDRAW_SECONDS = 0.2
_RATE_WINDOW = 50  # steps over which the time left is estimated
_EVENT_STYLES = {"skip": "yellow", "warning": "yellow", "interrupted": "bold yellow", "resume": "cyan", "phase": "cyan"}


class _VisibleCursorConsole(Console):
    """A console whose cursor stays visible during a live display, see the head of this module."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Clock:
    """Estimates the time left from the recent tokens per second of the wall clock, validation and saving included."""

    def __init__(self, run: RunView) -> None:
        self._run = run
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW + 1)

    def note(self, record: StepRecord) -> None:
        self._recent.append((time.monotonic(), self._done(record)))

    def left(self) -> float | None:
        """Seconds, or None before the second step."""
        if len(self._recent) < 2:
            return None
        (start, before), (now, done) = self._recent[0], self._recent[-1]
        goal = self._run.total_tokens or self._run.total_steps
        return max(0, goal - done) * (now - start) / (done - before) if done > before else None

    def _done(self, record: StepRecord) -> int:
        return record.tokens if self._run.total_tokens else record.step


class Progress(Callback):
    """Shows the run on `console`, which is standard output unless given.

    Off a terminal it prints every `every_steps`-th step, the first and the last, and one whenever nothing was printed
    for `every_seconds`. `live` forces either form; None looks at the console.
    """

    def __init__(
        self,
        every_steps: int = 50,
        every_seconds: float = 10.0,
        live: bool | None = None,
        console: Console | None = None,
    ) -> None:
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self._console = console or _VisibleCursorConsole(file=sys.stdout)
        terminal = self._console.is_terminal and self._console.file.isatty() and not self._console.is_dumb_terminal
        self._is_live = terminal if live is None else live
        self._live: Live | None = None
        self._run: RunView | None = None
        self._step: StepRecord | None = None
        self._validation: ValidationRecord | None = None
        self._printed = self._drawn = float("-inf")  # when the last plain line was printed, the display drawn

    def on_start(self, run: RunView) -> None:
        """Name the run, and open the live display on a terminal."""
        self._run, self._clock = run, _Clock(run)
        start = f", from step {run.start_step:,}" if run.start_step else ""
        goal = f"{run.total_steps:,} steps" + (f", {count(run.total_tokens)} tokens" if run.total_tokens else "")
        self._say(f"{run.name}: {count(run.parameters)} parameters, {goal}{start}", "bold")
        if self._is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
            atexit.register(self._close)

    def on_step(self, record: StepRecord) -> None:
        """Redraw, or print a line when one is due."""
        assert self._run is not None, "on_start comes first"
        self._step = record
        self._clock.note(record)
        now = time.monotonic()
        if self._live is not None:
            if now - self._drawn >= _REDRAW_SECONDS:
                self._draw(now)
            return
        due = record.step % self.every_steps == 0 or now - self._printed >= self.every_seconds
        if due or record.step == self._run.total_steps:
            self._printed = now
            self._say(self._line(record))

    def on_validation(self, record: ValidationRecord) -> None:
        """Print the result beside the baselines, where they are known."""
        self._validation = record
        beside = ", ".join(f"{name} {value:.3f}" for name, value in self._baselines().items())
        result = f"{record.validation_loss:.4f} nats/token  {record.bits_per_byte:.4f} bits/byte"
        self._say(f"{self._at(record.step)}  validation {result}" + (f"  ({beside})" if beside else ""), "green")

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """Print the text, set off by a bar at the left."""
        self._say(f"{self._at(step)}  sample", "magenta")
        body = Text().append(self._safe(prompt), style="bold").append(self._safe(text.rstrip()))
        for line in body.split("\n", allow_blank=True):
            self._console.print(
                Text(self._safe("  │ "), style="dim").append_text(line), highlight=False, soft_wrap=True
            )

    def on_event(self, step: int, kind: str, message: str) -> None:
        """Print one line; a plan and the health of ranks are tables and stand alone."""
        if kind in ("plan", "health"):
            self._say(message)
            return
        self._say(f"{self._at(step)}  {kind}: {message}", _EVENT_STYLES.get(kind, "dim"))

    def on_end(self, outcome: str) -> None:
        """Draw the last state, close the display and say how it ended."""
        self._close()
        at = f" at step {self._step.step:,}" if self._step else ""
        self._say(f"{outcome}{at}", "bold" if outcome == "finished" else "bold yellow")

    def _draw(self, now: float) -> None:
        if self._live is not None and self._step is not None:
            self._drawn = now
            self._live.update(self._display(self._step), refresh=True)

    def _close(self) -> None:
        if self._live is not None:
            self._draw(time.monotonic())
            self._live.stop()
            self._live = None
            atexit.unregister(self._close)

    def _display(self, record: StepRecord) -> RenderableType:
        assert self._run is not None
        run, validation = self._run, self._validation
        done, goal = (record.tokens, run.total_tokens) if run.total_tokens else (record.step, run.total_steps)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._safe(run.name), style="bold"),
            ProgressBar(total=max(goal, 1), completed=done, width=40, complete_style="cyan", finished_style="green"),
            f"{done / max(goal, 1):.0%}",
            Text(self._safe(f"{duration(self._clock.left())} left")),
        )
        cells = {
            "step": f"{record.step:,}/{run.total_steps:,}",
            "tokens": count(record.tokens) + (f"/{count(run.total_tokens)}" if run.total_tokens else ""),
            "loss": f"{record.loss:.4f}",
            "validation": f"{validation.validation_loss:.4f}" if validation else ABSENT,
            "learning rate": f"{record.learning_rate:.2e}",
            "grad norm": f"{record.grad_norm:.3f}",
            "tokens/s": count(record.tokens_per_second),
        }
        if record.flops_utilisation is not None:
            cells["of peak"] = f"{record.flops_utilisation:.1%}"
        if record.skipped_total:
            cells["skipped"] = str(record.skipped_total)
        if record.phase:
            cells["phase"] = record.phase
        return Group(Text(), head, *self._tables(cells))

    def _tables(self, cells: dict[str, str]) -> Iterator[Table]:
        """Names above values, in as many tables, one below the other, as the width of the terminal asks for."""
        rest = list(cells.items())
        while rest:
            widths = accumulate(max(len(name), len(value)) + 2 for name, value in rest)
            fitting = max(1, sum(width <= self._console.width for width in widths))
            table = Table.grid(padding=(0, 2))
            table.add_row(*(Text(name, style="dim") for name, _ in rest[:fitting]))
            table.add_row(*(Text(self._safe(value)) for _, value in rest[:fitting]))
            yield table
            rest = rest[fitting:]

    def _line(self, record: StepRecord) -> str:
        parts = [
            self._at(record.step),
            f"{count(record.tokens):>5} tokens",
            f"loss {record.loss:.4f}",
            f"lr {record.learning_rate:.2e}",
            f"grad norm {record.grad_norm:.3f}",
            f"{count(record.tokens_per_second):>5} tokens/s",
        ]
        if self._validation is not None:
            parts.insert(3, f"validation {self._validation.validation_loss:.4f}")
        if record.flops_utilisation is not None:
            parts.append(f"{record.flops_utilisation:.1%} of peak")
        if record.skipped_total:
            parts.append(f"{record.skipped_total} skipped")
        left = self._clock.left()
        return "  ".join([*parts, f"{duration(left)} left"] if left is not None else parts)

    def _at(self, step: int) -> str:
        total = f"{self._run.total_steps:,}" if self._run else ""
        return f"step {step:>{len(total)},}/{total}" if total else f"step {step:,}"

    def _baselines(self) -> dict[str, float]:
        return baselines(self._run.facts) if self._run else {}

    def _say(self, line: str, style: str = "") -> None:
        # Text, not markup: a message may hold brackets. A line is a line, however narrow the console claims to be.
        self._console.print(Text(self._safe(line), style=style), highlight=False, soft_wrap=True)
        self._console.file.flush()  # a pipe is block-buffered, and its reader waits

    def _safe(self, text: str) -> str:
        """`text` without control characters, as a young model may sample them, in what the terminal can encode."""
        clean = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
        return clean.encode(self._console.encoding, "replace").decode(self._console.encoding, "replace")
