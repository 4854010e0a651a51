"""What objectives ask of a corpus's tokenizer: ids of special tokens, and where words begin and end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.config import DataError
from data.tokenizers import Tokenizer
from launcher.config import RecipeError
from models.objectives.base import Vocabulary
from models.objectives.config import ObjectiveConfig


def vocabulary_of(objective: ObjectiveConfig, tokenizer: Tokenizer, path: Path | str) -> Vocabulary:
    """The tokenizer of the corpus at `path` as an objective sees it; RecipeError names a special token that it lacks."""
    words = any(part.name == "masked_lm" and part.masked_lm.whole_word for part in objective.parts)
    return Vocabulary(
        size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        special=special_tokens(objective, tokenizer, path),
        joins=joins(tokenizer) if words else None,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
    )


def special_tokens(objective: ObjectiveConfig, tokenizer: Tokenizer, path: Path | str) -> dict[str, int]:
    """Ids of the objective's special tokens, and of all that the corpus was built with."""
    known, missing = {name: tokenizer.special(name) for name in tokenizer.special_tokens}, []
    wanted = objective.special_tokens()
    for option, name in wanted.items():
        try:
            known[name] = tokenizer.special(name)  # the vocabulary of a file may have it, too
        except DataError:
            missing.append((option, name))
    if missing:
        option, name = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise RecipeError(
            f"{option}={name}{more}: the tokenizer of {path} has no such special token, and objective.name={objective.name} "
            "writes it; build the corpus with it in tokenizer.special_tokens (tokenizer=bpe_special has all), or name one that "
            "is there"
        )
    return known


def joins(tokenizer: Tokenizer) -> np.ndarray:
    """bool [2, V]: whether the text of each id begins, and ends, inside a word: with a letter, digit or part of a character."""
    anchor = tokenizer.encode("a")[-1:]  # decoders strip a space from the first token of a text
    found = np.zeros((2, tokenizer.vocab_size), bool)
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode(np.append(anchor, token))[1:]
        for row, character in enumerate((text[:1], text[-1:])):
            found[row, token] = character.isalnum() or character in ("\ufffd", "_")
    return found
