"""An ordering on disk: `<corpus>/orders/<name>/` with order.json, `<split>.npy` and `<split>.columns.parquet`.

order.json is the whole truth about an ordering: its method and options, the corpus it was made for (by fingerprint), the
checksums of its files. It holds no date and no path, so that the same command gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.config import DataError
from data.documents import ORDERS, Documents
from data.manifest import Manifest
from data.orderings.base import Ordered

FORMAT = 1
ORDER = "order.json"


@dataclass(frozen=True)
class Ordering:
    """A stored ordering: what order.json says of it.

    fingerprint: of the corpus. splits: by name of the split, documents in the ordering, documents in the split,
    tokens in the ordering, sha256 of the file and of the columns (empty without), and what was measured.
    """

    path: Path
    method: str
    options: dict[str, Any]
    fingerprint: str
    splits: dict[str, dict[str, Any]]

    def numbers(self, split: str) -> np.ndarray:
        """Document numbers in reading order, int64 [documents in the ordering]; DataError when the file changed."""
        cure = f"make it again: rm -r {self.path} and `triaxis data order`"
        if split not in self.splits:
            raise DataError(f"{self.path}: no ordering of {split}, only of {', '.join(self.splits)}; {cure}")
        file, about = self.path / f"{split}.npy", self.splits[split]
        try:
            body = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); {cure}") from error
        if hashlib.sha256(body).hexdigest() != about["sha256"]:
            raise DataError(f"{file}: its checksum is not that of {ORDER}; {cure}")
        return np.load(file)


def names(corpus: Path) -> list[str]:
    """The orderings that a corpus has."""
    return sorted(path.parent.name for path in (corpus / ORDERS).glob(f"*/{ORDER}"))


def load(corpus: Path | str, name: str) -> Ordering:
    """An ordering of a corpus; DataError when there is none, or when it was made for other text than is there now."""
    corpus = Path(corpus)
    path = corpus / ORDERS / name
    try:
        body = json.loads((path / ORDER).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = ", ".join(names(corpus)) or "none"
        raise DataError(f"{corpus}: no ordering {name!r}; it has {there}; `triaxis data order` makes one") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path / ORDER}: cannot be read ({error}); rm -r {path} and make it again") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DataError(f"{path / ORDER}: not of ordering format {FORMAT}; rm -r {path} and make it again")
    if body.get("checksum") != _digest(body):
        raise DataError(f"{path / ORDER}: was changed after it was written; rm -r {path} and make it again")
    now = Manifest.load(corpus).fingerprint
    if body["fingerprint"] != now:
        raise DataError(
            f"{path}: was made for another corpus (fingerprint {body['fingerprint'][:12]}, this one has {now[:12]}): the "
            f"corpus was built anew since; rm -r {path} and make it again"
        )
    return Ordering(path, body["method"], body["options"], body["fingerprint"], body["splits"])


def existing(
    corpus: Path, name: str, method: str, options: Mapping[str, Any], splits: Iterable[str]
) -> Ordering | None:
    """The ordering of that name if it is the one asked for, None if there is none; DataError if it is another."""
    check_name(name)
    if not (corpus / ORDERS / name).exists():
        return None
    found = load(corpus, name)
    wanted = {"method": method, **options, "splits": sorted(splits)}
    had = {"method": found.method, **found.options, "splits": sorted(found.splits)}
    different = [f"{key} was {had.get(key)!r}, now {value!r}" for key, value in wanted.items() if had.get(key) != value]
    different += [f"{key} was {value!r}" for key, value in had.items() if key not in wanted]
    if different:
        raise DataError(
            f"--name={name}: {corpus} has another ordering of that name ({'; '.join(different)}); choose another name, or "
            f"rm -r {found.path}"
        )
    return found


def check_name(name: str) -> None:
    """Refuses names that are no plain file names."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise DataError(f"--name={name}: letters, digits, - and _ only, for example by_length")


def save(
    corpus: Path, name: str, method: str, options: Mapping[str, Any], made: Mapping[str, tuple[Documents, Ordered]]
) -> Ordering:
    """Writes an ordering, all of it at once; DataError when one of that name came to be in the meantime."""
    target = corpus / ORDERS / name
    try:
        target.parent.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}-"))
        try:
            partial.chmod(0o755)
            splits = {split: _write(partial, split, *one) for split, one in made.items()}
            fingerprint = next(iter(made.values()))[0].manifest.fingerprint
            body = {
                "format": FORMAT,
                "method": method,
                "options": dict(options),
                "fingerprint": fingerprint,
                "splits": splits,
            }
            body["checksum"] = _digest(body)
            _durably(partial / ORDER, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{target}: cannot write the ordering ({error.strerror or error}); free space, allow writing, or choose another "
            "--name"
        ) from error
    return load(corpus, name)


def _write(directory: Path, split: str, documents: Documents, ordered: Ordered) -> dict[str, Any]:
    """Writes the files of one split; returns what order.json says of them."""
    numbers = np.ascontiguousarray(ordered.numbers, np.int64)
    assert (np.bincount(numbers, minlength=len(documents)) <= 1).all() and len(numbers), "each document at most once"
    np.save(directory / f"{split}.npy", numbers)
    columns = ""
    if ordered.columns:
        file = directory / f"{split}.columns.parquet"
        pq.write_table(pa.table(ordered.columns), file, compression="zstd", write_statistics=False, store_schema=False)
        columns = _sha256(file)
    return {
        "documents": len(numbers),
        "of_documents": len(documents),
        "tokens": int(documents.lengths()[numbers].sum()),
        "sha256": _sha256(directory / f"{split}.npy"),
        "columns_sha256": columns,
        "measured": ordered.measured,
    }


def _sha256(file: Path) -> str:
    """The checksum of a file, which is on the disk once this returns."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _durably(file: Path, body: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(body)
        opened.flush()
        os.fsync(opened.fileno())


def _digest(body: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in body.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def options_of(method: Any) -> dict[str, Any]:
    """The options of a method as plain data, as order.json has them."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(method).items()
    }
