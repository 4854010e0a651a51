"""The text of the golden run: made up by arithmetic alone, so that it is the same on every machine and every Python."""

from __future__ import annotations

from pathlib import Path

WORDS = ("the", "model", "reads", "a", "token", "and", "writes", "another", "of", "its", "own", "if", "asked", "twice")
DOCUMENTS = 40


def write_corpus(directory: Path) -> Path:
    """Write the documents as text files into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    state = 2026
    for number in range(DOCUMENTS):
        words = []
        for _ in range(20 + 7 * number):
            state = (state * 1_103_515_245 + 12_345) % 2**31  # the generator of the C standard's example
            words.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if (state >> 8) % 9 == 0 else ""))
        (directory / f"{number:02d}.txt").write_text(" ".join(words), encoding="utf-8", newline="")
    return directory
