"""Tokens one by one, as a person reads them: the bytes that an id stands for, and how to show them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from functools import cache

from data.tokenizers import Tokenizer

_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣"}
_METASPACE = "▁"


@cache
def _byte_of_character() -> dict[str, int]:
    """How byte-level vocabularies spell bytes (GPT-2): printable ones as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def bytes_of(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """id -> the UTF-8 bytes that it adds to a text; a special token's are its name.

    Byte-level vocabularies (byte, BPE as GPT-2's) are exact, also for tokens that are part of a character; others are
    spelt as their file has them, with SentencePiece's ▁ as a space and <0xE2> as that byte.
    """
    table, names = _byte_of_character(), special_names(tokenizer)

    @cache
    def spell(id_: int) -> bytes:
        name = tokenizer.spelling(id_)
        if id_ in names:
            return names[id_].encode()
        if name is None:
            return bytes([id_]) if id_ < 256 and tokenizer.kind == "byte" else tokenizer.decode([id_]).encode()
        if tokenizer.spells_bytes:
            known = [table.get(character) for character in name]
            return name.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace(_METASPACE, " ").encode()

    return spell


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """The ids that are no text, with their names: the end of documents and those of `tokenizer.special_tokens`."""
    return {tokenizer.special(name): name for name in tokenizer.special_tokens} | {tokenizer.eod: tokenizer.eod_text}


def texts_of(pieces: Iterable[bytes]) -> list[str]:
    """The text that each token adds; a character cut over tokens stands at the last of them, "" at those before.

    Bytes that are no UTF-8 are written ⟨hex⟩.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("triaxis_hex")
    found = [decoder.decode(piece) for piece in pieces]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    return found


def _hex(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"⟨{byte:02x}⟩" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("triaxis_hex", _hex)


def spelling_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """id -> one token by itself, for lists: white space visible, bytes of a part of a character as ⟨hex⟩."""
    raw, names = bytes_of(tokenizer), special_names(tokenizer)

    def spell(id_: int) -> str:
        if id_ in names:
            return names[id_]
        return "".join(_VISIBLE.get(mark, mark) for mark in "".join(texts_of([raw(id_)])))

    return spell
