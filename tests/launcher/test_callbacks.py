"""Trackers: what they write can be read back, survives kills and resumes, and never stops a run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.callbacks.base import RunView, StepRecord, ValidationRecord
from launcher.callbacks.metrics import FILE_NAME, MetricsFile, strict
from launcher.callbacks.progress import Progress
from launcher.callbacks.tensorboard import DIRECTORY, TensorBoardTracker
from launcher.callbacks.units import count, duration
from launcher.callbacks.wandb import ID_FILE, WandbTracker, run_id

NAN, INF = float("nan"), float("inf")


def view(directory: Path, start_step: int = 0, **changes: Any) -> RunView:
    known = {"config": {"seed": 1}, "total_steps": 20, "total_tokens": 2000, "parameters": 4_300_000}
    facts = {"baselines": {"unigram": 5.6, "bigram": 3.85}}
    return RunView("tiny", directory, rank=0, world_size=2, start_step=start_step, facts=facts, **{**known, **changes})


def step(number: int, **changes: Any) -> StepRecord:
    fields = {"loss": 7.0 - number / 10, "grad_norm": 0.8, "skipped": False, "flops_utilisation": None, **changes}
    return StepRecord(
        step=number, phase="only", tokens=100 * number, learning_rate=3e-3, tokens_per_second=9412.0,
        step_seconds=0.01, data_seconds=0.001, skipped_total=int(fields["skipped"]), batch_hash="ab", **fields,
    )  # fmt: skip


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, "only", 100 * number, validation_loss=4.35 - number / 100, bits_per_byte=1.7)


def train(callback: Any, run: RunView, last: int, outcome: str | None = "finished") -> None:
    """Every hook as a loop calls them; without an outcome it ends as a kill does."""
    callback.on_start(run)
    if run.start_step:
        callback.on_event(run.start_step, "resume", "from the checkpoint")
    for number in range(run.start_step + 1, last + 1):
        callback.on_step(step(number))
        if number % 5 == 0:
            callback.on_validation(validation(number))
            callback.on_sample(number, "def ", "f(x):\n    return x")
            callback.on_event(number, "checkpoint", f"step {number}")
    if outcome:
        callback.on_end(outcome)


def lines(directory: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (directory / FILE_NAME).read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def steps_of(directory: Path, kind: str = "step") -> list[int]:
    return [record["step"] for record in lines(directory) if record["kind"] == kind]


# metrics.jsonl


def test_a_line_has_what_readers_of_metrics_expect(tmp_path: Path) -> None:
    train(MetricsFile(), view(tmp_path), last=5)
    records = {record["kind"]: record for record in lines(tmp_path)}
    wanted = "step tokens loss grad_norm learning_rate tokens_per_second step_seconds batch_hash skipped_total"
    assert set(wanted.split()) <= set(records["step"])
    assert {"step", "tokens", "validation_loss", "bits_per_byte"} <= set(records["validation"])
    assert records["event"]["text"] == "step 5" and records["event"]["event"] == "checkpoint"
    assert records["sample"]["text"] == "f(x):\n    return x"
    assert records["start"]["facts"]["baselines"]["bigram"] == 3.85
    assert records["end"]["outcome"] == "finished"


def test_a_line_is_in_the_file_when_the_hook_returns(tmp_path: Path) -> None:
    metrics = MetricsFile()
    train(metrics, view(tmp_path), last=3, outcome=None)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_nan_and_infinity_are_null(tmp_path: Path) -> None:
    metrics = MetricsFile()
    metrics.on_start(view(tmp_path))
    metrics.on_step(step(1, loss=NAN, grad_norm=INF, skipped=True))
    record = lines(tmp_path)[-1]
    assert record["loss"] is None and record["grad_norm"] is None and record["skipped"] is True
    assert strict({"a": [NAN, (1, -INF)], 2: Path("x")}) == {"a": [None, [1, None]], "2": "x"}


def test_a_resume_leaves_one_value_a_step(tmp_path: Path) -> None:
    train(MetricsFile(), view(tmp_path), last=13, outcome=None)
    train(MetricsFile(), view(tmp_path, start_step=10), last=20)
    assert steps_of(tmp_path) == list(range(1, 21))
    assert steps_of(tmp_path, "validation") == steps_of(tmp_path, "sample") == [5, 10, 15, 20]
    events = [(record["event"], record["step"]) for record in lines(tmp_path) if record["kind"] == "event"]
    assert events == [("checkpoint", 5), ("checkpoint", 10), ("resume", 10), ("checkpoint", 15), ("checkpoint", 20)]


def test_what_happened_beyond_the_checkpoint_is_still_told(tmp_path: Path) -> None:
    metrics = MetricsFile()
    train(metrics, view(tmp_path), last=13, outcome=None)
    metrics.on_event(13, "interrupted", "SIGTERM")
    metrics.on_end("interrupted")
    MetricsFile().on_start(view(tmp_path, start_step=10))
    assert [record["event"] for record in lines(tmp_path) if record["kind"] == "event"][-1] == "interrupted"


@pytest.mark.parametrize("torn", [1, 20, 60])
def test_a_torn_last_line_is_taken_out(tmp_path: Path, torn: int) -> None:
    train(MetricsFile(), view(tmp_path), last=7, outcome=None)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-torn])
    train(MetricsFile(), view(tmp_path, start_step=6), last=9)
    assert steps_of(tmp_path) == list(range(1, 10))
    assert not list(tmp_path.glob("*.repair"))


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    train(MetricsFile(), view(tmp_path), last=4, outcome=None)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    train(MetricsFile(), view(tmp_path, start_step=4), last=6)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_file_of_zeros_after_a_power_cut_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"kind":"step","step":1}\n' + b"\0" * 64 + b"\xff\xfe\n[1]\n7\n")
    MetricsFile().on_start(view(tmp_path, start_step=1))
    assert [record["kind"] for record in lines(tmp_path)] == ["step", "start"]


# progress


def plain(**options: Any) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(console=Console(file=out, width=100), **options), out


def test_plain_lines_say_what_matters(tmp_path: Path) -> None:
    progress, out = plain(every_steps=10, every_seconds=1e9)
    train(progress, view(tmp_path), last=20)
    text = out.getvalue()
    shown = [line.split()[1] for line in text.splitlines() if "tokens/s" in line]
    assert shown == ["1/20", "10/20", "20/20"]
    last = next(line for line in text.splitlines() if line.startswith("step 20/20"))
    for part in (
        "2.00k tokens",
        "loss 5.0000",
        "validation 4.2000",
        "lr 3.00e-03",
        "grad norm 0.800",
        "9.41k tokens/s",
    ):
        assert part in last, (part, last)
    assert "validation 4.1500 nats/token  1.7000 bits/byte  (unigram 5.600, bigram 3.850)" in text
    assert "  │ def f(x):\n  │     return x\n" in text
    assert "step  5/20  checkpoint: step 5" in text
    assert text.endswith("finished at step 20\n")
    assert "\x1b" not in text


def test_plain_lines_come_by_the_clock_too(tmp_path: Path) -> None:
    progress, out = plain(every_steps=1000, every_seconds=0.0)
    train(progress, view(tmp_path), last=7)
    assert out.getvalue().count("tokens/s") == 7


def test_optional_numbers_are_shown_where_they_are_known(tmp_path: Path) -> None:
    progress, out = plain(every_steps=1)
    progress.on_start(view(tmp_path))
    progress.on_step(step(1, flops_utilisation=0.415, skipped=True, loss=NAN))
    assert "41.5% of peak" in out.getvalue() and "1 skipped" in out.getvalue() and "loss nan" in out.getvalue()


def test_sampled_escape_sequences_and_markup_do_not_reach_the_terminal(tmp_path: Path) -> None:
    progress, out = plain()
    progress.on_start(view(tmp_path))
    progress.on_sample(1, "[bold]", "\x1b[2J\x07 \ud800 [/nothing]")
    progress.on_event(1, "warning", "[red]a[/red] \x1b]0;title\x07")
    assert "[bold]" in out.getvalue() and "[red]a[/red]" in out.getvalue() and "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_display_shows_all_at_any_width(tmp_path: Path, width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=30, force_terminal=True, _environ={"TERM": "xterm"})
    progress = Progress(live=True, console=console)
    train(progress, view(tmp_path, total_tokens=0), last=20)
    text = out.getvalue()
    for part in ("learning rate", "3.00e-03", "5.0000", "4.1500", "9.41k", "20/20", "100%", "checkpoint: step 20"):
        assert part in text, part
    assert text.endswith("finished at step 20\x1b[0m\n")


def test_an_exception_leaves_a_usable_terminal(tmp_path: Path) -> None:
    """In a pseudo-terminal: the cursor was never hidden, and the traceback stands below the display."""
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:3]\n"
        "import test_callbacks as t\n"
        "progress = t.Progress(); assert progress._is_live\n"
        "t.train(progress, t.view(pathlib.Path('.')), last=5, outcome=None)\n"
        "raise RuntimeError('after five steps')\n"
    )
    here = Path(__file__).resolve()
    own, terminal = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", program, str(here.parent), str(here.parents[2])]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment, cwd=tmp_path)
    os.close(terminal)
    text = b""
    try:
        while part := os.read(own, 4096):
            text += part
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(own)
    assert process.wait(timeout=30) == 1
    assert b"after five steps" in text and b"5/20" in text, text.decode()
    assert b"\x1b[?25l" not in text and b"\x1b[?1049h" not in text


# wandb


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_wandb_is_offline_unless_an_account_is_configured(
    no_account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert WandbTracker().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert WandbTracker().resolved_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbTracker().resolved_mode() == "off"
    assert WandbTracker("offline").resolved_mode() == "offline"
    (tmp_path / "netrc").unlink()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert WandbTracker().resolved_mode() == "online"
    with pytest.raises(ValueError, match="online, offline, off"):
        WandbTracker("sometimes")  # type: ignore[arg-type]


def test_a_resumed_run_continues_its_wandb_run(no_account: None, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    run.mkdir()
    train(WandbTracker(), view(run), last=7)
    train(WandbTracker(), view(run, start_step=5), last=10)
    identity = (run / ID_FILE).read_text().strip()
    assert run_id(run) == identity
    written = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 2 and {path.name for path in written} == {f"run-{identity}.wandb"}
    content = b"".join(path.read_bytes() for path in written)
    assert b"train/loss" in content and b"validation/bits_per_byte" in content


def test_a_failing_wandb_does_not_stop_the_run(
    no_account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, values: dict[str, Any]) -> None:
            raise ConnectionError("the service has gone")

    tracker = WandbTracker()
    monkeypatch.setattr(tracker, "_open", lambda run, mode: Broken())
    train(tracker, view(tmp_path), last=10)
    assert caplog.text.count("the service has gone") == 1

    asked: list[str] = []

    def unreachable(run: RunView, mode: str) -> None:
        asked.append(mode)
        raise TimeoutError("no answer")

    monkeypatch.setenv("WANDB_API_KEY", "key")
    tracker = WandbTracker()
    monkeypatch.setattr(tracker, "_open", unreachable)
    train(tracker, view(tmp_path), last=10)
    assert asked == ["online", "offline"]


# TensorBoard


def test_tensorboard_events_are_read_back_once_a_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    train(TensorBoardTracker(), view(tmp_path), last=8)
    train(TensorBoardTracker(), view(tmp_path, start_step=5), last=10)
    events = EventAccumulator(str(tmp_path / DIRECTORY))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))
    assert events.Scalars("train/loss")[-1].value == pytest.approx(6.0)
    assert [event.step for event in events.Scalars("validation/loss")] == [5, 10]
    assert "train/flops_utilisation" not in events.Tags()["scalars"]
    assert any(tag.startswith("sample") for tag in events.Tags()["tensors"])


# units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (1000, "1.00k"),
        (9412, "9.41k"),
        (999_999, "1.00M"),
        (43_200_000, "43.2M"),
        (5.3e11, "530B"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert count(number) == text


def test_durations() -> None:
    assert [duration(s) for s in (0.84, 42, 252, 7380, 180_000)] == [
        "0.8 s",
        "42 s",
        "4 min 12 s",
        "2 h 03 min",
        "2 d 2 h",
    ]
