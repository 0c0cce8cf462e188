"""The guide, docs/guide: its examples run and give what it says, its links lead somewhere."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from guide_examples import blocks, run_examples

import epiconv

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))
LINKED = [ROOT / "README.md", *PAGES]


def ids(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def settings():
    """Sets back what an example may have set."""
    conv, default = torch.backends.cudnn.conv.fp32_precision, torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    if torch.backends.cudnn.conv.fp32_precision != conv:
        torch.backends.cudnn.conv.fp32_precision = conv
    torch.set_default_dtype(default)
    torch.set_grad_enabled(True)
    epiconv.use_batch_invariant_algorithms(False)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_examples(page, settings):
    run_examples(page.read_text(), ids(page))


def test_pages_have_examples():
    """A page whose blocks were not found would pass."""
    without = {page.name for page in PAGES if "python" not in [b.language for b in blocks(page.read_text())]}
    assert without == {"cpp.md", "kernels.md"}


# ---- The examples' own rules.

RIGHT = [
    "1 + 1  # 2",
    "'a b'  # 'a b'",
    "(\n    3\n    + 4\n)  # 7",
    "int('x')  # ValueError: invalid literal for int() with base 10: 'x'",
    "'a long value'  # 'a …'",
    "# A sentence.\na = 1\na  # 1",
    "print('a')\n```\n\n```text\na",
    "print('a 1')\n```\n\n```text\na …",
    "1\n```\n\nThis is an illustration.\n\n```text\na",
]
WRONG = [
    "1 + 1  # 3",
    "'a b'  # a b",
    "int('1')  # ValueError: invalid literal",
    "int('x')  # 1",
    "int('x')  # ValueError",
    "1 + 1  # …",
    "a = 1  # 1",
    "if True:\n    1  # 1",
    "(\n    3  # 7\n    + 4\n)",
    "print('a')",
    "print('a')\n```\n\nIt prints:\n\n```text\na",
    "print('a')\n```\n\n```text\nb",
    "print('a\\nb')\n```\n\n```text\na…",
    "1\n```\n\n```text\na",
]


@pytest.mark.parametrize("example", RIGHT)
def test_an_example_that_is_right(example):
    run_examples(f"# A page\n\n```python\n{example}\n```\n")


@pytest.mark.parametrize("example", WRONG)
def test_an_example_that_is_wrong(example):
    with pytest.raises(AssertionError):
        run_examples(f"# A page\n\n```python\n{example}\n```\n")


def test_errors_without_a_comment_are_errors():
    with pytest.raises(ValueError, match="invalid literal"):
        run_examples("```python\nint('x')\n```\n")


@pytest.mark.parametrize("page", ["```python\n1", "  ```python\n1\n```", "a ```python"])
def test_fences(page):
    with pytest.raises(AssertionError):
        blocks(page)


# ---- What the pages refer to.


def prose(page):
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", LINKED, ids=ids)
def test_links(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    files = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [name for name in files if name and not (page.parent / name).is_file()]
    assert not missing


@pytest.mark.parametrize("page", LINKED, ids=ids)
def test_paths(page):
    """Files of the repository that are named as such."""
    named = re.findall(r"`((?:cmake|cpp|docs|python|tests)/[^`\s]+)`", prose(page))
    assert not [name for name in named if not list(ROOT.glob(name))]


def test_every_page_is_in_the_index():
    text = (GUIDE / "README.md").read_text()
    assert not [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in text]


# ---- The C++ example and the drawing.


def test_the_consumer_is_the_guide_s():
    """The project that ctest builds against the installed package, and what ctest asks of its output."""
    found = {block.language: block.text for block in blocks((GUIDE / "cpp.md").read_text())}
    consumer = ROOT / "tests/consumer"
    assert found["cpp"] + "\n" == (consumer / "consumer.cpp").read_text()
    assert found["cmake"] + "\n" == (consumer / "CMakeLists.txt").read_text()
    ctest = (ROOT / "tests/cpp/CMakeLists.txt").read_text()
    asked = re.search(r'PASS_REGULAR_EXPRESSION "(v1.*?)"\)', ctest, flags=re.DOTALL)
    assert asked
    assert re.fullmatch(asked[1].replace("\\\\", "\\"), found["text"])


def test_the_drawing(tmp_path):
    """The picture is that of the script beside it, as far as its words tell."""
    pytest.importorskip("matplotlib")
    draw = runpy.run_path(str(GUIDE / "draw_halo_tile.py"))["draw"]
    draw(tmp_path / "drawn.svg")

    def words(path):
        texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
        return ["".join(text.itertext()).strip() for text in texts]

    assert words(GUIDE / "halo_tile.svg") == words(tmp_path / "drawn.svg")
