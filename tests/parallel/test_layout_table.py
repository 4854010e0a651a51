"""README's table of layouts is that of the record, and the record is of the list as it stands."""

from __future__ import annotations

from pathlib import Path

from tests.parallel.cases import Case
from tests.parallel.record_layouts import README, axes, features, passed_in, recorded, table, with_table
from tests.parallel.test_parity import EVERY_LAYOUT, case


def test_the_record_is_of_the_present_list() -> None:
    listed = sorted(map(str, EVERY_LAYOUT))
    assert recorded() == listed, "run `make layouts`: cases were added, taken away, or did not pass"


def test_the_table_is_that_of_the_record() -> None:
    passed = set(recorded())
    text = README.read_text()
    assert with_table(text, [one for one in EVERY_LAYOUT if str(one) in passed]) == text


def test_the_report_of_pytest_tells_who_passed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = [
        'name="test_matches_single_process[one]"/>',
        'name="test_matches_single_process[two]"><failure/></testcase>',
    ]
    report.write_text("<s>" + "".join(f"<testcase {case}" for case in [*cases, 'name="test_other[three]"/>']) + "</s>")
    assert passed_in(report) == ["one"]


def test_what_a_case_adds_to_the_table() -> None:
    found = case("llama", Case().optimizer, 2, 2, 1, engine="torch", schedule="zbv", zero_stage=0, compile="block")
    assert axes(found) == "TP"
    assert set(features(found)) == {
        ("parallel.schedule", "zbv"),
        ("parallel.zero_stage", "0"),
        ("parallel.compile", "block"),
    }
    assert "| `parallel.schedule=zbv` | refused | TP |" in table([found])
