"""Quality signals against the same written out for one text at a time, and against sums made by hand."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.pipeline import Pipeline
from data.clean.signals import BULLETS, LINE_ENDS, SENTENCE_ENDS, SIGNALS, STOP_WORDS, signals
from data.clean.words import Texts, Words
from data.config import DataError
from data.document import Document


def is_single(letter: str) -> bool:
    return bool(re.match("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]", letter))


def is_letter(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LM"


def words_of(text: str) -> list[str]:
    found, word = [], ""
    for letter in [*text, " "]:
        in_word = is_letter(letter) or unicodedata.category(letter)[0] == "N"
        if word and (not in_word or is_single(letter)):
            found.append(word)
            word = ""
        if in_word and is_letter(letter) and is_single(letter):
            found.append(letter)
        elif in_word:
            word += letter
    return found


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def copies(parts: list[tuple[str, ...]]) -> tuple[float, float]:
    """parts: lines, alone or in paragraphs."""
    seen, number, size = set(), 0, 0
    for part in parts:
        if part in seen:
            number, size = number + 1, size + len("".join(part))
        seen.add(part)
    return share(number, len(parts)), share(size, len("".join("".join(part) for part in parts)))


def definition(text: str) -> dict[str, float]:
    """Every signal, by the sentence that defines it."""
    tokens, words, lines = text.split(), [word.lower() for word in words_of(text)], []
    blocks: list[list[str]] = [[]]
    for line in re.split("\n", text):
        if line.strip():
            lines.append(line.strip())
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    paragraphs = [tuple(block) for block in blocks if block]
    letters, visible = [c for c in text if is_letter(c)], [c for c in text if not c.isspace()]
    counts = Counter(words)
    size = len(words)
    found: dict[str, float] = {
        "character_count": len(text),
        "token_count": len(tokens),
        "word_count": size,
        "line_count": len(lines),
        "sentence_count": len(
            re.findall(rf"[.!?\u2026](?![{SENTENCE_ENDS}])(?![^\W_])|[。！？](?![{SENTENCE_ENDS}])", text)
        ),
        "mean_token_length": share(sum(map(len, tokens)), len(tokens)),
        "hash_ratio": share(text.count("#"), len(tokens)),
        "ellipsis_ratio": share(text.count("...") + text.count("…"), len(tokens)),
        "bullet_line_share": share(sum(line[0] in BULLETS for line in lines), len(lines)),
        "ellipsis_line_share": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "terminal_line_share": share(sum(line[-1] in LINE_ENDS for line in lines), len(lines)),
        "alphabetic_token_share": share(sum(any(map(is_letter, token)) for token in tokens), len(tokens)),
        "capital_token_share": share(
            sum(
                any(map(is_letter, token)) and all(unicodedata.category(c) == "Lu" for c in token if is_letter(c))
                for token in tokens
            ),
            len(tokens),
        ),
        "uppercase_share": share(sum(unicodedata.category(c) == "Lu" for c in letters), len(letters)),
        "letter_share": share(len(letters), len(visible)),
        "digit_share": share(sum(unicodedata.category(c)[0] == "N" for c in text), len(visible)),
        "stop_word_count": len(set(STOP_WORDS) & set(words)),
        "unique_word_share": share(len(counts), size),
        "word_entropy": -sum(c / size * math.log(c / size) for c in counts.values()),
        "lorem_ipsum_count": sum(words[i : i + 2] == ["lorem", "ipsum"] for i in range(size)),
        "curly_bracket_share": share(text.count("{") + text.count("}"), len(text)),
    }
    found["duplicate_line_share"], found["duplicate_line_characters"] = copies([(line,) for line in lines])
    found["duplicate_paragraph_share"], found["duplicate_paragraph_characters"] = copies(paragraphs)
    all_characters = sum(map(len, words))
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(size - n + 1)]
        often = Counter(grams)
        if n < 5:
            best = max(((count, len("".join(gram))) for gram, count in often.items() if count > 1), default=(0, 0))
            found[f"top_{n}gram"] = min(1.0, share(best[0] * best[1], all_characters))
        else:
            inside = {i + k for i, gram in enumerate(grams) if often[gram] > 1 for k in range(n)}
            found[f"duplicate_{n}grams"] = share(sum(len(words[i]) for i in inside), all_characters)
    return found


word = st.sampled_from(
    ["the", "The", "of", "a", "bc", "Über", "x1", "日本", "lorem ipsum", "NASA", "12", "#", "...", "…", "{", "é"]
)
joint = st.sampled_from([" ", " ", " ", "\n", "\n\n", "\n \n", ". ", ".", "!\n", "\n- ", "\n\u2022 ", "。", "\t"])
text = st.lists(st.tuples(word, joint), max_size=60).map(lambda parts: "".join(a + b for a, b in parts))


@settings(max_examples=150, deadline=None)
@given(st.lists(text, max_size=4))
def test_signals_equal_their_definitions(texts):
    found = signals(texts)
    assert list(found) == list(SIGNALS)
    for place, one in enumerate(texts):
        expected = definition(one)
        for name in SIGNALS:
            assert found[name][place] == pytest.approx(expected[name], abs=1e-9), (name, one)


def test_signals_by_hand():
    text = "The cat sat.\nthe cat sat.\nThe cat sat.\n\n- a list of #2 THINGS …\n"
    found = {name: values[0].item() for name, values in signals([text]).items()}
    assert found["token_count"] == 9 + 7 and found["word_count"] == 9 + 5
    assert found["line_count"] == 4 and found["sentence_count"] == 4
    assert found["hash_ratio"] == found["ellipsis_ratio"] == 1 / 16
    assert found["bullet_line_share"] == found["ellipsis_line_share"] == 1 / 4 and found["terminal_line_share"] == 3 / 4
    assert found["alphabetic_token_share"] == 13 / 16 and found["capital_token_share"] == 1 / 16
    assert found["stop_word_count"] == 2, "the, of"
    assert found["duplicate_line_share"] == 1 / 4, "case counts for lines"
    assert found["duplicate_line_characters"] == 12 / (3 * 12 + len("- a list of #2 THINGS …"))
    assert found["top_2gram"] == 3 * 6 / (27 + 14), "the cat, three times, of 27 + 14 letters and digits"
    assert found["top_3gram"] == 3 * 9 / (27 + 14) and found["duplicate_5grams"] == 27 / (27 + 14)
    assert found["duplicate_7grams"] == 0, "nine words of period three hold three different runs of seven"


def test_words_of_scripts_without_spaces_are_characters():
    texts = Texts(["日本語 and ภา", "Don't"])
    words = Words(texts)
    found = ["".join(map(chr, texts.codes[a:b])) for a, b in zip(words.starts, words.ends, strict=True)]
    assert found[:4] == ["日", "本", "語", "and"] and found[-2:] == ["Don", "t"]
    assert words.per_text.tolist() == [len(found) - 2, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="abAB é日", max_size=30), max_size=5))
def test_hashes_of_words_depend_on_the_word_alone(texts):
    words = Words(Texts(texts))
    spelled = [word.lower() for one in texts for word in words_of(one)]
    assert len(set(words.hashes.tolist())) == len(set(spelled))
    assert dict(zip(spelled, words.hashes.tolist(), strict=True)) == {
        one: Words(Texts([one])).hashes[0] for one in spelled
    }


def test_columns_do_not_depend_on_the_documents_beside():
    texts = ["a b c a b c a b c " * 9, "", "x\n\ny", "日本語。"]
    alone = [{name: values[0] for name, values in signals([one]).items()} for one in texts]
    beside = signals(texts)
    assert alone == [{name: values[place] for name, values in beside.items()} for place in range(len(texts))]
    assert all(np.isfinite(values).all() for values in beside.values())


def test_the_step_writes_the_columns_that_are_asked_for():
    documents = [Document("one two", "s", "p", 0, {"mine": 1})]
    pipeline = Pipeline([{"step": "signals", "only": ["word_count", "digit_share"]}])
    assert pipeline.columns == ("word_count", "digit_share")
    left, (tally,) = pipeline.clean(documents)
    assert left[0].columns == {"mine": 1, "word_count": 2, "digit_share": 0.0}
    assert type(left[0].columns["word_count"]) is int and tally.after == 1 and tally.changed == 0
    assert Pipeline([{"step": "signals"}]).columns == tuple(SIGNALS)
    with pytest.raises(DataError, match=r"corpus.clean\[0\].only = \['words'\]: no signal 'words'"):
        Pipeline([{"step": "signals", "only": ["words"]}])
