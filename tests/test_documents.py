"""The documents: README is short and agrees with ledger, benchmarks and CI; links, anchors and
paths lead somewhere.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docs", "examples", "softntk", "tests", ".github")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
README = ROOT / "README.md"
GALLERY = ROOT / "examples/README.md"
BENCHMARKS = ROOT / "benchmarks/README.md"
LEDGER = ROOT / "softntk/theory/LEDGER.md"
MAX_WORDS = 450

FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
SCHEME = re.compile(r"[a-z]+:")
FILE = re.compile(
    r"(?<![\w./-])((?:[\w.-]+/)+[\w.-]+\.(?:py|md|png|toml|txt|yml|yaml)|\.ci/run)(?![\w/])"
)
FOLDER = re.compile(r"(?<![\w./-])(?:softntk|tests|examples|benchmarks)/(?:[\w.-]+/)*(?=[\s`,])")

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return a document without fenced code and tables."""
    return "\n".join(line for line in FENCE.sub("", text).splitlines() if not line.startswith("|"))


def section(text: str, title: str) -> str:
    """Return what stands under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def links(text: str) -> list[str]:
    """Return the targets of the links and pictures that lead to no other host."""
    return [target for target in LINK.findall(FENCE.sub("", text)) if not SCHEME.match(target)]


def anchors(text: str) -> set[str]:
    """Return the anchors that a document names, and those that are made of its headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)"></a>', text))


def resolves(target: str, document: Path) -> bool:
    """Return whether a link leads to a file, and to an anchor in it."""
    name, _, anchor = target.partition("#")
    file = document.parent / name if name else document
    return file.exists() and (not anchor or anchor in anchors(read(file)))


def commands() -> list[str]:
    return [code.strip() for _, code in FENCE.findall(section(read(README), "Two commands"))]


def test_the_documents_are_found():
    mathematics = ROOT / "softntk/MATHEMATICS.md"
    assert {README, GALLERY, BENCHMARKS, LEDGER, mathematics} <= set(DOCUMENTS)


def test_a_link_that_leads_nowhere_is_noticed():
    for target in ("no_such_file.md", "CHANGELOG.md#no-such-section", "#no-such-section"):
        assert not resolves(target, README)
    assert resolves("#two-commands", README)
    assert links("[a](b.md) ![c](d.png) [e](https://f.g)\n```text\n[h](i.md)\n```\n") == [
        "b.md",
        "d.png",
    ]
    assert FILE.findall("`uv run examples/a.py --small`, u/α, .ci/run, (tests/b_c.txt)") == [
        "examples/a.py",
        ".ci/run",
        "tests/b_c.txt",
    ]


@every_document
def test_links_resolve(document):
    assert [target for target in links(read(document)) if not resolves(target, document)] == []


@every_document
def test_paths_exist(document):
    """From the root, from the folder of the document, or from the package."""
    text = LINK.sub("]", read(document))
    starts = (ROOT, document.parent, ROOT / "softntk")
    named = [*FILE.findall(text), *FOLDER.findall(text)]
    assert [name for name in named if not any((start / name).exists() for start in starts)] == []


def test_readme_is_short():
    words = len(prose(read(README)).split())
    assert words <= MAX_WORDS, f"README has {words} words outside code and tables"


def test_readme_tells_the_two_commands():
    blocks = FENCE.findall(section(read(README), "Two commands"))
    assert [language for language, _ in blocks] == ["bash", "bash"]
    assert commands()[0].endswith("uv run examples/quickstart.py")
    assert commands()[1].endswith("uv run pytest")


def test_ci_runs_what_readme_tells():
    workflow = read(ROOT / ".github/workflows/ci.yml")
    assert commands()[1] in workflow
    assert "bash .ci/run" in workflow


def test_readme_counts_as_the_ledger_does():
    text = read(LEDGER)
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    sources = Counter(line.split(" | ")[-1].removesuffix(" |") for line in rows)
    assert set(sources) == {"printed", "as remembered", "ours"}
    counts = (
        f"measures {len(rows)} statements",
        f"{sources['printed']} are *printed*",
        f"{sources['as remembered']} *as remembered*",
        f"{sources['ours']} *ours*",
        f"the {text.count(chr(10) + '- **')} that fail",
    )
    told = " ".join(read(README).split())
    assert [count for count in counts if count not in told] == []


def test_figures_of_readme_stand_in_the_benchmarks():
    """With the command that gives them."""
    measured = read(BENCHMARKS)
    known_figures = set(FIGURE.findall(measured))
    table = [
        line for line in section(read(README), "How fast").splitlines() if line.startswith("|")
    ]
    rows = [line.strip("| ").split(" | ") for line in table[2:]]
    assert len(rows) >= 3
    for _, ours, others, command in rows:
        assert command.strip("`") in measured
        figures = set(FIGURE.findall(f"{ours} {others}"))
        assert figures, command
        assert figures <= known_figures


def test_the_gallery_shows_every_example():
    text, folder = read(GALLERY), GALLERY.parent
    shown = {target for target in links(text) if target.endswith(".png")}
    assert shown == {path.name for path in folder.glob("*.png")}
    told = [code.strip() for language, code in FENCE.findall(text) if language == "bash"]
    scripts = [path.name for path in folder.glob("*.py") if not path.name.startswith("_")]
    assert sorted(told) == sorted(f"uv run examples/{name}" for name in scripts)


def test_no_conflict_of_a_merge_is_left():
    """Lines that git leaves where two states of a file differ."""
    marker = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), ROOT / "tests" / "slow_cases.txt"]:
        assert not marker.search(path.read_text(encoding="utf-8")), path
