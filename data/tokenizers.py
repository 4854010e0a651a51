"""Text to token ids and back, with one end-of-document id (`eod`) that no text can produce.

One class for all kinds: bytes, byte-pair encoding and unigram models trained here, any tokenizer.json, SentencePiece and
tiktoken files. Byte-level kinds without a normaliser are lossless: `decode(encode(text)) == text`. Special tokens in the
text are encoded as ordinary characters, so a document that quotes the end-of-document token cannot forge a border.

Ids: the vocabulary's own, then `eod` where the vocabulary has none, then the named special tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from data.config import BYTE_VOCABULARY, EOD_TEXT, DataError, TokenizerConfig
from data.manifest import Manifest
from data.remote import home_of
from data.stream_config import CacheConfig
from data.vocabularies import PATTERNS, byte_vocabulary, pattern_of, ranks_of, read_tiktoken, train_bpe, train_unigram
from data.words import WordEncoder

TOKENIZER_DIRECTORY = "tokenizer"
"""Where, within a corpus, its tokenizer is."""

KNOWN_EODS = (EOD_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
"""End-of-document tokens looked for in a tokenizer file, in this order; a file with none gets one more id."""

PIECE_CHARACTERS = 1 << 20
"""Longer texts are encoded in pieces of about this length: it bounds memory."""

_BORDER = re.compile("[A-Za-z](?= )")

_CHECKED_CHARACTERS = 1 << 18  # of real text, on which both ways to encode must agree before the fast one is used


class Tokenizer:
    """Encodes text to int64 ids and decodes them. Make one with `make_tokenizer` or `Tokenizer.load`.

    kind: `byte`, `bpe`, `unigram` or `file`. model: contents of a tokenizer.json (str) or of a SentencePiece model (bytes).
    special_tokens: names that get ids of their own, unless the vocabulary has them. fast: how documents are encoded; `""` as
    any text, `words` by looking words up (`data.words`), `tiktoken` the same with new words encoded by tiktoken.

    vocab_size: number of ids, `eod` and special tokens included; vocabulary_size: without those of our own.
    eod: the end-of-document id. `encode` never returns it; whoever joins documents puts it after each.
    fingerprint: hash of everything that decides the ids.
    """

    def __init__(
        self, kind: str, model: str | bytes = "", special_tokens: Sequence[str] = (), *, fast: str = ""
    ) -> None:
        self.kind, self._content, self.special_tokens = kind, model, tuple(special_tokens)
        self._model: tokenizers.Tokenizer | None = None
        self._pieces: Any = None
        self.eod, size = 256, BYTE_VOCABULARY
        if isinstance(model, bytes):
            self._pieces = _sentencepiece(model)
            own = self._pieces.get_piece_size()
            self.eod, size = (self._pieces.eos_id(), own) if self._pieces.eos_id() >= 0 else (own, own + 1)
        elif kind != "byte":
            self._model = tokenizers.Tokenizer.from_str(model)
            self._model.encode_special_tokens = True
            self._model.no_truncation()
            self._model.no_padding()
            self.eod, size = _find_eod(self._model)
        self.vocabulary_size = size
        self._special: dict[str, int] = {}
        for name in self.special_tokens:
            found = self._id_of(name)
            self._special[name] = size if found is None else found
            size += found is None
        self.vocab_size = size
        self.fast = fast
        parts = (
            kind,
            self.eod,
            *self.special_tokens,
            model if isinstance(model, str) else base64.b64encode(model).decode(),
        )
        self.fingerprint = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

    def _id_of(self, name: str) -> int | None:
        """The id of a token that the vocabulary has as a special one."""
        if self._pieces is not None:
            found = self._pieces.piece_to_id(name)
            return found if self._pieces.is_control(found) else None
        if self._model is None:
            return None
        return next(
            (id_ for id_, token in self._model.get_added_tokens_decoder().items() if token.content == name), None
        )

    def special(self, name: str) -> int:
        """The id of a special token of `tokenizer.special_tokens`, or of one that the vocabulary has; DataError else."""
        found = self._special.get(name, self._id_of(name))
        if found is None:
            there = ", ".join(self.special_tokens) or "none"
            raise DataError(
                f"tokenizer.special_tokens: there is no {name!r} (there is: {there}); build the corpus with it: "
                f"'tokenizer.special_tokens=[\"{name}\"]'"
            )
        return found

    @cached_property
    def _words(self) -> WordEncoder:
        """What encodes documents the fast way."""
        assert isinstance(self._content, str)
        pattern = pattern_of(self._content)
        assert pattern
        if self.fast == "words":
            return WordEncoder(lambda text: self.encode(text).tolist(), pattern, self.eod, self.dtype)
        import tiktoken

        ranks = ranks_of(self._content)
        assert ranks
        # Without special tokens: text can make none.
        encoding = tiktoken.Encoding("triaxis", pat_str=PATTERNS[pattern][1], mergeable_ranks=ranks, special_tokens={})
        return WordEncoder(encoding.encode_ordinary, pattern, self.eod, self.dtype)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id; how shards store tokens."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def find_fast_way(self, sample: Sequence[str]) -> None:
        """Sets `fast` to the fastest way that there is and that gives the same ids on the sample."""
        self.fast = ""
        if not isinstance(self._content, str) or pattern_of(self._content) is None:
            return
        texts: list[str] = []
        for text in sample:
            texts.append(text[:_CHECKED_CHARACTERS])
            if sum(map(len, texts)) > _CHECKED_CHARACTERS:
                break
        expected = self.encode_batch(texts)
        for way in ("tiktoken", "words") if ranks_of(self._content, self._model) else ("words",):
            self.fast = way
            self.__dict__.pop("_words", None)
            found = self.encode_documents(texts)
            if all(np.array_equal(one[:-1], other) for one, other in zip(found, expected, strict=True)):
                return
        self.fast = ""

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, int64 [tokens], without `eod`. DataError for text that is not Unicode (lone surrogates)."""
        try:
            if self._pieces is not None:
                return np.asarray(self._pieces.encode(text), np.int64)
            if self._model is None:
                return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
            parts = [self._model.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in _pieces(text)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(f"text is not valid Unicode and cannot be encoded: {error}") from error
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text with `eod` after it, in the dtype of the shards; DataError for an id that the vocabulary
        does not have."""
        if self.fast:
            return self._words.encode_documents(texts)
        end = np.full(1, self.eod)
        found = [np.concatenate([self.encode(text), end]) for text in texts]
        highest = max((int(ids.max()) for ids in found), default=0)
        if highest >= self.vocab_size:
            raise DataError(
                f"token {highest} is not of this tokenizer, which has {self.vocab_size} ids: its file contradicts itself; "
                "correct tokenizer.path"
            )
        return [ids.astype(self.dtype) for ids in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; `eod` is shown as `<|endoftext|>`, special tokens by name, bytes that are not UTF-8 as U+FFFD."""
        array = np.asarray(ids, np.int64).reshape(-1)
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < self.vocab_size:
            raise DataError(f"cannot decode ids outside 0…{self.vocab_size - 1}: the tokenizer does not fit these ids")
        names = {self.eod: EOD_TEXT} | {id_: name for name, id_ in self._special.items()}
        borders = np.flatnonzero(np.isin(array, list(names)))
        first, *others = np.split(array, borders)
        return self._decode(first) + "".join(names[int(part[0])] + self._decode(part[1:]) for part in others)

    def _decode(self, ids: np.ndarray) -> str:
        if self._pieces is not None:
            return self._pieces.decode(ids.tolist())
        if self._model is None:
            return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        return self._model.decode(ids.tolist(), skip_special_tokens=False)

    def spelling(self, id_: int) -> str | None:
        """How the vocabulary writes an id; None for bytes and for ids that are not of the vocabulary."""
        if self._pieces is not None:
            return self._pieces.id_to_piece(id_) if 0 <= id_ < self._pieces.get_piece_size() else None
        return self._model.id_to_token(id_) if self._model is not None else None

    @property
    def spells_bytes(self) -> bool:
        """Whether the vocabulary is one of bytes as GPT-2 writes them."""
        return isinstance(self._content, str) and self._model is not None and "ByteLevel" in str(self._model.decoder)

    def save(self, directory: Path) -> None:
        """Writes `triaxis_tokenizer.json` and, unless the kind is `byte`, `tokenizer.json` or `tokenizer.model`."""
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(self._content, bytes):
            (directory / "tokenizer.model").write_bytes(self._content)
        elif self._model is not None:
            (directory / "tokenizer.json").write_text(self._content, encoding="utf-8")
        about = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "eod": self.eod,
            "special_tokens": self._special,
            "fast": self.fast,
            "fingerprint": self.fingerprint,
        }
        (directory / "triaxis_tokenizer.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @property
    def eod_text(self) -> str:
        """The end-of-document token as the tokenizer's file calls it, `<|endoftext|>` where the file has none."""
        if self._pieces is not None:
            return self._pieces.id_to_piece(self.eod) if self.eod == self._pieces.eos_id() else EOD_TEXT
        return (self._model.id_to_token(self.eod) if self._model is not None else None) or EOD_TEXT

    def huggingface_files(self) -> tuple[dict[str, bytes], str]:
        """What transformers reads to give the same ids, by name of the file, and the class that reads it. Ids of ours
        that a tokenizer.json does not have are added to it."""
        if isinstance(self._content, bytes):
            return {"tokenizer.model": self._content}, "LlamaTokenizer"
        return {"tokenizer.json": self.huggingface_json().encode()}, "PreTrainedTokenizerFast"

    def huggingface_json(self) -> str:
        """The `tokenizer.json` that gives the same ids; for bytes one is made. DataError for SentencePiece models."""
        if isinstance(self._content, bytes):
            raise DataError("a SentencePiece model has no tokenizer.json; use its tokenizer.model")
        if self._model is not None and not self.special_tokens:
            return self._content
        model = byte_vocabulary() if self._model is None else tokenizers.Tokenizer.from_str(self._content)
        ours = sorted((id_, name) for name, id_ in (self._special | {self.eod_text: self.eod}).items())
        model.add_special_tokens([name for _, name in ours])
        return model.to_str()

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads what `save` wrote; DataError when files are missing or were changed."""
        try:
            about = json.loads((directory / "triaxis_tokenizer.json").read_text(encoding="utf-8"))
            model: str | bytes = ""
            if (directory / "tokenizer.model").exists():
                model = (directory / "tokenizer.model").read_bytes()
            elif about["kind"] != "byte":
                model = (directory / "tokenizer.json").read_text(encoding="utf-8")
            tokenizer = cls(about["kind"], model, tuple(about["special_tokens"]), fast=about["fast"])
        except FileNotFoundError as error:
            raise DataError(f"{directory}: no tokenizer there ({error.filename} is missing)") from error
        except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
            raise DataError(f"{directory}: the tokenizer is damaged ({error}); build the corpus again") from error
        if tokenizer.fingerprint != about.get("fingerprint"):
            raise DataError(f"{directory}: the tokenizer was changed after it was saved; restore it or build again")
        return tokenizer


def load_corpus_tokenizer(corpus: Path | str, cache: CacheConfig | None = None) -> Tokenizer:
    """The tokenizer of a corpus at a path or URL (cache: where it is kept then); DataError when it is not the one that the
    shards were made with."""
    corpus = home_of(corpus, cache)
    manifest, tokenizer = Manifest.load(corpus), Tokenizer.load(corpus / TOKENIZER_DIRECTORY)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{corpus / TOKENIZER_DIRECTORY}: not the tokenizer that the shards were made with (vocabulary "
            f"{tokenizer.vocab_size}, the shards' {manifest.vocab_size}); restore it, or delete {corpus} and rebuild"
        )
    return tokenizer


def make_tokenizer(config: TokenizerConfig, sample: Sequence[str]) -> Tokenizer:
    """The tokenizer that the configuration asks for; `sample` is text to train on and to check the fast way with."""
    if config.kind == "byte":
        return Tokenizer("byte", special_tokens=config.special_tokens)
    if config.trained:
        model: str | bytes = (
            train_bpe(sample, config.vocab_size, config.pattern or "gpt2", config.normalizer)
            if config.kind == "bpe"
            else train_unigram(sample, config.vocab_size, config.normalizer)
        )
    else:
        model = read_tokenizer_file(config.path, config.pattern)
    tokenizer = Tokenizer(config.kind, model, config.special_tokens)
    if not config.trained and config.vocab_size not in (0, tokenizer.vocabulary_size):
        raise DataError(
            f"tokenizer.vocab_size = {config.vocab_size}, but {config.path} has {tokenizer.vocabulary_size} ids "
            "(end-of-document included): set it to 0 or to that number"
        )
    tokenizer.find_fast_way(sample)
    return tokenizer


def tokenizer_spec(config: TokenizerConfig) -> dict[str, Any]:
    """What decides the ids that the configuration gives, for the spec of a corpus."""
    spec: dict[str, Any] = {
        "tokenizer.kind": config.kind,
        "tokenizer.vocab_size": config.vocab_size,
        "tokenizer.special_tokens": list(config.special_tokens),
        "tokenizer.pattern": config.pattern,
        "tokenizer.normalizer": config.normalizer,
    }
    if config.kind == "file":
        contents = Path(config.path).expanduser()
        spec["tokenizer.path (its contents)"] = _contents_hash(contents, config.path)
    return spec


def _contents_hash(path: Path, named: str) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise DataError(f"tokenizer.path = {named}: cannot read it ({error.strerror}); {_GIVE}") from error


_GIVE = "give a tokenizer.json, a SentencePiece .model or a .tiktoken file"


def read_tokenizer_file(path: str, pattern: str = "") -> str | bytes:
    """Contents of a tokenizer.json (as it is, or made of a .tiktoken file) or of a SentencePiece .model (bytes), checked to
    be one; DataError otherwise."""
    file = Path(path).expanduser()
    tiktoken = file.suffix == ".tiktoken"
    if tiktoken and not pattern:
        raise DataError(
            f"tokenizer.pattern is empty: {path} does not say how text is split into words; give one of "
            f"{', '.join(PATTERNS)}"
        )
    if pattern and not tiktoken:
        raise DataError(f"tokenizer.pattern = {pattern!r} has no effect on {path}, which has its own: leave it empty")
    try:
        if tiktoken:
            return read_tiktoken(file, pattern)
        if file.suffix == ".model":
            data = file.read_bytes()
            _sentencepiece(data)
            return data
        text = file.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(text)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"tokenizer.path = {path}: cannot read it ({error.strerror}); {_GIVE}") from error
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        kind = "SentencePiece .model" if file.suffix == ".model" else "tokenizer.json"
        raise DataError(f"tokenizer.path = {path}: not a {kind} ({error})") from error
    return text


def _sentencepiece(data: bytes) -> Any:
    import sentencepiece  # only needed for this format

    return sentencepiece.SentencePieceProcessor(model_proto=data)


def _find_eod(model: tokenizers.Tokenizer) -> tuple[int, int]:
    """(eod, vocab_size) of a model; ids may have gaps, so the size is one more than the largest id."""
    size = 1 + max(model.get_vocab(with_added_tokens=True).values(), default=-1)
    for name in KNOWN_EODS:
        found = model.token_to_id(name)
        if found is not None:
            return found, size
    return size, size + 1


def _pieces(text: str) -> list[str]:
    """The text in pieces of at least PIECE_CHARACTERS; the pieces joined are the text. It is cut between a letter and a
    blank, where every pattern has a border, so the ids are those of the whole."""
    pieces, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        found = _BORDER.search(text, start + PIECE_CHARACTERS)
        end = found.end() if found else len(text)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
