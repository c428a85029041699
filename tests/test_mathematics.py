"""MATHEMATICS.md ships with the package, has every anchor that is cited, and explains every letter
code.
"""

import ast
import io
import re
import tokenize
from importlib import resources
from operator import attrgetter
from pathlib import Path

import pytest

import softntk

PACKAGE = Path(softntk.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
SHAPES = {"J", "M"}
"""Letters that name no paper: lengths in the shapes of docstrings."""

CITATION = re.compile(r"MATHEMATICS\.md(?:#([\w-]+))?")
LETTER = re.compile(r"\[([A-Z])\]")


@pytest.fixture(scope="module")
def text() -> str:
    return resources.files("softntk").joinpath("MATHEMATICS.md").read_text(encoding="utf-8")


def anchors(text: str) -> list[str]:
    return re.findall(r'<a id="([\w-]+)"></a>', text)


def prose(path: Path) -> str:
    """The comments and the strings of a module, docstrings included: code such as ``bounds[R]``
    names no paper.
    """
    source = path.read_text(encoding="utf-8")
    comments = [
        t.string
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    ]
    constants = [
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
    ]
    return "\n".join([*comments, *(value for value in constants if isinstance(value, str))])


def test_every_citation_names_an_anchor(text):
    known = set(anchors(text))
    cited = [
        (path, anchor)
        for path in SOURCES
        for anchor in CITATION.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(cited) > 40, "the citations are not found"
    assert [(path.name, anchor) for path, anchor in cited if anchor not in known] == []


def test_nothing_cites_the_notes_before_it():
    assert [
        path.name for path in SOURCES if re.search(r"\bMATH\.md", path.read_text(encoding="utf-8"))
    ] == []


def test_every_letter_code_is_explained(text):
    table = text.split('<a id="sources"></a>')[1].split('<a id="notation"></a>')[0]
    explained = set(
        re.findall(r"^\| \[([A-Z])\] \| arXiv \d{4}\.\d{5} \|", table, flags=re.MULTILINE)
    )
    used = {letter for path in SOURCES for letter in LETTER.findall(prose(path))}
    assert used >= {"G", "S", "D", "H"}, "the codes are not found"
    assert used - SHAPES - explained == set()
    assert set(LETTER.findall(text)) - SHAPES <= explained


def test_contents_list_every_anchor_once(text):
    names = anchors(text)
    assert len(names) == len(set(names))
    contents = text.split("## Contents")[1].split("<a id=")[0]
    assert sorted(re.findall(r"\(#([\w-]+)\)", contents)) == sorted(names)
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= set(names)


def test_lines_and_links(text):
    assert max(map(len, text.splitlines())) <= 120
    assert all((PACKAGE / target).exists() for target in re.findall(r"\]\(([^)#]+)\)", text))
    paths = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert paths, "the paths are not found"
    assert [path for path in paths if not (PACKAGE / path).exists()] == []


def test_names_are_public(text):
    names = re.findall(r"`((?:networks|regression|solvers|theory)(?:\.\w+)+)`", text)
    assert names, "the names are not found"
    for name in names:
        attrgetter(name)(softntk)
