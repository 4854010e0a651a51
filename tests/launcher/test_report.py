"""Reports: of finished, resumed, killed and broken runs, alone and side by side."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from launcher.callbacks.base import RunView, StepRecord, ValidationRecord
from launcher.callbacks.metrics import FILE_NAME, MetricsFile
from launcher.report import ReportError, read_run, write_report
from launcher.report.compare import differences, flatten
from launcher.report.curves import smooth, thin

BASELINES = {"unigram": 5.61, "bigram": 3.85}


def make_run(
    directory: Path, last: int = 60, learning_rate: float = 3e-3, finished: bool = True, **settings: Any
) -> Path:
    """A run of two phases that was resumed at step 20 and skipped step 10; a kill leaves no summary."""
    directory.mkdir(parents=True)
    config = {
        "run": {"name": directory.name, "dir": str(directory)},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate},
        **settings,
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    tokens = np.cumsum([100 if step <= 40 else 200 for step in range(1, last + 1)])
    for start, end in ((0, 25), (20, last)):
        metrics = MetricsFile()
        facts = {"baselines": BASELINES}
        metrics.on_start(RunView(directory.name, directory, config, 0, 2, start, 60, 8000, 4_300_000, facts))
        for step in range(start + 1, end + 1):
            phase, skipped = ("short" if step <= 40 else "long"), step == 10
            loss = float("nan") if skipped else 3.4 + 3.5 * float(np.exp(-step / 15))
            consumed = int(tokens[step - 1])
            metrics.on_step(StepRecord(step, phase, consumed, loss, 1.0, learning_rate, 1e4, 0.01, 0.0, skipped,
                                       int(step >= 10), None, "ab"))  # fmt: skip
            if step % 20 == 0:
                metrics.on_validation(ValidationRecord(step, phase, consumed, loss + 0.05, loss / 2))
                metrics.on_sample(step, "def ", "f(a: <T>) & 'g'")
                metrics.on_event(step, "checkpoint", f"step {step} <committed>")
    if finished:
        metrics.on_end("finished")
        summary = {"parameters": 4_300_000, "baselines": BASELINES, "versions": {"torch": "2.13.0"},
                   "mesh": "tensor 2", "samples": [{"prompt": "import ", "text": "os & sys"}]}  # fmt: skip
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


class Page(HTMLParser):
    """The texts of a page by kind, and whether its elements are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.sections: list[str] = []
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.feed(self.html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.sources += [value for name in ("src", "srcset", "href") if (value := known.get(name))]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.sections.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run with its report."""
    run = make_run(tmp_path_factory.mktemp("runs") / "tiny")
    assert write_report([run]) == (run / "report.html", run / "report.png")
    return run


def test_one_run(reported: Path) -> None:
    assert (reported / "report.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = Page(reported / "report.html")
    assert page.sections == [
        "Against the baselines", "Phases", "Samples", "Events", "Layout", "Environment", "Recipe"
    ]  # fmt: skip
    loss = 3.4 + 3.5 * np.exp(-60 / 15) + 0.05
    assert f"{loss:.3f} <small>nats/token</small>" in page.html
    assert ["bigram", "3.850", f"\N{MINUS SIGN}{3.85 - loss:.3f}", f"\N{MINUS SIGN}{1 - loss / 3.85:.1%}"] in page.rows
    assert ["torch", "2.13.0"] in page.rows and ["40", "checkpoint", "step 40 <committed>"] in page.rows
    assert "<b>import </b>os &amp; sys" in page.html
    assert "learning_rate: 0.003" in page.html
    assert re.search(r'state good">finished</span> 60 steps, resumed', page.html)


def test_a_page_needs_nothing_but_itself(reported: Path) -> None:
    page = Page(reported / "report.html")
    assert len(page.sources) == 2 and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "prefers-color-scheme: dark" in page.html
    assert str(reported.parent) not in page.html.split("<h2>Recipe")[0]


def test_phases_count_their_own_tokens(reported: Path) -> None:
    page = Page(reported / "report.html")
    rows = {row[0]: row for row in page.rows}
    dash = "\N{EN DASH}"
    assert rows["short"][1:3] == [f"1 {dash} 40", "4.00k"] and rows["short"][-1] == "1"
    assert rows["long"][1:3] == [f"41 {dash} 60", "4.00k"] and rows["long"][-1] == "0"


def test_equal_runs_give_equal_reports(reported: Path, tmp_path: Path) -> None:
    first = [(reported / name).read_bytes() for name in ("report.html", "report.png")]
    assert [path.read_bytes() for path in write_report([reported], tmp_path / "again.html")] == first


def test_a_killed_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny", last=47, finished=False)
    with (run / FILE_NAME).open("a") as file:
        file.write('{"kind": "step", "step": 48, "lo')
    (run / "config.yaml").unlink()
    page = Page(write_report([run])[0])
    assert "killed, or still training" in page.html and "47 of 60 steps" in page.html
    assert "config.yaml cannot be read" in page.html
    assert "Against the baselines" in page.sections and "Recipe" not in page.sections
    assert "<figcaption>after step 40</figcaption>" in page.html


def test_the_least_a_run_can_be(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"kind": "step", "step": 1, "tokens": 10, "loss": null}\n')
    (tmp_path / "summary.json").write_text("{")
    page = Page(write_report([tmp_path])[0])
    assert "1 steps" in page.html and "summary.json cannot be read" in page.html


def test_several_runs_show_where_they_differ(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "one", parallel={"zero": 1, "tensor": 2}),
        make_run(tmp_path / "two", learning_rate=1e-3, parallel={"zero": 2, "tensor": 2}, extra=None),
        make_run(tmp_path / "three", last=45, finished=False, parallel={"zero": 1, "tensor": 2}),
    ]
    html_path, png_path = write_report(runs)
    assert html_path == tmp_path / "comparison.html" and png_path.exists()
    page = Page(html_path)
    assert ["", "one", "two", "three"] in page.rows
    assert ["optimizer.learning_rate", "0.003", "0.001", "0.003"] in page.rows
    assert ["parallel.zero", "1", "2", "1"] in page.rows
    assert ["extra", "\N{EN DASH}", "null", "\N{EN DASH}"] in page.rows
    paths = {row[0] for row in page.rows}
    assert not paths & {"run.name", "run.dir", "parallel.tensor", "optimizer.name"}
    assert ["three", "not ended"] in [row[:2] for row in page.rows]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "a" / "tiny"), make_run(tmp_path / "b" / "tiny")], tmp_path)[0])
    assert "a/tiny, b/tiny" in page.html and "The recipes are the same" in page.html


def test_runs_on_other_text_are_warned_about(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    (runs[1] / "summary.json").write_text(json.dumps({"baselines": {"unigram": 6.0, "bigram": 4.0}}))
    assert "Compare bits per byte" in Page(write_report(runs)[0]).html


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is no directory"), ({}, "metrics.jsonl does not exist"), ({FILE_NAME: ""}, "holds no finished step yet")],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: dict[str, str] | None, message: str) -> None:
    run = tmp_path / "runs" / "missing"
    if content is not None:
        run.mkdir(parents=True)
        for name, text in content.items():
            (run / name).write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        write_report([run])
    assert str(run) in str(caught.value)


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(ReportError, match="no run directory was given"):
        write_report([])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "report.html")


def test_the_newest_validation_stands_before_an_older_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    (run / "summary.json").write_text(json.dumps({"validation_loss": 9.0}))
    assert read_run(run).validation_loss == pytest.approx(3.45 + 3.5 * np.exp(-4))


def test_time_counts_no_break_between_processes(tmp_path: Path) -> None:
    times = [("start", 0), ("step", 10), ("step", 20), ("start", 5000), ("step", 5010)]
    lines = [{"kind": kind, "time": time, "step": i, "tokens": i} for i, (kind, time) in enumerate(times)]
    (tmp_path / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(tmp_path).seconds == 30


def test_smoothing_keeps_constants_and_passes_over_holes() -> None:
    values = np.full(300, 2.5)
    values[[0, 7, 150]] = np.nan
    assert np.allclose(smooth(values), 2.5)
    line = np.linspace(0, 1, 1000)
    assert np.allclose(smooth(line)[100:-100], line[100:-100])  # no lag
    assert len(thin(line, 100)) == 100 and np.isclose(thin(line, 100).mean(), 0.5)
    assert np.isnan(thin(np.full(1000, np.nan), 10)).all()


def test_flattened_recipes() -> None:
    recipe = {"a": {"b": [1, 2], "c": None}, "phases": [{"name": "x"}, {"name": "y"}]}
    assert flatten(recipe) == {"a.b": "[1, 2]", "a.c": "null", "phases.0.name": "x", "phases.1.name": "y"}
    assert differences([recipe, recipe]) == {}
