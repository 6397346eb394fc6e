"""Every measured number of a table comes from a committed result file."""

import re
import runpy

import pytest

from tests.docs.markdown import PAGES, ROOT

TABLES = runpy.run_path(str(ROOT / "docs/tables.py"))
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# A measurement with its spread: "72.6 ± 2.3", "1.23 (1.21 to 1.27)".
SPREAD = re.compile(r"^\|.*\d (?:± \d|\(\d\S* to \d)", re.MULTILINE)


@by_page
def test_the_tables_of_a_page_are_those_of_its_result_files(page):
    text = page.read_text()
    assert TABLES["filled"](text) == text, "run: python docs/tables.py"


@by_page
def test_no_measurement_is_written_by_hand(page):
    outside = re.sub(r"<!-- table: .*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert SPREAD.findall(outside) == []


def test_every_result_file_is_shown_somewhere():
    files = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs/measured").iterdir()}
    shown = {file for page in PAGES for file in TABLES["sources"](page.read_text())}
    assert files - shown == set()


def test_a_changed_result_changes_the_page():
    page = "<!-- table: measured/startup.txt -->\nan old table\n<!-- end -->\n"
    measured = (ROOT / "docs/measured/startup.txt").read_text()
    assert TABLES["filled"](page) == page.replace("an old table\n", f"\n{measured}\n")
