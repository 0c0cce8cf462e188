"""The installed binaries: what they export, what they load, and that they say which version they are."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import epiconv
from epiconv import _core

FOLDER = Path(_core.__file__).parent
(LIBRARY,) = FOLDER.glob("libepiconv.so*")


def binutils(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_library_exports_no_cuda_symbols():
    symbols = [line.split()[-1] for line in binutils("nm", "-D", "--defined-only", str(LIBRARY)).splitlines()]
    assert any("epiconv" in symbol for symbol in symbols)
    # The CUDA runtime's names, its internal ones, and the stubs that nvcc writes.
    assert not [symbol for symbol in symbols if re.match(r"_*(cuda|cudart|cu[A-Z]|fatbin|nv)", symbol)]


@pytest.mark.parametrize("binary", [LIBRARY, Path(_core.__file__)], ids=["library", "module"])
def test_binaries_load_nothing_but_the_system_and_each_other(binary):
    dynamic = binutils("readelf", "-d", "-W", str(binary))
    needed = re.findall(r"\(NEEDED\).*\[(\S+)\]", dynamic)
    assert not [name for name in needed if re.match(r"lib(cuda|cudart|torch|c10|python)", name)]
    assert re.findall(r"\((?:RUNPATH|RPATH)\).*\[(\S*)\]", dynamic) == ["$ORIGIN"]


def test_version_is_the_same_everywhere():
    assert _core.version == importlib.metadata.version("epiconv")


def test_package_is_typed():
    assert (Path(epiconv.__file__).parent / "py.typed").is_file()
