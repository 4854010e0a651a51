"""Building a kernel's library at first use: once for all who want it, from the text as it is, with a cure where it fails."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.kernels.runtime.building import BuildError, built

COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
OPTIONS = ["-shared", "-fPIC"]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's own, slowed down, which notes what it is asked."""
    monkeypatch.setenv("TRIAXIS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "compiler"
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$1" in --version) ;; *) sleep 0.3 ;; esac\nexec {COMPILER} "$@"\n'
    )
    path.chmod(0o755)
    return path


def builds(tmp_path: Path) -> int:
    return sum("--version" not in line for line in (tmp_path / "asked").read_text().splitlines())


def source(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "kernels" / "kernel.cpp"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@needs_compiler
def test_of_many_that_want_a_library_at_once_one_builds_it(
    tmp_path: Path, compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = source(tmp_path, 'extern "C" int answer() { return 42; }')
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: built(path, "here", str(compiler), OPTIONS), range(4)))
    assert [one.answer() for one in found] == [42] * 4
    assert builds(tmp_path) == 1
    told = len(caplog.records)
    assert told >= 1 and "kernels for here is built, once" in caplog.text, "who waits for it is told why"
    built(path, "here", str(compiler), OPTIONS)
    assert builds(tmp_path) == 1 and len(caplog.records) == told, "it was kept"


@needs_compiler
def test_another_text_another_header_or_other_options_are_built_anew(tmp_path: Path, compiler: Path) -> None:
    path = source(tmp_path, '#include "number.h"\nextern "C" int answer() { return NUMBER; }')
    header = path.with_name("number.h")
    header.write_text("#define NUMBER 1")
    assert built(path, "here", str(compiler), OPTIONS).answer() == 1
    header.write_text("#define NUMBER 2")
    assert built(path, "here", str(compiler), OPTIONS).answer() == 2
    built(path, "here", str(compiler), ["-O2", *OPTIONS])
    built(path, "there", str(compiler), OPTIONS)
    assert builds(tmp_path) == 4


@needs_compiler
def test_what_cannot_be_built_says_what_the_compiler_said(tmp_path: Path, compiler: Path) -> None:
    path = source(tmp_path, "int answer() { return nothing; }")
    with pytest.raises(BuildError, match=r"kernel.cpp: compiler failed for here:\n(.|\n)*nothing"):
        built(path, "here", str(compiler), OPTIONS)
    source(tmp_path, 'extern "C" int answer() { return 7; }')
    assert built(path, "here", str(compiler), OPTIONS).answer() == 7, "a failure is no lock"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("TRIAXIS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match="cannot be kept or loaded .*set TRIAXIS_CACHE"):
        built(source(tmp_path, ""), "here", shutil.which("true") or "true", OPTIONS)
