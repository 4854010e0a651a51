"""`triaxis fit`: a law, and what it is fitted to.

    triaxis fit LAW DATA [--params N --tokens D --loss loss …] [--where 'dataset=c4'] [--budget 1e21] [--json] [--out DIR]
    triaxis fit --list

DATA: any CSV (delimiters are found), JSON lines, a sweep's directory, or a directory of runs. Columns are named by options
(`--params 'N*1e6'` counts in millions), or guessed from common names where only one fits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.laws.form import LawError
from launcher.options import kinds_of, options_help, parse

USAGE = "triaxis fit LAW DATA [--params COLUMN …] [--budget 1e21] [--json] [--out DIR]"


def fit_command(arguments: list[str]) -> int:
    """Fit, print, and write what --out asks for."""
    from launcher.laws.columns import ROLES
    from launcher.laws.laws import entry
    from launcher.laws.result import FitOptions
    from launcher.laws.table import read_table

    if not arguments or "--help" in arguments or "-h" in arguments:
        print(_help())
        return 0
    if arguments == ["--list"]:
        print(_laws())
        return 0
    places, values = parse(arguments, {**dict.fromkeys(ROLES, str), **kinds_of(FitOptions)}, USAGE)
    if len(places) != 2:
        raise LawError(f"fit: takes a law and its data: `{USAGE}`; `triaxis fit --list` tells the laws")
    law = entry(places[0])
    given = {name: str(value) for name, value in values.items() if name in ROLES}
    options = FitOptions(**{name: value for name, value in values.items() if name not in ROLES})
    _check(options)
    fit = law.fit(read_table(places[1]), given, options)
    if options.out:
        _write(fit, Path(options.out))
    if options.json:
        print(json.dumps(fit.plain(), indent=1, allow_nan=False))
    else:
        from launcher.laws.show import show

        show(fit)
    return 0


def _check(options: Any) -> None:
    if not 0 < options.level < 1:
        raise LawError(f"--level={options.level:g}: must be between 0 and 1, such as 0.95")
    if not 0 <= options.hold_out < 1:
        raise LawError(f"--hold-out={options.hold_out:g}: must be at least 0 and below 1")
    for name in ("bootstraps", "drop_top_losses", "sequence_length"):
        if getattr(options, name) < 0:
            raise LawError(f"--{name.replace('_', '-')}={getattr(options, name)}: must be at least 0")


def _write(fit: Any, path: Path) -> None:
    """A picture by its ending, or a directory with pictures and fit.json."""
    from launcher.laws.picture import law_picture
    from launcher.report.theme import DARK, LIGHT

    if path.suffix in (".png", ".svg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(law_picture(fit, LIGHT, "png" if path.suffix == ".png" else "svg"))
        return
    path.mkdir(parents=True, exist_ok=True)
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        (path / f"{fit.law}_{name}.png").write_bytes(law_picture(fit, theme, "png"))
    (path / "fit.json").write_text(json.dumps(fit.plain(), indent=1, allow_nan=False) + "\n")


def _laws() -> str:
    from launcher.laws.laws import entries

    lines = []
    for one in entries().values():
        reads = ", ".join(f"--{role}" for role in one.reads)
        lines += [
            f"{one.name:14} {one.title}",
            f"{'':14} {one.formula}",
            f"{'':14} reads {reads}",
            f"{'':14} {one.source}",
            "",
        ]
    return "\n".join(lines).rstrip()


def _help() -> str:
    from launcher.laws.columns import ROLES
    from launcher.laws.result import FitOptions

    roles = "\n".join(f"  --{name} COLUMN  {role.text}" for name, role in ROLES.items())
    return f"{__doc__}\nColumns\n{roles}\n\nOptions\n{options_help(FitOptions)}"
