"""The page: one HTML file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from launcher.callbacks.units import ABSENT, count, duration, finite
from launcher.report.collect import PhaseSpan, Run
from launcher.report.compare import differences
from launcher.report.operators import operators_of
from launcher.report.style import STYLE

_MOST_EVENTS = 200


@dataclass(frozen=True)
class Plate:
    """A further picture under its own heading: two SVGs, for light and dark systems, or one PNG with its description below."""

    title: str
    description: str
    light: bytes
    dark: bytes | None = None


def render_page(runs: Sequence[Run], light: bytes, dark: bytes, plates: Sequence[Plate] = ()) -> str:
    """The page of one run, with its further pictures, or of several; `light` and `dark` are its curves as SVG."""
    body = _single(runs[0], light, dark, plates) if len(runs) == 1 else _several(runs, light, dark)
    return page_html(" · ".join(run.name for run in runs), body)


def page_html(title: str, body: str) -> str:
    """A whole page around what it shows."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _single(run: Run, light: bytes, dark: bytes, plates: Sequence[Plate]) -> str:
    return "".join(
        (
            f"<header>\n<h1>{escape(run.name)}</h1>\n<p>{_state(run)}</p>\n</header>\n",
            notes_html(run.notes),
            _headline(run),
            figure_html(f"Curves of {run.name} against tokens", light, dark),
            section_html("Against the baselines", _baseline_table(run)),
            *(section_html(plate.title, _plate(plate)) for plate in plates),
            section_html("Operators", _operator_table(run)),
            section_html("Phases", _phase_table(run)),
            section_html("Samples", _samples(run)),
            section_html("Events", _event_table(run)),
            section_html("Layout", _pre(run.facts.get("mesh"))),
            section_html("Environment", _environment(run)),
            section_html("Recipe", _recipe(run)),
        )
    )


def _several(runs: Sequence[Run], light: bytes, dark: bytes) -> str:
    names = escape(", ".join(run.name for run in runs))
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    if len({tuple(run.baselines.items()) for run in runs}) > 1:
        notes.append("The runs have different baselines: another corpus or tokenizer. Compare bits per byte, not loss.")
    return "".join(
        (
            f"<header>\n<h1>{len(runs)} runs side by side</h1>\n<p>{names}</p>\n</header>\n",
            notes_html(notes),
            figure_html(f"Curves of {', '.join(run.name for run in runs)} against tokens", light, dark),
            section_html("Results", _results_table(runs)),
            section_html("Where the recipes differ", _difference_table(runs)),
            "".join(section_html(f"Samples of {run.name}", _samples(run, most=1)) for run in runs),
        )
    )


def _state(run: Run) -> str:
    said = run.outcome or "killed, or still training"
    total = run.at_start("total_steps")
    of = f" of {total:,}" if isinstance(total, int) and total > run.steps[-1]["step"] else ""
    breaks = f", resumed {len(run.resumes)} times" if run.resumes else ""
    kind = "good" if run.outcome == "finished" else "open"
    return f'<span class="state {kind}">{escape(said)}</span> {run.steps[-1]["step"]:,}{of} steps{breaks}'


def _headline(run: Run) -> str:
    nearest = list(run.baselines.items())[-1:]  # the strongest baseline
    tiles = [
        ("validation loss", _number(run.validation_loss, 3), "nats/token"),
        ("bits per byte", _number(run.bits_per_byte, 3), ""),
        *((f"against {name}", _signed(run.validation_loss, value), "") for name, value in nearest),
        ("tokens", count(run.tokens[-1]), ""),
        ("parameters", count(finite(run.facts.get("parameters")) or run.at_start("parameters")), ""),
        ("time", duration(run.seconds), ""),
        ("speed", count(_speed(run.steps)), "tokens/s"),
    ]
    return tiles_html(tiles)


def tiles_html(tiles: Iterable[tuple[str, str, str]]) -> str:
    """(name, value, unit) side by side; what has no value is left out."""
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for name, value, unit in tiles
        if value != ABSENT
    )
    return '<dl class="headline">\n' + "\n".join(cells) + "\n</dl>\n"


def figure_html(description: str, light: bytes, dark: bytes, form: str = "svg+xml") -> str:
    """A picture in the page itself, for light and dark systems."""
    light_uri, dark_uri = (f"data:image/{form};base64,{base64.b64encode(file).decode()}" for file in (light, dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark_uri}">'
        f'<img src="{light_uri}" alt="{escape(description)}"></picture></figure>\n'
    )


def _plate(plate: Plate) -> str:
    if plate.dark is not None:
        return figure_html(plate.description, plate.light, plate.dark)
    uri, told = f"data:image/png;base64,{base64.b64encode(plate.light).decode()}", escape(plate.description)
    return f'<figure><picture><img src="{uri}" alt="{told}"></picture></figure>\n<p>{told}</p>\n'


def _baseline_table(run: Run) -> str:
    if not run.baselines or run.validation_loss is None:
        return ""
    rows = [
        [name, f"{value:.3f}", _signed(run.validation_loss, value), _minus(f"{run.validation_loss / value - 1:+.1%}")]
        for name, value in run.baselines.items()
    ]
    rows.append([run.name, f"{run.validation_loss:.3f}", "", ""])
    return table_html(["", "nats/token", "the run against it", ""], rows)


def _phase_table(run: Run) -> str:
    head = ["phase", "steps", "tokens", "training loss", "best validation", "tokens/s", "time", "skipped"]
    before = 0.0
    rows = []
    for phase in run.phases:
        tokens = finite(phase.steps[-1].get("tokens")) or before
        rows.append(
            [phase.name or ABSENT, f"{phase.first_step:,} \N{EN DASH} {phase.last_step:,}", count(tokens - before)]
        )
        rows[-1] += _phase_cells(phase)
        before = tokens
    return table_html(head, rows)


def _operator_table(run: Run) -> str:
    found = operators_of(run.directory)
    return f"<p>{escape(found[0])}</p>\n" + table_html(["", "calls", "ms", "share"], found[1]) if found else ""


def _phase_cells(phase: PhaseSpan) -> list[str]:
    losses = _values(phase.steps, "loss")
    validations = _values(phase.validations, "validation_loss")
    return [
        f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else ABSENT,
        _number(min(validations, default=None), 3),
        count(_speed(phase.steps)),
        duration(sum(_values(phase.steps, "step_seconds"))),
        str(sum(bool(record.get("skipped")) for record in phase.steps)),
    ]


def _event_table(run: Run) -> str:
    events = run.events[-_MOST_EVENTS:]
    rows = [[f"{e.get('step', 0):,}", str(e.get("event", "")), str(e.get("text", ""))] for e in events]
    more = f"<p>The last {_MOST_EVENTS} of {len(run.events):,}.</p>\n" if len(run.events) > _MOST_EVENTS else ""
    table = table_html(["step", "event", ""], rows, text_columns=(1, 2))
    unfolded = " open" if len(rows) <= 15 else ""
    return f"<details{unfolded}><summary>{len(rows)} events</summary>\n{more}{table}</details>\n" if rows else ""


def _samples(run: Run, most: int = 4) -> str:
    final = run.facts.get("samples")
    given = final if isinstance(final, list) and final else list(reversed(run.samples))
    parts = []
    for sample in given[:most]:
        known: Mapping[str, Any] = sample if isinstance(sample, Mapping) else {"text": sample}
        prompt, text = str(known.get("prompt") or ""), str(known.get("text") or "")
        step = f"<figcaption>after step {known['step']:,}</figcaption>" if isinstance(known.get("step"), int) else ""
        parts.append(f'<figure class="sample">{step}<pre><b>{escape(prompt)}</b>{escape(text)}</pre></figure>\n')
    return "".join(parts)


def _environment(run: Run) -> str:
    rows: list[list[str]] = []
    for key in ("machine", "versions", "git", "environment"):
        value = run.facts.get(key)
        if isinstance(value, Mapping):
            rows += [[str(name), _plain(item)] for name, item in value.items()]
        elif value:
            rows.append([key, _plain(value)])
    world = run.at_start("world_size")
    rows += [["processes", str(world)]] if world else []
    return table_html(["", ""], rows, text_columns=(1,))


def _recipe(run: Run) -> str:
    if not run.config_text:
        return ""
    return f"<details><summary>config.yaml, resolved</summary>{_pre(run.config_text)}</details>\n"


def _results_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        rows.append([
            run.name,
            run.outcome or "not ended",
            _number(run.validation_loss, 4),
            _number(run.bits_per_byte, 4),
            count(run.tokens[-1]),
            f"{run.steps[-1]['step']:,}",
            count(finite(run.facts.get("parameters")) or run.at_start("parameters")),
            duration(run.seconds),
            count(_speed(run.steps)),
        ])  # fmt: skip
    head = ["run", "", "validation loss", "bits/byte", "tokens", "steps", "parameters", "time", "tokens/s"]
    return table_html(head, rows, text_columns=(1,))


def _difference_table(runs: Sequence[Run]) -> str:
    rows = differences([run.config for run in runs])
    if not any(run.config for run in runs):
        return ""
    if not rows:
        return "<p>The recipes are the same, but for the name of the run.</p>\n"
    return table_html(["", *(run.name for run in runs)], [[key, *values] for key, values in rows.items()])


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """The first column names the row; the others are numbers, at the right, but for the `text_columns`."""
    if not rows:
        return ""

    def cell(column: int, value: str, tag: str) -> str:
        kind = "" if column == 0 or column in text_columns else ' class="number"'
        scope = (' scope="col"' if tag == "th" else "") if value or tag == "td" else ""
        return f"<{tag}{kind}{scope}>{escape(value)}</{tag}>"

    top = "".join(cell(i, name, "th") for i, name in enumerate(head))
    header = f"<thead><tr>{top}</tr></thead>\n" if any(head) else ""
    lines = ("<tr>" + "".join(cell(i, value, "td") for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n{header}<tbody>\n' + "\n".join(lines) + "\n</tbody>\n</table></div>\n"


def section_html(title: str, content: str) -> str:
    """A part of the page under its heading; nothing where it has no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>\n" if content else ""


def notes_html(notes: Iterable[str]) -> str:
    """What a reader must know before all else, a paragraph each."""
    return "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)


def _pre(text: Any) -> str:
    return f"<pre>{escape(str(text).rstrip())}</pre>\n" if text else ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _values(records: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [value for record in records if (value := finite(record.get(name))) is not None]


def _speed(steps: Iterable[Mapping[str, Any]]) -> float | None:
    """The median, which a slow first step doesn't move."""
    known = _values(steps, "tokens_per_second")
    return float(np.median(known)) if known else None


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, reference: float) -> str:
    return ABSENT if value is None else _minus(f"{value - reference:+.3f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
