"""Where things live: what may stand in which file, and who may include whom."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "cpp/src"
PUBLIC = ROOT / "cpp/include"

# From the bottom up: a folder of cpp/src includes itself and what is below it; folders of one row do not
# know each other. Files directly in cpp/src count as `program`.
LAYERS = [
    {"device/ptx"},
    {"program"},
    {"device"},
    {"compiler"},
    {"backward", "cpu", "elementwise", "sm80", "sm90"},
    {"host_model"},
    {"plan"},
    {"python"},
]
PRIVATE_TORCH = "python/epiconv/_torch_private.py"


def repository_files() -> list[str]:
    """Tracked files, and those that would be if they were added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def cpp_files() -> list[str]:
    return [name for name in repository_files() if re.match(r"cpp/.*\.(h|cpp|cu|cuh)$", name)]


def code(name: str) -> str:
    """The text of a C++ file without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", (ROOT / name).read_text(), flags=re.DOTALL)


def includes(name: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', code(name), flags=re.MULTILINE)


def layer_of(path: Path) -> tuple[int, str]:
    """Height and folder of a file of cpp/src."""
    relative = path.relative_to(SOURCE)
    folder = relative.parent.as_posix()
    while folder not in {"", "."}:
        for height, row in enumerate(LAYERS):
            if folder in row:
                return height, folder
        folder = folder.rpartition("/")[0]
    if relative.parent == Path("."):
        return next(height for height, row in enumerate(LAYERS) if "program" in row), "program"
    raise AssertionError(f"{relative.parent} of cpp/src has no layer yet: add it to LAYERS in {__file__}")


def resolve(name: str, include: str) -> Path | None:
    """The file of cpp/src that an #include names; None when it names something else."""
    for folder in ((ROOT / name).parent, SOURCE):
        candidate = (folder / include).resolve()
        if candidate.is_file() and candidate.is_relative_to(SOURCE):
            return candidate
    return None


def test_top_level():
    allowed = {"cpp", "python", "cmake", "tests", "docs"}
    allowed |= {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    entries = {name.split("/")[0] for name in repository_files()}
    unexpected = {entry for entry in entries - allowed if not entry.startswith(".")}
    assert not unexpected


def test_inline_assembly_only_under_ptx():
    pattern = re.compile(r"\b(asm|__asm|__asm__)\b\s*((volatile|__volatile__|goto)\b\s*)*\(")
    offenders = [name for name in cpp_files() if "/ptx/" not in name and pattern.search(code(name))]
    assert not offenders


def test_core_is_free_of_torch():
    offenders = [
        (name, include)
        for name in cpp_files()
        for include in includes(name)
        if re.match(r"(torch|ATen|c10|caffe2)/", include)
    ]
    assert not offenders


def test_pybind11_in_one_folder():
    users = {
        name for name in cpp_files() if any(include.startswith("pybind11/") for include in includes(name))
    }
    assert users
    assert all(name.startswith("cpp/src/python/") for name in users)


def test_public_headers_include_public_headers_only():
    offenders = []
    for name in cpp_files():
        if not name.startswith("cpp/include/"):
            continue
        for include in includes(name):
            ours = include.startswith("epiconv/")
            if (
                resolve(name, include)
                or (ours and not (PUBLIC / include).is_file())
                or include.startswith(".")
            ):
                offenders.append((name, include))
    assert not offenders


def test_lower_layers_do_not_include_higher_ones():
    offenders = []
    for name in cpp_files():
        if not name.startswith("cpp/src/"):
            continue
        height, folder = layer_of(ROOT / name)
        for include in includes(name):
            target = resolve(name, include)
            if target is None:
                continue
            target_height, target_folder = layer_of(target)
            if target_height > height or (target_height == height and target_folder != folder):
                offenders.append((name, include))
    assert not offenders


def private_torch_names(tree: ast.AST) -> list[str]:
    """Dotted names below torch with a part that starts with one underscore."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if re.match(r"torch\.(\w+\.)*_(?!_)\w+$", name):
                found.append(name)
    return found


def test_private_torch_names_in_one_file():
    offenders = {
        name: found
        for name in repository_files()
        if re.match(r"python/.*\.py$", name) and name != PRIVATE_TORCH
        if (found := private_torch_names(ast.parse((ROOT / name).read_text(), name)))
    }
    assert not offenders
