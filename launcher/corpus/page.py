"""Samples as a person reads them: one HTML file, text token by token, light or dark as the reader's system is.

Every token tells by hovering which id it is, where it stands in which document, what it predicts and how much that counts.
What a token's background says is chosen above: its document, the weight of what it predicts, its position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from data.spelling import texts_of
from launcher.report.style import STYLE
from launcher.report.theme import DARK, LIGHT, Theme

HUES = 6
_OCTAVES = 8


@dataclass(frozen=True)
class Origin:
    """Columns [first, first + size) of a row's inputs are tokens of one document of a corpus, from `offset` on."""

    first: int
    size: int
    document: int
    offset: int
    source: str
    path: str


@dataclass(frozen=True)
class Shown:
    """A row as the model gets it.

    index: of the sample in the run. inputs, targets: int64 [S]; weights: float32 [S], how much each target counts;
    documents: int64 [S]; prefix: bool [S]; padding: bool [S], columns that nothing is read from or predicted at.
    origins: where its packed tokens are from; moved: whether the objective put them elsewhere, so that columns are not
    theirs any more. about: more to say of it.
    """

    index: int
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    documents: np.ndarray
    prefix: np.ndarray
    padding: np.ndarray
    origins: tuple[Origin, ...] = ()
    moved: bool = False
    about: str = ""


@dataclass(frozen=True)
class Words:
    """How tokens are written. bytes_of: id -> UTF-8 bytes; special: ids that are no text, with their names."""

    bytes_of: Callable[[int], bytes]
    special: dict[int, str]


def render(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[Shown], words: Words) -> str:
    """The page. facts: (name, value) of what is shown."""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts)
    body = "".join(_sample(row, words) for row in rows)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_style()}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n</header>\n"
        f'<dl class="headline">\n{tiles}</dl>\n{_CHOICE}{body}</main>\n</body>\n</html>\n'
    )


_CHOICE = """<input type="radio" name="by" id="by-document" checked><label for="by-document">documents</label>
<input type="radio" name="by" id="by-weight"><label for="by-weight">weights</label>
<input type="radio" name="by" id="by-position"><label for="by-position">positions</label>
<p class="key"><span class="s">12</span> a document begins (its number here) <span class="t d0 e">end</span> special token
<span class="t d1 w0">text</span> predicts nothing that counts <span class="t d2 x">text</span> prefix, seen by all of its
document <span class="z">padding</span> <span class="t d3">text<i>target</i></span> predicts this instead of the next token.
Weights: <span class="k2">1</span>, <span class="k4">less</span>, <span class="k1">more</span>. Positions: darker with each
octave.</p>
"""


def _style() -> str:
    """Colours from the house's themes; the choice of what they say needs no script."""
    hues = "\n".join(f"#by-document:checked ~ section .d{hue} {{ --b: {_mixed(hue, 17)}; }}" for hue in range(HUES))
    octaves = "\n".join(
        f"#by-position:checked ~ section .p{octave} {{ --b: {_mixed(0, 5 + 9 * octave)}; }}"
        for octave in range(_OCTAVES)
    )
    return f"""
:root {{ {_hues(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_hues(DARK)} }} }}
main {{ max-width: 80rem; }}
input[name=by] {{ margin: 0 .3rem 0 0; }} input[name=by] + label {{ margin-right: 1.2rem; }}
.key {{ color: var(--quiet); font-size: .85rem; line-height: 2; }}
.row {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .9rem 1rem; background: var(--shade); border-radius: .5rem;
  font: .85rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
.t {{ background: var(--b, transparent); border-radius: 2px; box-shadow: inset 1px 0 var(--shade); }}
.t:hover {{ outline: 1.5px solid var(--ink); }}
.w0 {{ opacity: .5; }} .x {{ text-decoration: underline dotted; text-underline-offset: 3px; }}
.e {{ font-weight: 600; font-size: .75em; padding: 0 .3em; border: 1px solid var(--quiet); border-radius: .4em; }}
.n {{ color: var(--quiet); opacity: .7; }}
.s {{ font-size: .7em; font-weight: 700; padding: 0 .35em; margin-right: .15em; border-radius: .4em; color: var(--paper);
  background: var(--quiet); }}
.t i {{ font-size: .75em; color: var(--s1); border-bottom: 1px solid; margin-left: .1em; }}
.z {{ color: var(--quiet); padding: 0 .5em; border-radius: .3em;
  background: repeating-linear-gradient(45deg, var(--line) 0 4px, transparent 4px 8px); }}
{hues}
{octaves}
.k1 {{ background: {_mixed(1, 40)}; }} .k2 {{ background: {_mixed(2, 22)}; }} .k4 {{ background: {_mixed(4, 25)}; }}
#by-weight:checked ~ section .t {{ --b: {_mixed(2, 22)}; }}
#by-weight:checked ~ section .w0 {{ --b: transparent; }}
#by-weight:checked ~ section .wl {{ --b: {_mixed(4, 25)}; }}
#by-weight:checked ~ section .wh {{ --b: {_mixed(1, 40)}; }}
"""


def _hues(theme: Theme) -> str:
    return " ".join(f"--s{place}: {colour};" for place, colour in enumerate(theme.series))


def _mixed(hue: int, percent: int) -> str:
    return f"color-mix(in srgb, var(--s{hue}) {percent}%, transparent)"


def _sample(row: Shown, words: Words) -> str:
    counted = int((row.weights > 0).sum())
    held = int((~row.padding).sum())
    told = f"{held:,} tokens, {counted:,} that count" + (
        f", {len(row.inputs) - held:,} padding" if held < len(row.inputs) else ""
    )
    sources = dict.fromkeys(f"{origin.source}: {origin.path}" for origin in row.origins)
    listed = "".join(f"<li>{escape(source)}</li>" for source in sources)
    described = f"<details><summary>{len(sources)} documents</summary><ul>{listed}</ul></details>\n"
    described = described if len(sources) > 1 else ""
    about = row.about or (next(iter(sources)) if len(sources) == 1 else "")
    about = f" · {escape(about)}" if about else ""
    return (
        f'<section class="sample" id="sample-{row.index}">\n<h2>sample {row.index:,}</h2>\n'
        f'<p class="key">{told}{about}</p>\n{described}<div class="row">{_tokens(row, words)}</div>\n</section>\n'
    )


def _tokens(row: Shown, words: Words) -> str:
    texts = _texts(row.inputs, words)
    places, names = _positions(row), _origins(row)
    shifted = _predicts_next(row)
    parts: list[str] = []
    column = 0
    while column < len(row.inputs):
        if row.padding[column]:
            end = column
            while end < len(row.inputs) and row.padding[end]:
                end += 1
            parts.append(f'<span class="z">padding × {end - column:,}</span>')
            column = end
            continue
        number = int(row.documents[column])
        if column == 0 or number != row.documents[column - 1]:
            parts.append(
                f'<span class="s" title="{escape(names[column] or "document of this sample")}">{number}</span>'
            )
        parts.append(_token(row, column, texts[column], places[column], names[column], words, shifted))
        column += 1
    return "".join(parts)


def _token(row: Shown, column: int, text: str, place: int, name: str, words: Words, shifted: bool) -> str:
    id_, target, weight = int(row.inputs[column]), int(row.targets[column]), float(row.weights[column])
    classes = ["t", f"d{int(row.documents[column]) % HUES}", f"p{min(_OCTAVES - 1, max(0, place // 8).bit_length())}"]
    classes += ["w0"] * (weight == 0) + ["wl"] * (0 < weight < 1) + ["wh"] * (weight > 1)
    classes += ["x"] * bool(row.prefix[column]) + ["e"] * (id_ in words.special)
    hover = f"id {id_} · position {place} of document {int(row.documents[column])}" + (f" · {name}" if name else "")
    hover += (
        f" · predicts {_one(target, words)} ({target}), weight {weight:g}"
        if weight
        else " · predicts nothing that counts"
    )
    hover += " · prefix" * bool(row.prefix[column])
    shown = _visible(text) if id_ not in words.special else escape(text)
    told = f"<i>{escape(_one(target, words))}</i>" if weight and not shifted else ""
    return f'<span class="{" ".join(classes)}" title="{escape(hover)}">{shown}{told}</span>'


def _texts(ids: np.ndarray, words: Words) -> list[str]:
    """What each token is shown as; special ones by name, which end a character that was begun."""
    found = [""] * len(ids)
    begin = 0
    for end in [*np.flatnonzero(np.isin(ids, list(words.special))).tolist(), len(ids)]:
        found[begin:end] = texts_of([words.bytes_of(int(id_)) for id_ in ids[begin:end]])
        if end < len(ids):
            found[end] = words.special[int(ids[end])]
        begin = end + 1
    return found


def _one(id_: int, words: Words) -> str:
    return words.special.get(id_) or repr("".join(texts_of([words.bytes_of(id_)])))[1:-1] or "nothing"


def _visible(text: str) -> str:
    """Text with line ends and tabs shown; what a token adds nothing to is a dot: part of a character."""
    if not text:
        return '<span class="n">·</span>'
    found = escape(text).replace("\t", '<span class="n">⇥</span>\t').replace("\r", '<span class="n">␍</span>')
    found = found.replace("\n", '<span class="n">↵</span>\n')
    return "".join(mark if mark.isprintable() or mark in "\n\t" else f"⟨{ord(mark):04x}⟩" for mark in found)


def _positions(row: Shown) -> list[int]:
    """Position of each column in its document as attention counts it: from where the document begins in this row."""
    changes = np.flatnonzero(np.diff(row.documents, prepend=row.documents[0] - 1))
    return (np.arange(len(row.inputs)) - np.repeat(changes, np.diff(np.append(changes, len(row.inputs))))).tolist()


def _origins(row: Shown) -> list[str]:
    """What to say of where each column is from."""
    found = [""] * len(row.inputs)
    for origin in () if row.moved else row.origins:
        for column in range(origin.first, min(origin.first + origin.size, len(found))):
            place = origin.offset + column - origin.first
            found[column] = (
                f"token {place:,} of {origin.source}: {origin.path} (document {origin.document:,} of the corpus)"
            )
    return found


def _predicts_next(row: Shown) -> bool:
    """Whether what counts is the next input, as in causal prediction: then targets need not be written out."""
    counted = row.weights[:-1] > 0
    return bool((row.targets[:-1] == row.inputs[1:])[counted].mean() > 0.5) if counted.any() else True
