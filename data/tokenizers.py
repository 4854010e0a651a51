"""Text to token ids and back, with one end-of-document id (`eod`) that no text can produce.

Three kinds behind one class: bytes, byte-pair encoding trained here, and any tokenizer.json. Byte-level kinds are
lossless: `decode(encode(text)) == text`. Special tokens in the text are encoded as ordinary characters, so a document
that quotes the end-of-document token cannot forge a border.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.config import BYTE_VOCABULARY, EOD_TEXT, DataError, TokenizerConfig
from data.manifest import Manifest

TOKENIZER_DIRECTORY = "tokenizer"
"""Where, within a corpus, its tokenizer is."""

KNOWN_EODS = (EOD_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
"""End-of-document tokens looked for in a tokenizer file, in this order; a file with none gets one more id."""

PIECE_CHARACTERS = 1 << 20
"""Longer texts are encoded in pieces of about this length, cut after a line end: it bounds memory."""


class Tokenizer:
    """Encodes text to int64 ids and decodes them. Make one with `make_tokenizer` or `Tokenizer.load`.

    kind: `byte`, `bpe` or `file`.
    vocab_size: number of ids, `eod` included.
    eod: the end-of-document id. `encode` never returns it; whoever joins documents puts it after each.
    fingerprint: hash of everything that decides the ids.
    """

    def __init__(self, kind: str, model_json: str = "") -> None:
        self.kind = kind
        self._json = model_json
        self._model: tokenizers.Tokenizer | None = None
        self.eod, self.vocab_size = 256, BYTE_VOCABULARY
        if kind != "byte":
            self._model = tokenizers.Tokenizer.from_str(model_json)
            self._model.encode_special_tokens = True
            self._model.no_truncation()
            self._model.no_padding()
            self.eod, self.vocab_size = _find_eod(self._model)
        self.fingerprint = hashlib.sha256(f"{kind}\0{self.eod}\0{model_json}".encode()).hexdigest()[:32]

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id; how shards store tokens."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, int64 [tokens], without `eod`. DataError for text that is not Unicode (lone surrogates)."""
        try:
            if self._model is None:
                return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
            # encode_batch_fast, unlike encode, releases the GIL, so threads encode in parallel.
            parts = [self._model.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in _pieces(text)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(f"text is not valid Unicode and cannot be encoded: {error}") from error
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text with `eod` after it, in the dtype of the shards."""
        end = np.full(1, self.eod)
        return [np.concatenate([self.encode(text), end]).astype(self.dtype) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; `eod` is shown as `<|endoftext|>`, bytes that are not UTF-8 as U+FFFD."""
        array = np.asarray(ids, np.int64).reshape(-1)
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < self.vocab_size:
            raise DataError(f"cannot decode ids outside 0…{self.vocab_size - 1}: the tokenizer does not fit these ids")
        documents = np.split(array, np.flatnonzero(array == self.eod))
        texts = [self._decode(documents[0])] + [EOD_TEXT + self._decode(document[1:]) for document in documents[1:]]
        return "".join(texts)

    def _decode(self, ids: np.ndarray) -> str:
        if self._model is None:
            return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        return self._model.decode(ids.tolist(), skip_special_tokens=False)

    def save(self, directory: Path) -> None:
        """Writes `triaxis_tokenizer.json` and, unless the kind is `byte`, a Hugging Face `tokenizer.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        if self._model is not None:
            (directory / "tokenizer.json").write_text(self._json, encoding="utf-8")
        about = {"kind": self.kind, "vocab_size": self.vocab_size, "eod": self.eod, "fingerprint": self.fingerprint}
        (directory / "triaxis_tokenizer.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @property
    def eod_text(self) -> str:
        """The end-of-document token as the tokenizer's file calls it, `<|endoftext|>` where the file has none."""
        return (self._model.id_to_token(self.eod) if self._model is not None else None) or EOD_TEXT

    def huggingface_json(self) -> str:
        """The `tokenizer.json` that gives the same ids; for bytes one is made."""
        return self._json if self._model is not None else _byte_model().to_str()

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads what `save` wrote; DataError when files are missing or were changed."""
        try:
            about = json.loads((directory / "triaxis_tokenizer.json").read_text(encoding="utf-8"))
            byte = about["kind"] == "byte"
            model_json = "" if byte else (directory / "tokenizer.json").read_text(encoding="utf-8")
            tokenizer = cls(about["kind"], model_json)
        except FileNotFoundError as error:
            raise DataError(f"{directory}: no tokenizer there ({error.filename} is missing)") from error
        except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
            raise DataError(f"{directory}: the tokenizer is damaged ({error}); build the corpus again") from error
        if tokenizer.fingerprint != about.get("fingerprint"):
            raise DataError(f"{directory}: the tokenizer was changed after it was saved; restore it or build again")
        return tokenizer


def load_corpus_tokenizer(corpus: Path | str) -> Tokenizer:
    """The tokenizer of a built corpus; DataError when it is not the one that the shards were made with."""
    corpus = Path(corpus)
    manifest, tokenizer = Manifest.load(corpus), Tokenizer.load(corpus / TOKENIZER_DIRECTORY)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{corpus / TOKENIZER_DIRECTORY}: not the tokenizer that the shards were made with (vocabulary "
            f"{tokenizer.vocab_size}, the shards' {manifest.vocab_size}); restore it, or delete {corpus} and rebuild"
        )
    return tokenizer


def make_tokenizer(config: TokenizerConfig, sample: Iterable[str]) -> Tokenizer:
    """The tokenizer that the configuration asks for; `sample` is the text that `bpe` is trained on (else unused)."""
    if config.kind == "byte":
        return Tokenizer("byte")
    if config.kind == "bpe":
        return train_bpe(sample, config.vocab_size)
    tokenizer = Tokenizer("file", read_tokenizer_file(config.path))
    if config.vocab_size not in (0, tokenizer.vocab_size):
        raise DataError(
            f"tokenizer.vocab_size = {config.vocab_size}, but {config.path} has {tokenizer.vocab_size} ids "
            "(end-of-document included): set it to 0 or to that number"
        )
    return tokenizer


def tokenizer_spec(config: TokenizerConfig) -> dict[str, Any]:
    """What decides the ids that the configuration gives, for the spec of a corpus."""
    spec: dict[str, Any] = {"tokenizer.kind": config.kind, "tokenizer.vocab_size": config.vocab_size}
    if config.kind == "file":
        contents = Tokenizer("file", read_tokenizer_file(config.path)).fingerprint
        spec["tokenizer.path (its contents)"] = contents
    return spec


def train_bpe(sample: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's word pattern, `eod` as id 0, then the 256 bytes, then the merges.

    The same texts in the same order give the same file. DataError when the text has too few different words for so
    many merges.
    """
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
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
    return Tokenizer("bpe", model.to_str())


def _byte_model() -> tokenizers.Tokenizer:
    """Bytes as a byte-level BPE without merges: id b for byte b, then `eod`. Bytes are spelt as in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    spelt = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    model = tokenizers.Tokenizer(models.BPE(vocab={spelt[byte]: byte for byte in range(256)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([EOD_TEXT])
    return model


def read_tokenizer_file(path: str) -> str:
    """Contents of a tokenizer.json, checked to be one; DataError otherwise."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(text)
    except OSError as error:
        raise DataError(f"tokenizer.path = {path}: cannot read it ({error.strerror}); give a tokenizer.json") from error
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise DataError(f"tokenizer.path = {path}: not a tokenizer.json ({error})") from error
    return text


def _find_eod(model: tokenizers.Tokenizer) -> tuple[int, int]:
    """(eod, vocab_size) of a model; ids may have gaps, so the size is one more than the largest id."""
    size = 1 + max(model.get_vocab(with_added_tokens=True).values(), default=-1)
    for name in KNOWN_EODS:
        found = model.token_to_id(name)
        if found is not None:
            return found, size
    return size, size + 1


def _pieces(text: str) -> list[str]:
    """The text cut after line ends into pieces of at least PIECE_CHARACTERS; the pieces joined are the text."""
    pieces, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.find("\n", start + PIECE_CHARACTERS) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
