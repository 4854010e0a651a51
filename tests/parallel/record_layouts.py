"""README's table of layouts, made from the record of what test_parity passed.

`make layouts` runs the list and hands pytest's report to this, which keeps the names of the cases that passed in layouts.txt.
A row is a value of an option of ParallelConfig that some case has, or an option of the model; a column is an engine; a cell
says with which axes longer than 1 it passed. New options come into the table with the first case that has them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree

from models.moe.config import MoEConfig
from parallel.check import check_engine
from parallel.config import ParallelConfig, ParallelError
from tests.parallel.cases import Case

RECORD = Path(__file__).with_name("layouts.txt")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- layouts: begin -->\n", "<!-- layouts: end -->\n"
DEGREES = ("tensor", "pipeline", "data", "context", "expert")  # these are the cells' letters, not rows
# rows where they are on
MODEL = ("attention_window", "document_mask", "dropout", "prefix_mask", "reset_position_ids", "tied_embeddings")
MOE = ("aux_loss", "aux_scope", "z_loss", "bias_rate", "capacity", "shared_experts", "groups", "jitter")
ENGINES = ("deepspeed", "torch")


def axes(case: Case) -> str:
    """The axes of a layout that are longer than 1: `T`, `PD`, … or `1` for one process."""
    return "".join(name[0].upper() for name in DEGREES if getattr(case.parallel, name) > 1) or "one process"


def features(case: Case) -> list[tuple[str, str]]:
    """Option and value of all that a layout sets, degrees and engine aside."""
    config = case.parallel
    names = [
        field.name for field in fields(ParallelConfig) if field.name not in (*DEGREES, "engine", "timeout_seconds")
    ]
    told = [(name, str(getattr(config, name)).lower()) for name in names]
    plain = {(name, str(getattr(ParallelConfig, name)).lower()) for name in names} - {("zero_stage", "1")}
    shown = {"schedule": config.pipeline > 1, "context_method": config.context > 1}
    found = [
        (f"parallel.{name}", value) for name, value in told if (name, value) not in plain or shown.get(name, False)
    ]
    found += [(f"model.{name}", "") for name in MODEL if getattr(case.model, name)]
    found += [("model.attention_kernel", "varlen")] if case.model.attention_kernel == "varlen" else []
    found += [("objective", case.objective)] if case.objective else []
    moe = case.model.moe
    if moe.experts:
        on = [name for name in MOE if getattr(moe, name) != (0.0 if name == "aux_loss" else getattr(MoEConfig, name))]
        found += [(f"model.moe.{name}", "") for name in (on if moe.capacity else [*on, "capacity=0"])]
    return found


def table(cases: Iterable[Case]) -> str:
    """Markdown: a row for each option and value, a column for each engine, the axes where it passed in each cell."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    examples: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        for feature in features(case):
            found.setdefault(feature, {}).setdefault(case.parallel.engine, set()).add(axes(case))
            examples.setdefault(feature, []).append(case)
    lines = ["| | deepspeed | torch |", "| --- | --- | --- |"]
    for (name, value), engines in sorted(found.items(), key=lambda row: (_rooms(row[0][0]), row[0])):
        cells = [
            " ".join(sorted(engines[engine], key=lambda told: (len(told), told)))
            if engine in engines
            else _absent(engine, examples[name, value])
            for engine in ENGINES
        ]
        lines.append(f"| `{name}{f'={value}' if value else ''}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rooms(name: str) -> int:
    """Options of the layout come first, then those of the model, then what is asked of it."""
    return ("parallel", "model", "objective").index(name.split(".")[0])


def _absent(engine: str, examples: list[Case]) -> str:
    """Why no case of an engine passed: all that the other engine has are refused by name, or none was run."""
    for case in examples:
        try:
            check_engine(replace(case.parallel, engine=engine), case.precision, "cpu", case.world_size)
        except ParallelError:
            continue
        return "not run"
    return "refused"


def with_table(readme: str, cases: Iterable[Case]) -> str:
    """README with the table between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"README.md lacks the lines {BEGIN!r} and {END!r}"
    return before + BEGIN + table(cases) + END + after


def recorded() -> list[str]:
    """Names of the cases that passed when the record was made."""
    return RECORD.read_text().splitlines()


def passed_in(report: Path) -> list[str]:
    """Names of the cases that passed, out of pytest's report (--junitxml)."""
    found = [
        case for case in ElementTree.parse(report).iter("testcase") if not len(case)
    ]  # failures have an element inside
    matches = (re.fullmatch(r"test_matches_single_process\[(.+)\]", case.get("name", "")) for case in found)
    return sorted(match[1] for match in matches if match)


def main() -> None:
    """Write the record from the report that is named, if one is, and README's table from the record."""
    from tests.parallel.test_parity import EVERY_LAYOUT

    for report in sys.argv[1:]:
        RECORD.write_text("".join(f"{name}\n" for name in passed_in(Path(report))))
    passed = set(recorded())
    README.write_text(with_table(README.read_text(), [case for case in EVERY_LAYOUT if str(case) in passed]))


if __name__ == "__main__":
    main()
