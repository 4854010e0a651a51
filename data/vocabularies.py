"""Vocabularies that are trained here or come in other formats than `tokenizer.json`, and which of them tiktoken can run.

What is trained falls back on bytes, so nothing is unknown and nothing is lost (but by a normaliser). `tokenizer.json` is
what byte-level vocabularies become, tiktoken's files too.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.config import EOD_TEXT, DataError

# How words are split, as tokenizers' Oniguruma reads it and as tiktoken's fancy-regex does: the same words, the second
# with possessive quantifiers, which that engine needs to be fast (tiktoken_ext/openai_public.py has them so).
PATTERNS: dict[str, tuple[str, str]] = {
    "gpt2": (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]++|\s++$|"
        r"\s+(?!\S)|\s",
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]++|\s++$|"
        r"\s+(?!\S)|\s",
    ),
}
"""Patterns by name: GPT-2's; cl100k (GPT-4's, also Llama 3's), which keeps line ends with punctuation and cuts numbers
after three digits; qwen2, the same with single digits."""

_NORMALIZERS = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}


def spelling() -> list[str]:
    """How GPT-2's vocabulary spells each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    spelt = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [spelt[byte] for byte in range(256)]


def byte_vocabulary() -> tokenizers.Tokenizer:
    """Bytes as a byte-level BPE without merges: id b for byte b, then `eod`."""
    model = tokenizers.Tokenizer(models.BPE(vocab={spelt: byte for byte, spelt in enumerate(spelling())}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([EOD_TEXT])
    return model


def train_bpe(sample: Iterable[str], vocab_size: int, pattern: str = "gpt2", normalizer: str = "none") -> str:
    """A `tokenizer.json` of byte-level BPE: `eod` as id 0, then the 256 bytes, then the merges.

    The same texts in the same order give the same file. DataError when the text has too few different words for so
    many merges.
    """
    model = tokenizers.Tokenizer(models.BPE())
    if normalizer != "none":
        model.normalizer = _NORMALIZERS[normalizer]()
    model.pre_tokenizer = _splitter(pattern)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(sample, trainer)
    if model.get_vocab_size() < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size}: the training text has merges for {model.get_vocab_size()} only; "
            "lower it to that number or add text"
        )
    return model.to_str()


def train_unigram(sample: Iterable[str], vocab_size: int, normalizer: str = "none") -> bytes:
    """A SentencePiece model: a unigram language model (Kudo 2018) of pieces, bytes for what has none; `eod` is id 0.

    By SentencePiece and not by tokenizers, whose trainer gives other probabilities each time. White space is kept as it
    is; only U+2581, SentencePiece's own sign for a blank, does not come back. DataError when there is too little text.
    """
    import sentencepiece

    model = io.BytesIO()
    lines = (line for text in sample for line in text.splitlines() if line)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type="unigram", vocab_size=vocab_size, num_threads=1,
            normalization_rule_name="identity" if normalizer == "none" else normalizer, byte_fallback=True,
            add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            eos_id=0, eos_piece=EOD_TEXT, unk_id=1, bos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size}: SentencePiece cannot train it on this text ({reason}); change it, or "
            "add text"
        ) from error
    return model.getvalue()


def _splitter(pattern: str) -> Any:
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern][0]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def read_tiktoken(path: Path, pattern: str) -> str:
    """The `tokenizer.json` of a tiktoken file: a line a token, base64 and rank. Its merges follow from the ranks: a token
    was made of the two that byte-pair encoding leaves of it when only smaller ranks are known."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            coded, place = line.split()
            ranks[base64.b64decode(coded, validate=True)] = int(place)
        except ValueError as error:
            raise DataError(f"tokenizer.path = {path}, line {number}: not a tiktoken file ({error})") from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(f"tokenizer.path = {path}: not a whole tiktoken file, byte {missing[0]} has no token")
    spelt = spelling()
    merges: list[tuple[str, str]] = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merged(token, ranks, rank)
            if len(parts) != 2:
                raise DataError(f"tokenizer.path = {path}: the token of rank {rank} has no merge that makes it")
            one, other = ("".join(spelt[byte] for byte in part) for part in parts)
            merges.append((one, other))
    vocabulary = {"".join(spelt[byte] for byte in token): rank for token, rank in ranks.items()}
    model = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    model.pre_tokenizer = _splitter(pattern)
    model.decoder = decoders.ByteLevel()
    return model.to_str()


def _merged(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """Byte-pair encoding of a token with ranks below `limit`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pairs = [ranks.get(one + other, limit) for one, other in itertools.pairwise(parts)]
        least = min(pairs)
        if least >= limit:
            break
        at = pairs.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def pattern_of(model_json: str) -> str | None:
    """Name of the pattern by which a byte-level `tokenizer.json` splits text, after which each word is encoded alone and
    always the same; None where that is not so."""
    body = json.loads(model_json)
    plain_text = not body.get("normalizer") and all(token["special"] for token in body.get("added_tokens", ()))
    return _pattern_of(body.get("pre_tokenizer")) if plain_text and not body["model"].get("dropout") else None


def ranks_of(model_json: str, maker: tokenizers.Tokenizer | None = None) -> dict[bytes, int] | None:
    """The ids of byte strings with which tiktoken gives the same ids as a byte-level `tokenizer.json`; None where it would
    not. maker: the tokenizer of that file, to look whether it would; None where that is known.

    tiktoken merges by rank, which is the id, any two neighbours that make a token: so ids must ascend along the merges,
    and each token must be what its own merges make of it.
    """
    body = json.loads(model_json)
    model, added = body["model"], {token["content"] for token in body.get("added_tokens", ())}
    special = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(option) for option in special):
        return None
    byte_of = {spelt: byte for byte, spelt in enumerate(spelling())}
    own = {token: rank for token, rank in model["vocab"].items() if token not in added}
    if any(character not in byte_of for token in own for character in token):
        return None
    ranks = {bytes(byte_of[character] for character in token): rank for token, rank in own.items()}
    return ranks if maker is None or _merges_by_rank(maker, model, own) else None


def _merges_by_rank(maker: tokenizers.Tokenizer, model: dict[str, Any], own: dict[str, int]) -> bool:
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [own.get("".join(merge), -1) for merge in merges]
    if -1 in made or any(one >= other for one, other in itertools.pairwise(made)) or len(made) != len(own) - 256:
        return False
    if any(spelt not in own for spelt in spelling()):
        return False
    return bool(model.get("ignore_merges")) or all(len(maker.model.tokenize(token)) == 1 for token in own)


def _pattern_of(splitter: dict[str, Any] | None) -> str | None:
    """Name of the pattern by which a byte-level `pre_tokenizer` splits; None for others."""
    if not splitter:
        return None
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    last = parts[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(parts) == 1:
        return "gpt2" if last.get("use_regex", True) else None
    first = parts[0]
    if len(parts) > 2 or first["type"] != "Split" or first.get("invert") or first["behavior"] != "Isolated":
        return None
    if last.get("use_regex", True):
        return None
    return next((name for name, (known, _) in PATTERNS.items() if first["pattern"].get("Regex") == known), None)
