"""Generated pages are fresh, relative links resolve, and the table of test helpers is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import docs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md", *sorted(docs.DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:backend|bench|collectors|docs|examples|scripts|tests|tui)/[\w./-]+\.\w+)`")


def relative_links(page: Path) -> list[str]:
    """The targets of the page's links to files, without anchors."""
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text())]
    return [target for target in targets if target and "://" not in target]


def dead_links(page: Path) -> list[str]:
    return [target for target in relative_links(page) if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", docs.PAGES)
def test_a_generated_page_is_fresh(page: str) -> None:
    assert (docs.DOCS / f"{page}.md").read_text() == docs.render(page), "run `make docs`"


def test_the_index_marks_exactly_the_generated_pages() -> None:
    marked = re.findall(r"^\| \[`(\w+)\.md`\]\(\S+\) \* \|", (docs.DOCS / "README.md").read_text(), re.MULTILINE)
    assert sorted(marked) == sorted(docs.PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_points_to_a_file(page: Path) -> None:
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#part) [`b`](missing.md) ![c](missing.svg) [d](https://example.org) [e](#part)")
    assert dead_links(page) == ["missing.md", "missing.svg"]


def test_the_table_of_helpers_is_complete() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "tests/README.md").read_text(), re.MULTILINE)
    helpers = {file.stem for file in (ROOT / "tests/support").glob("*.py")} - {"__init__"}
    assert sorted(listed) == sorted(helpers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_by_its_path_exists(page: Path) -> None:
    assert [path for path in NAMED.findall(page.read_text()) if not (ROOT / path).exists()] == []
