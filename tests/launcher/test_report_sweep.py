"""The page of a sweep: of planted runs it must find the planted optimum, name the best recipe and add up what all cost."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher.check import with_vocabulary
from launcher.cli import main
from launcher.compose import build_recipe, compose_tree, save_recipe
from launcher.config import Recipe
from launcher.derive import settle
from launcher.report.profiles import growth, power_of_ten, profiles_of
from launcher.schema import to_plain
from launcher.sweep.config import SweepConfig
from launcher.sweep.points import Planned, Point
from launcher.sweep.running import figures_of
from launcher.sweep.store import Store, new_owner
from models.config import count_parameters
from models.flops import flops_per_token

SIZES = {"24": 2, "48": 2, "96": 3, "192": 4}  # width: layers
BUDGETS = ("1e12", "4e12", "1.6e13")
E, A, B, ALPHA, BETA = 1.7, 400.0, 400.0, 0.34, 0.28


def planted(parameters: float, tokens: float) -> float:
    return E + A / parameters**ALPHA + B / tokens**BETA


def sized(base: Recipe, width: str, budget: str) -> Recipe:
    model = replace(base.model, hidden_size=int(width), layers=SIZES[width], heads=2, ffn_size=0)
    return settle(replace(base, model=model, train=replace(base.train, flops=float(budget))))


def write_run(directory: Path, recipe: Recipe, loss: float, seconds: float) -> None:
    """What a finished run leaves, as far as a page reads it: ten steps of a tenth of its tokens."""
    directory.mkdir(parents=True)
    save_recipe(recipe, directory / "config.yaml")
    tokens, parameters = recipe.train.tokens, count_parameters(recipe.model)
    start = {
        "kind": "start",
        "start_step": 0,
        "total_steps": 10,
        "parameters": parameters,
        "world_size": 2,
        "time": 0.0,
    }
    lines = [start]
    for step in range(1, 11):
        own = {"tokens": tokens * step // 10, "loss": loss + 5 / step, "batch_tokens": tokens // 10}
        lines.append({"kind": "step", "step": step, **own, "step_seconds": seconds / 10, "time": seconds * step / 10})
    lines.append({"kind": "end", "outcome": "finished", "time": seconds})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "validation_loss": loss,
        "bits_per_byte": loss / 2,
        "tokens": tokens,
        "parameters": parameters,
        "skipped_steps": 0,
    }
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve planted runs: eleven done, the last failed."""
    place = tmp_path_factory.mktemp("sweeps") / "planted"
    base = with_vocabulary(
        build_recipe(compose_tree(["tracker=none", "cluster.price=3", "train.batch_tokens=256"])), 1024
    )
    store, owner = Store(place, create=True), new_owner()
    axes = {"budget": {one: [f"train.flops={one}"] for one in BUDGETS}, "size": {one: [] for one in SIZES}}
    store.describe(to_plain(SweepConfig(name="planted <sweep>", axes=axes, compare="size")))
    for position, (budget, size) in enumerate(itertools.product(BUDGETS, SIZES)):
        recipe = sized(base, size, budget)
        point = Point(
            {"budget": budget, "size": size}, position, (f"train.flops={budget}", f"model.hidden_size={size}"), ()
        )
        name = store.add([Planned(point, recipe)])[0]
        row = store.claim({name}, owner)
        assert row is not None
        if position == 11:
            store.leave(name, owner, "failed", error="no <luck>")
            continue
        loss = planted(count_parameters(recipe.model), recipe.train.tokens)
        write_run(place / row.directory, recipe, loss, 3600.0)
        store.leave(name, owner, "done", figures=figures_of(place / row.directory))
    store.close()
    return place


class Reader(HTMLParser):
    """Texts of a page, and whether its elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(sweep)]) == 0
    told = capsys.readouterr().out.split()
    assert told == [str(sweep / name) for name in ("report.html", "report_curves.png", "report_profiles.png")]
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in told[1:])
    page = Reader((sweep / "report.html").read_text())
    assert page.links and all(link.startswith("data:image/") for link in page.links), "nothing else is needed"
    text = " ".join(page.text)
    assert "planted <sweep>" in text and "11 done, 1 failed" in text and "size=192: no <luck>" in text
    runs = [json.loads(path.read_text()) for path in sweep.glob("runs/*/summary.json")]
    best = min(runs, key=lambda run: run["validation_loss"])
    assert f"{best['validation_loss']:.4f}" in text and "triaxis train train.flops=1.6e13" in text
    assert "22 h 00 min" in text and "66.00" in text, "eleven hours of two processes, at 3 dollars"
    assert text.count("●") >= len(BUDGETS), "the lowest of each column"
    assert main(["report", str(sweep), str(sweep)]) == 1 and "name one sweep" in capsys.readouterr().err


def test_profiles_find_what_was_planted() -> None:
    """With loss E + A/N^a + B/D^b and C = 6ND the best size is G (C/6)^(b/(a+b)) (Chinchilla, equation 4)."""
    gain = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    runs = []
    for budget in (1e18, 1e19, 1e20):
        best = gain * (budget / 6) ** (BETA / (ALPHA + BETA))
        for share in (0.5, 0.7, 1.0, 1.4, 2.0):
            runs.append((budget * (1 + 0.01 * share), best * share, planted(best * share, budget / 6 / (best * share))))
    profiles = profiles_of(runs)
    assert [len(profile.parameters) for profile in profiles] == [5, 5, 5]
    for profile, budget in zip(profiles, (1e18, 1e19, 1e20), strict=True):
        best = gain * (budget / 6) ** (BETA / (ALPHA + BETA))
        assert profile.best is not None and math.log(profile.best / best) == pytest.approx(0, abs=0.03)
        assert profile.at(best) == pytest.approx(planted(best, budget / 6 / best), rel=1e-3)
    law = growth(profiles)
    assert law is not None and law[0] == pytest.approx(BETA / (ALPHA + BETA), abs=5e-3)


def test_what_is_no_profile() -> None:
    falling = [(1e18, 10.0**size, 5.0 - size) for size in range(3)]
    assert [one.best for one in profiles_of(falling)] == [None], "lowest at the edge: no optimum is told"
    assert profiles_of(falling[:2]) == [] and growth(profiles_of(falling)) is None
    assert profiles_of([(1e18, 1e6, math.nan)]) == []
    twice = profiles_of([(1e18, size, loss) for size in (1.0, 2.0, 4.0) for loss in (size, size + 2)])
    assert twice[0].losses == (2.0, 3.0, 5.0), "seeds are one size"
    assert [power_of_ten(value) for value in (2e12, 1.53e9, 0.0)] == ["2e12", "1.5e9", "0e0"]


def test_a_law_is_fitted_or_it_is_said_why_not(sweep: Path, tmp_path: Path) -> None:
    from launcher.report.law import law_section

    assert law_section(sweep, "") == ("", {})
    section, pictures = law_section(sweep, "chinchila")
    assert "did you mean chinchilla" in section and not pictures
    section, pictures = law_section(sweep, "chinchilla")
    assert pictures["law"][:4] == b"\x89PNG" and "from 11 runs" in section
    Reader(section)


def test_a_run_costs_its_steps(sweep: Path) -> None:
    store = Store(sweep)
    rows = [row for row in store.rows() if row.state == "done"]
    store.close()
    for row in rows:
        recipe = sized(build_recipe(compose_tree([])), row.labels["size"], row.labels["budget"])
        model = replace(recipe.model, vocab_size=1024)
        steps = row.figures["tokens"] // 10 * 10
        assert row.figures["flops"] == pytest.approx(steps * flops_per_token(model, recipe.train.sequence_length))
        assert row.figures["flops"] == pytest.approx(float(row.labels["budget"]), rel=0.01)
