"""What cleaning did, as text for a person: a table of steps, and of each step why it dropped what, with examples."""

from __future__ import annotations

from collections.abc import Sequence

from data.clean.base import Tally

_WIDTH = 100  # characters of an example


def table(tallies: Sequence[Tally]) -> str:
    """A line a step: documents before and after, characters that stayed, documents whose text changed."""
    if not tallies:
        return "no cleaning steps"
    rows = [("step", "before", "after", "kept", "characters kept", "changed")]
    for tally in tallies:
        documents, characters = (
            _share(tally.after, tally.before),
            _share(tally.characters_after, tally.characters_before),
        )
        rows.append((tally.step, f"{tally.before:,}", f"{tally.after:,}", documents, characters, f"{tally.changed:,}"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def details(tally: Tally, examples: int = 2) -> str:
    """Reasons of one step, most frequent first, each with some of its examples."""
    lines = [f"{tally.step}: {tally.note}" if tally.note else tally.step]
    for kind, reasons in (("documents", tally.reasons), ("lines", tally.lines)):
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  {count:,} {kind if count != 1 else kind[:-1]}: {reason}")
            for sample in [sample for sample in tally.samples if sample.reason == reason][:examples]:
                detail = f" ({sample.detail})" if sample.detail and sample.detail != "line" else ""
                text = " ".join(sample.text.split())
                text = text[: _WIDTH - 1] + "…" if len(text) > _WIDTH else text
                lines.append(f"    {sample.path}, row {sample.row}{detail}: {text!r}")
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
