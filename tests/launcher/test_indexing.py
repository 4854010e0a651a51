"""`triaxis data index` as a user calls it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from data.manifest import Manifest
from launcher.cli import main


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    place = tmp_path / "tars"
    place.mkdir()
    for part in range(2):
        with tarfile.open(place / f"{part}.tar", "w") as tar:
            for number in range(30):
                body = f"document {part} {number} " * 5
                info = tarfile.TarInfo(f"{number:04d}.txt")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body.encode()))
    return place


def test_tars_become_a_corpus(tars: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "theirs"
    arguments = ["data", "index", f"{tars}/{{0,1}}.tar", "--out", str(out), "--workers", "1", "tokenizer=byte"]
    assert main(arguments) == 0
    manifest = Manifest.load(out)
    assert sum(split.documents for split in manifest.splits.values()) == 60
    assert main(["data", "verify", str(out)]) == 0
    told = capfd.readouterr().out
    assert "2 of 2 tars: 1.tar" in told and "validation is whole" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name the tokenizer that gives, or gave, the tokens"),
        (["tokenizer=bpe"], "tokenizer.kind=bpe: is trained on text"),
        (["tokenizer=byte", "data.cache.attempts=2"], "data.cache has no effect on tars that are local"),
    ],
)
def test_mistakes_are_told(
    tars: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["data", "index", str(tars), "--out", str(tmp_path / "theirs"), *more]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "theirs").exists()
