"""`triaxis report`: one page and one picture about a run, or about several side by side.

    collect   what the files of a run directory say
    draw      the picture (theme, curves and marks are its parts)
    page      the page (style and compare are its parts)

A run that was killed, or that still goes on, gets a report of what it has done so far.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.callbacks.formats import FILE_NAME as FORMATS_FILE
from launcher.callbacks.routing import FILE_NAME as ROUTING_FILE
from launcher.report.collect import ReportError, Run, read_run

if TYPE_CHECKING:
    from launcher.report.page import Plate

SWEEP_FILE = "sweep.db"  # of launcher.sweep.store, which a report of runs does not need

__all__ = ["ReportError", "Run", "read_run", "write_report"]


def write_report(directories: Sequence[Path], out: Path | None = None) -> tuple[Path, ...]:
    """Write the report of one run, of one sweep, or the comparison of several runs; returns the paths of the page and of its
    pictures.

    `out` names the page (its suffix may be left out); the picture lies beside it. Without it they are
    `<run>/report.html` for one run and `comparison.html` in the directory that holds the first of several.
    """
    if not directories:
        raise ReportError("no run directory was given; name at least one, as in `triaxis report runs/tiny`")
    if any((Path(directory) / SWEEP_FILE).is_file() for directory in directories):
        return _write_sweep([Path(directory) for directory in directories], out)
    runs = _distinct_names([read_run(Path(directory)) for directory in directories])
    html_path = _html_path([run.directory for run in runs], out)
    png_path = html_path.with_suffix(".png")

    from launcher.report.draw import picture  # matplotlib only once there is something to draw
    from launcher.report.page import render_page
    from launcher.report.theme import DARK, LIGHT

    plates = _plates(runs[0], png_path) if len(runs) == 1 else []
    page = render_page(runs, light=picture(runs, LIGHT, "svg"), dark=picture(runs, DARK, "svg"), plates=plates)
    _write(png_path, picture(runs, LIGHT, "png"))
    _write(html_path, page.encode("utf-8"))
    return html_path, png_path


def _write_sweep(directories: list[Path], out: Path | None) -> tuple[Path, ...]:
    from launcher.report.sweep import sweep_page

    if len(directories) > 1:
        raise ReportError(f"{len(directories)} directories, among them a sweep's: name one sweep, or runs alone")
    html_path = _html_path(directories, out)
    page, pictures = sweep_page(directories[0])
    for name, png in pictures.items():
        _write(html_path.with_name(f"{html_path.stem}_{name}.png"), png)
    _write(html_path, page.encode("utf-8"))
    return html_path, *(html_path.with_name(f"{html_path.stem}_{name}.png") for name in pictures)


def _plates(run: Run, png_path: Path) -> list[Plate]:
    """The further pictures of a run: where a mixture's tokens went, what became of operands in block formats, what was read,
    and a measured step of its pipeline."""
    from launcher.report.page import Plate
    from launcher.report.theme import DARK, LIGHT

    found = []
    if (run.directory / ROUTING_FILE).exists():
        from launcher.report.routing import read_routing, routing_picture

        routing = read_routing(run.directory)
        if routing:
            drawn = (routing_picture(routing, theme, "svg") for theme in (LIGHT, DARK))
            found.append(Plate("Routing", "Load of each expert in each layer against tokens", *drawn))
            _write(png_path.with_name(f"{png_path.stem}_routing.png"), routing_picture(routing, LIGHT, "png"))
    if (run.directory / FORMATS_FILE).exists():
        from launcher.report.formats import formats_picture, read_formats

        formats = read_formats(run.directory)
        if formats:
            drawn = (formats_picture(formats, theme, "svg") for theme in (LIGHT, DARK))
            found.append(Plate("Formats", "What became of operands in block formats against tokens", *drawn))
            _write(png_path.with_name(f"{png_path.stem}_formats.png"), formats_picture(formats, LIGHT, "png"))
    from launcher.report.reading import is_worth_drawing, reading_picture

    if is_worth_drawing(run.steps):
        drawn = (reading_picture(run.steps, theme, "svg") for theme in (LIGHT, DARK))
        found.append(Plate("Reading", "Sources, sequence lengths and batch sizes against tokens", *drawn))
        _write(png_path.with_name(f"{png_path.stem}_reading.png"), reading_picture(run.steps, LIGHT, "png"))
    if (run.directory / "profile").is_dir():
        from launcher.report.timeline import pipeline_pictures  # torch, which has the schedules

        pictures = pipeline_pictures(run.directory)
        found += [Plate("A step of the pipeline", caption, png) for caption, png in pictures]
    return found


def _html_path(directories: list[Path], out: Path | None) -> Path:
    if out is None:
        return directories[0] / "report.html" if len(directories) == 1 else directories[0].parent / "comparison.html"
    if out.is_dir():
        return out / ("report.html" if len(directories) == 1 else "comparison.html")
    return out.with_suffix(".html") if out.suffix in (".html", ".png") else out.with_name(out.name + ".html")


def _distinct_names(runs: list[Run]) -> list[Run]:
    """Runs of one name, as from two machines, are told apart by the directory that holds them, or by a number."""
    names = [run.name for run in runs]
    for make in (lambda run, _: f"{run.directory.parent.name}/{run.name}", lambda run, i: f"{run.name} ({i + 1})"):
        if len(set(names)) == len(names):
            break
        names = [make(run, index) if names.count(run.name) > 1 else run.name for index, run in enumerate(runs)]
    return [run.renamed(name) for run, name in zip(runs, names, strict=True)]


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise ReportError(f"{path} cannot be written ({error.strerror}); choose another place with out=…") from error
