"""Unicode repair: what is undone, what is left alone."""

from __future__ import annotations

import pytest

from data.clean.pipeline import Pipeline
from data.document import Document


def repaired(text: str, **options) -> str | None:
    left, _ = Pipeline([{"step": "unicode", **options}]).clean([Document(text, "s", "p")])
    return left[0].text if left else None


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("schÃ¶n\nplain line\nâœ” No problems", "schön\nplain line\n✔ No problems"),
        ("a\r\nb\rc\u2028d\x85", "a\nb\nc\nd…"),
        ("a\x00b\x07c\ufeffd\te", "abcd\te"),
        ("cafe\u0301", "café"),
        ("\x1b[31mred\x1b[0m", "red"),
    ],
)
def test_broken_text_is_repaired(broken, sound):
    assert repaired(broken) == sound
    assert repaired(sound) == sound


@pytest.mark.parametrize("text", ["plain\n\ttext", "ﬁ “quoted” ＬＯＵＤ 10³", "&amp; <b>", "日本語 текст", "Ã"])
def test_what_is_not_broken_stays(text):
    assert repaired(text) == text


def test_options_change_style_only_when_asked():
    assert repaired("“x”", quotes=True) == '"x"'
    assert repaired("10³ ﬁ", form="NFKC") == "103 fi"
    assert repaired("cafe\u0301", form="none") == "cafe\u0301"
    assert repaired("a &amp; b &lt; c", entities=True) == "a & b < c"
    assert repaired("schÃ¶n", mojibake=False) == "schÃ¶n"


def test_what_cannot_be_repaired_is_dropped_with_its_reason():
    documents = [
        Document("\x00\x01 \n", "s", "p", 0),
        Document("ab\ufffd\ufffd", "s", "p", 1),
        Document("abc\ufffd", "s", "p", 2),
    ]
    left, (found,) = Pipeline([{"step": "unicode", "max_replacements": 0.3}]).clean(documents)
    assert [document.row for document in left] == [2]
    assert found.reasons == {"empty after repair": 1, "replacement characters": 1}
