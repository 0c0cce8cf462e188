"""Kernels compiled at run time for one plan, in which sizes and the steps of the epilogue are constants.

Where the portable family runs, one second or two go into a kernel for this very form of tensors and program
when a call of it is planned, if one of these asks for it:

- `torch.backends.cudnn.benchmark = True`, which says that shapes recur and that time may be spent on the
  first call of each, as for cuDNN's search among its algorithms;
- the environment variable EPICONV_COMPILE, read once, when this module is imported: "always", "never", or
  "benchmark", as without it. What is none of these words raises a ValueError then.

The bits of results are the same with and without, but for the last one of gelu's tanh form. What was
compiled is kept in EPICONV_CACHE_DIR, or, without that variable, in epiconv below XDG_CACHE_HOME or ~/.cache,
where later processes find it; "" keeps nothing. The compiler is NVRTC, which torch's wheels for CUDA bring
along (`pip install nvidia-cuda-nvrtc`). Where it is missing a kernel of the library runs, and the plan's
`why` says so.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from epiconv import _core, _torch_private
from epiconv.arguments import check_word

SETTING: Final = os.environ.get("EPICONV_COMPILE", "benchmark")
"""When kernels are compiled."""

check_word("EPICONV_COMPILE", SETTING, ("benchmark", "always", "never"))

_SETTINGS: Final[dict[str, Callable[[], bool]]] = {
    "benchmark": _torch_private.cudnn_benchmark,
    "always": lambda: True,
    "never": lambda: False,
}

is_wanted: Final = _SETTINGS[SETTING]
"""Whether kernels are to be compiled, by the settings of now."""


def follows_torch() -> bool:
    """Whether `is_wanted` is a setting of torch, which may change from call to call.

    Example:
        >>> follows_torch()
        True
    """
    return SETTING == "benchmark"


def cache_directory() -> str:
    """Where compiled kernels are kept, "" for nowhere.

    Example:
        >>> cache_directory()
        '/home/me/.cache/epiconv'
    """
    directory = os.environ.get("EPICONV_CACHE_DIR")
    if directory is not None:
        return directory
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epiconv")


@lru_cache(maxsize=1)
def prepare() -> None:
    """Tells the core where the compiler is, and where to keep what it makes."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        library = load_nvidia_dynamic_lib("nvrtc").abs_path or ""
    except (ImportError, RuntimeError):
        library = ""  # the core looks where the loader does, and says what it misses
    _core.set_compiler(library, cache_directory())
