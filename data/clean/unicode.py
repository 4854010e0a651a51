"""Text as its author meant it: mojibake undone, one normal form, one line end, no control characters.

The repair is ftfy's (R. Speer, https://ftfy.readthedocs.io), which undoes text decoded with the wrong encoding where it is
sure that it was; its fixes that change style (curly quotes, ligatures, width) are options here and off.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from data.clean.base import Dropped, Outcome, Seams, Step
from data.config import DataError
from data.document import Document

FORMS = ("NFC", "NFKC", "none")

_ASCII_CLEAN = re.compile(r"[\t\n -~]*", re.ASCII)  # nothing in such a text can be broken, unless it holds entities
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufdd0-\ufdef]")


@dataclass(frozen=True)
class UnicodeConfig:
    """Repairs Unicode: mojibake, normal form, line ends, control characters. What is empty then is dropped."""

    name: ClassVar[str] = "unicode"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    mojibake: bool = True
    """Undo text that was decoded with the wrong encoding (`schÃ¶n` to `schön`), where ftfy is sure."""

    entities: bool = False
    """Replace HTML entities (`&amp;`) in texts without tags. Wrong for code and for writing about HTML."""

    form: str = "NFC"
    """Normal form: `NFC` joins letters and accents (what models and tokenizers are fed as a rule); `NFKC` also replaces
    compatibility characters (ligatures, full-width letters, superscripts), which loses what they meant; `none`."""

    quotes: bool = False
    """Straighten curly quotes."""

    max_replacements: float = 1.0
    """Drop documents with a larger share of replacement characters (U+FFFD: bytes that nobody could decode) among their
    characters; 1 = never."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise DataError(f"form = {self.form!r}: it must be one of {', '.join(FORMS)}")
        if not 0 <= self.max_replacements <= 1:
            raise DataError(f"max_replacements = {self.max_replacements}: it must be between 0 and 1")

    def make(self, seams: Seams) -> Step:
        return _Repair(self)


class _Repair:
    def __init__(self, config: UnicodeConfig) -> None:
        from ftfy import TextFixerConfig  # tables of tens of milliseconds, for this step alone

        self.config = config
        self.fixes = TextFixerConfig(
            unescape_html=config.entities,
            remove_terminal_escapes=True,
            fix_encoding=config.mojibake,
            restore_byte_a0=config.mojibake,
            replace_lossy_sequences=config.mojibake,
            decode_inconsistent_utf8=config.mojibake,
            fix_c1_controls=config.mojibake,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=config.quotes,
            fix_line_breaks=True,
            fix_surrogates=True,
            remove_control_chars=True,
            normalization=None,  # ours comes last, over the whole text: ftfy's is by piece
            explain=False,
        )

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Outcome:
        text = self.repair(document.text)
        if not text.strip():
            return Dropped(document, "empty after repair")
        if text.count("\ufffd") > self.config.max_replacements * len(text):
            return Dropped(document, "replacement characters", f"{text.count(chr(0xFFFD))} of {len(text)}")
        return document if text == document.text else replace(document, text=text)

    def repair(self, text: str) -> str:
        """The text repaired. ftfy looks at lines one by one, so those that cannot be broken are not shown to it."""
        if self._sound(text):
            return text
        from ftfy import fix_text

        lines = re.split(r"(?<=\n)", text)
        text = "".join(line if self._sound(line) else fix_text(line, self.fixes) for line in lines)
        text = _CONTROL.sub("", text)
        return text if self.config.form == "none" else unicodedata.normalize(cast(Any, self.config.form), text)

    def _sound(self, text: str) -> bool:
        return bool(_ASCII_CLEAN.fullmatch(text)) and not (self.config.entities and "&" in text)
