"""What a corpus is made of, in numbers: lengths, sources, columns, token frequencies, what cleaning left out.

Everything is plain data, ready for JSON; `launcher/corpus` writes and draws it. One pass over the tokens, one over each
column; memory is 8 bytes a document, whatever the number of columns.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataError
from data.documents import Documents
from data.progress import Progress, silent

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
CLEANING = "cleaning.json"
"""What a build with cleaning steps writes beside the manifest: their tallies, in order."""

_BINS = 60
_ALWAYS = ("source", "path", "row", "bytes", "tokens")
_MOST_WORDS = 1000  # a column of more different words is no category but a name
_CURVE = 200


def statistics(
    documents: Documents,
    columns: tuple[str, ...] = (),
    top: int = 20,
    most_tokens: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """All figures of one split.

    columns: those to describe; () = all that are not of every corpus. top: entries of lists. most_tokens: frequencies are
    counted in stretches spread evenly over the corpus that hold about so many tokens; 0 = in all of it.
    """
    chosen = columns or tuple(
        name for name in documents.columns() if name not in _ALWAYS and "." not in name
    )  # those of orderings when asked for
    known = documents.columns()
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise DataError(f"--columns={unknown[0]}: no such column; choose among {', '.join(known)}")
    lengths = documents.lengths()
    found: dict[str, Any] = {
        "corpus": documents.manifest.name,
        "fingerprint": documents.manifest.fingerprint,
        "split": documents.split,
        "documents": len(documents),
        "tokens": documents.tokens,
        "bytes": documents.bytes,
        "lengths": describe(lengths.astype(np.float64), logarithmic=True, weights=lengths),
        "sources": _sources(documents),
        "signals": {},
        "words": {},
    }
    for place, name in enumerate(chosen):
        progress(place, len(chosen), f"column {name}")
        if documents.is_number(name):
            found["signals"][name] = describe(documents.numbers(name))
        else:
            found["words"][name] = _words(documents, name, lengths, top)
    found["frequencies"] = _frequencies(documents, top, most_tokens, progress)
    found["skipped"], found["quarantined"] = dict(documents.manifest.skipped), dict(documents.manifest.quarantined)
    found["cleaning"] = _cleaning(documents.path)
    return found


def describe(values: np.ndarray, logarithmic: bool = False, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Quantiles, mean and histogram of float64 [n], NaN left out; `logarithmic` for positive values of any size.

    weights: what else is summed in each bin, as the tokens of documents by length.
    """
    known = np.isfinite(values)
    here = values[known]
    if not len(here):
        return {"known": 0, "missing": len(values)}
    edges = _edges(here, logarithmic)
    found = {
        "known": len(here),
        "missing": int(len(values) - len(here)),
        "mean": float(here.mean()),
        "deviation": float(here.std()),
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(here, QUANTILES).tolist(), strict=True)),
        "edges": edges.tolist(),
        "counts": np.histogram(here, edges)[0].tolist(),
    }
    if weights is not None:
        found["weights"] = np.histogram(here, edges, weights=weights[known])[0].tolist()
    return found


def _edges(values: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Borders of bins; of whole numbers they lie between them."""
    low, high = float(values.min()), float(values.max())
    if logarithmic:  # half octaves, the finest that hold about evenly many whole numbers also where they are small
        halves = np.arange(2 * np.log2(max(low, 1)) // 1, 2 * np.log2(max(high, 1)) // 1 + 2)
        return np.unique(np.ceil(2 ** (halves / 2) - 1e-9)) - 0.5
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    if np.array_equal(values, np.rint(values)) and high - low < _BINS:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, _BINS + 1)


def _sources(documents: Documents) -> list[dict[str, Any]]:
    """Documents, tokens and bytes of each source, most tokens first."""
    found = [
        {"source": name, **asdict(totals), "bytes_per_token": totals.bytes / max(1, totals.tokens)}
        for name, totals in documents.manifest.splits[documents.split].sources.items()
    ]
    return sorted(found, key=lambda source: (-source["tokens"], source["source"]))


def _cleaning(corpus: Path) -> list[dict[str, Any]]:
    """The tally of each cleaning step (`data.clean.base.Tally`) without its samples; none where nothing was cleaned."""
    try:
        found = json.loads((corpus / CLEANING).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(
            f"{corpus / CLEANING}: cannot be read ({error}); restore it, or build {corpus} again"
        ) from error
    return [{name: value for name, value in step.items() if name != "samples"} for step in found]


def _words(documents: Documents, name: str, lengths: np.ndarray, top: int) -> dict[str, Any]:
    """How often each word of a column of words comes, by documents and by tokens."""
    codes, words = documents.labels(name)
    there = codes >= 0
    counts = np.bincount(codes[there], minlength=len(words))
    tokens = np.bincount(codes[there], lengths[there], len(words)).astype(np.int64)
    found = {"different": len(words), "missing": int((~there).sum())}
    if len(words) > _MOST_WORDS:
        return found
    order = np.lexsort((np.arange(len(words)), -tokens))[:top]
    return found | {
        "most": [
            {"value": words[place], "documents": int(counts[place]), "tokens": int(tokens[place])} for place in order
        ]
    }


def _frequencies(documents: Documents, top: int, most_tokens: int, progress: Progress) -> dict[str, Any]:
    """How often each id comes: the most frequent, the curve over ranks, the ids never used, entropy in nats."""
    every = max(1, -(-documents.tokens // most_tokens)) if most_tokens else 1
    size = documents.manifest.vocab_size
    counts = np.zeros(size, np.int64)
    for chunk in documents.chunks(every):
        found = np.bincount(chunk.tokens, minlength=size)
        if len(found) > size:
            raise DataError(
                f"{documents.path}: holds token {len(found) - 1}, but its vocabulary ends at {size - 1}; "
                "`triaxis data verify` tells whether the shards are whole"
            )
        counts += found
        progress(chunk.first + len(chunk), len(documents), "token frequencies")
    order = np.argsort(-counts, kind="stable")
    total = int(counts.sum())
    used = int((counts > 0).sum())
    shares = counts[counts > 0] / total
    ranks = np.unique(np.geomspace(1, max(1, used), _CURVE).astype(int))
    return {
        "counted": total,
        "vocabulary": size,
        "never_used": size - used,
        "entropy": float(-(shares * np.log(shares)).sum()),
        "ranks": ranks.tolist(),
        "curve": counts[order[ranks - 1]].tolist(),
        "most": [{"id": int(id_), "count": int(counts[id_])} for id_ in order[:top] if counts[id_]],
        "coverage": {str(n): float(counts[order[:n]].sum() / total) for n in (10, 100, 1000, 10_000) if n < size},
    }
