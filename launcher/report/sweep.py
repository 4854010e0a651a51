"""`triaxis report sweeps/NAME`: one page about a whole sweep: curves, profiles, table, the best recipe, what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from launcher.callbacks.units import ABSENT, count, duration, finite
from launcher.report.collect import ReportError, read_run
from launcher.report.family import Member, family_picture
from launcher.report.law import law_section
from launcher.report.page import figure_html, notes_html, page_html, section_html, table_html, tiles_html
from launcher.report.profiles import Profile, growth, power_of_ten, profiles_of, profiles_picture
from launcher.report.theme import DARK, LIGHT
from launcher.schema import build
from launcher.sweep.config import SweepConfig
from launcher.sweep.picture import picture
from launcher.sweep.results import Results, results_of
from launcher.sweep.running import flops_per_token_of
from launcher.sweep.store import STATES, Row, Store


@dataclass(frozen=True)
class Cost:
    """What a sweep's runs took together. hours: of devices, as many as a run has processes; money: US dollars."""

    flops: float
    tokens: float
    hours: float
    money: float


def sweep_page(directory: Path) -> tuple[str, dict[str, bytes]]:
    """(the page, its pictures as PNGs by name) of a sweep as far as it is."""
    store = Store(directory)
    try:
        results = results_of(build(SweepConfig, store.description(), "sweep"), store.rows())
    finally:
        store.close()
    members = _members(directory, results.rows)
    if not members:
        raise ReportError(f"{directory}: no run of this sweep has begun; `triaxis sweep status` shows them")
    profiles = profiles_of(_points(directory, results.rows))
    pictures = {"curves": family_picture(members, results.sweep.compared, LIGHT, "png")}
    law, drawn_law = law_section(directory, results.sweep.law)
    light, dark = (family_picture(members, results.sweep.compared, theme, "svg") for theme in (LIGHT, DARK))
    parts = [
        _header(results, directory),
        tiles_html(_tiles(results, _cost(members))),
        figure_html(f"Training loss of all runs of {results.sweep.name}", light, dark),
    ]
    parts.append(law)
    pictures |= drawn_law
    if profiles:
        pictures["profiles"] = profiles_picture(profiles, LIGHT, "png")
        light, dark = (profiles_picture(profiles, theme, "svg") for theme in (LIGHT, DARK))
        drawn = figure_html("Loss over parameters by budget", light, dark)
        parts.append(section_html("Runs of equal compute", drawn + _profile_table(profiles)))
    parts += [
        section_html("Table", _table(results)),
        section_html("Best recipe", _best(results)),
        section_html("Runs", _runs(results)),
        section_html("Compared", _compared(results)) if results.lines and not profiles else "",
    ]
    return page_html(results.sweep.name, "".join(parts)), pictures


def _members(directory: Path, rows: Sequence[Row]) -> list[Member]:
    """Runs that have a curve; of points that mean one run the first."""
    found = []
    for row in {row.fingerprint: row for row in reversed(rows)}.values():
        place = directory / row.directory
        try:
            run = read_run(place)
        except ReportError:
            continue
        found.append(Member(run, row.labels, flops_per_token_of(place), row.state == "done"))
    return list(reversed(found))


def _points(directory: Path, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """(flops, parameters, loss) of every run that is done, all that its weights have seen counted."""
    found = []
    for row in rows:
        names = ("tokens", "parameters", "validation_loss")
        tokens, parameters, loss = (finite(row.figures.get(name)) for name in names)
        if row.state == "done" and tokens and parameters and loss is not None:
            found.append((tokens * flops_per_token_of(directory / row.directory), parameters, loss))
    return found


def _header(results: Results, directory: Path) -> str:
    runs = {row.fingerprint: row for row in results.rows}
    states = Counter(row.state for row in runs.values())
    told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    kind = "good" if states["done"] == len(runs) else "open"
    failed = [f"{row.name}: {row.error}" for row in runs.values() if row.state == "failed"]
    axes = " × ".join(f"{len(results.sweep.labels(axis))} {axis}" for axis in results.sweep.axes)
    return (
        f"<header>\n<h1>{escape(results.sweep.name)}</h1>\n"
        f'<p><span class="state {kind}">{escape(told)}</span> {escape(axes)} in {escape(str(directory))}</p>\n</header>\n'
        + notes_html(failed)
    )


def _cost(members: Sequence[Member]) -> Cost:
    flops = tokens = hours = money = 0.0
    for member in members:
        steps, run = member.run.steps, member.run
        used = steps[-1]["tokens"] - steps[0]["tokens"] + (finite(steps[0].get("batch_tokens")) or 0.0)
        own = (run.seconds or 0.0) / 3600 * (finite(run.at_start("world_size")) or 1.0)
        price = finite((run.config.get("cluster") or {}).get("price")) or 0.0
        flops, tokens, hours, money = (
            flops + used * member.flops_per_token,
            tokens + used,
            hours + own,
            money + own * price,
        )
    return Cost(flops, tokens, hours, money)


def _tiles(results: Results, cost: Cost) -> list[tuple[str, str, str]]:
    best = best_row(results)
    return [
        (f"best {words(results)}", _number(best.figures.get(results.sweep.metric)) if best else ABSENT, ""),
        ("compute", power_of_ten(cost.flops), "FLOP"),
        ("tokens", count(cost.tokens), ""),
        ("time of devices", duration(cost.hours * 3600), ""),
        ("money", f"{cost.money:,.2f}" if cost.money else ABSENT, "US dollars"),
    ]


def words(results: Results) -> str:
    """The figure that is compared, in words."""
    return results.sweep.metric.replace("_", " ")


def best_row(results: Results) -> Row | None:
    """The run with the lowest figure; ties go to the first."""
    done = [
        row for row in results.rows if row.state == "done" and finite(row.figures.get(results.sweep.metric)) is not None
    ]
    return min(done, key=lambda row: float(row.figures[results.sweep.metric]), default=None)


def _profile_table(profiles: list[Profile]) -> str:
    rows = []
    for one in profiles:
        low = min(one.losses)
        size = one.parameters[one.losses.index(low)]
        outside = "at the edge of the sizes" if one.best is None else ""
        rows.append([power_of_ten(one.flops), count(size), f"{low:.4f}", count(one.best), outside])
    law = growth(profiles)
    note = ""
    if law:
        note = f"<p>The best size grows as FLOP^{law[0]:.3f} (Chinchilla: 0.49, arXiv 2203.15556, approach 2).</p>\n"
    head = ["budget, FLOP", "best size that ran", "its loss", "where the parabola is lowest", ""]
    return table_html(head, rows, text_columns=(4,)) + note


def _table(results: Results) -> str:
    """A row for each label of the compared axis, columns for the others, the lowest figure of a column marked."""
    if not results.lines:
        return "<p>No run is done yet.</p>\n"
    head = [results.sweep.compared, *(" ".join(of.values()) or words(results) for of in results.columns)]
    lowest = []
    for of in results.columns:
        known = [line.mean for line in results.lines if line.of == of and not math.isnan(line.mean)]
        lowest.append(min(known, default=math.nan))
    rows = []
    for label in results.labels:
        cells = []
        for of, low in zip(results.columns, lowest, strict=True):
            line = results.line(label, of)
            mean = math.nan if line is None else line.mean
            shown = ABSENT if line is None else "diverged" if math.isnan(mean) else f"{mean:.4f}"
            cells.append(f"{shown} ●" if mean == low else shown)
        rows.append([label, *cells])
    about = " ".join(next(iter(results.columns), {}))
    over = f" by {about}" if about else ""
    return f"<p>{escape(words(results).capitalize())}{escape(over)}; ● is the lowest of a column.</p>\n" + table_html(
        head, rows
    )


def _best(results: Results) -> str:
    best = best_row(results)
    if best is None:
        return ""
    line = " ".join(_quoted(text) for text in ("triaxis train", *best.overrides))
    return f"<p>{escape(best.name)}</p>\n<pre>{escape(line)}</pre>\n"


def _quoted(text: str) -> str:
    return f"'{text}'" if set(text) & set("[]{}*$()") else text


def _runs(results: Results) -> str:
    rows = []
    for row in results.rows:
        own = row.figures
        rows.append([
            row.name, row.state, _number(own.get("validation_loss")), _number(own.get("bits_per_byte")),
            count(finite(own.get("parameters"))), count(finite(own.get("tokens"))),
            power_of_ten(own["flops"]) if finite(own.get("flops")) else ABSENT, duration(finite(own.get("seconds"))),
        ])  # fmt: skip
    head = ["run", "", "validation loss", "bits/byte", "parameters", "tokens", "FLOP", "time of steps"]
    shown = table_html(head, rows, text_columns=(1,))
    return shown if len(rows) <= 30 else f"<details><summary>{len(rows)} runs</summary>{shown}</details>\n"


def _compared(results: Results) -> str:
    return figure_html(
        f"{words(results)} by {results.sweep.compared}", picture(results, LIGHT), picture(results, DARK), "png"
    )


def _number(value: object) -> str:
    known = finite(value)
    return ABSENT if known is None else f"{known:.4f}"
