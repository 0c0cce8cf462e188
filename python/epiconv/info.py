"""What is installed: `epiconv.info()`."""

import platform
from dataclasses import dataclass
from typing import Any

import torch

from epiconv import _core
from epiconv.fallback import why_not_fused


@dataclass(frozen=True)
class Info:
    """What is installed, as `info` found it; prints as a table.

    Attributes:
        version: of epiconv.
        toolkit: CUDA version that the kernels were built with, "" for a build without CUDA.
        architectures: that the build holds code for, "sm_80, sm_90a, compute_90"; "" likewise.
        driver: newest CUDA version that the installed driver supports; "" without a driver, and in a
            build without CUDA, which cannot ask it.
        torch_version: of torch.
        torch_cuda: CUDA version that torch was built with, "" for a torch without CUDA.
        cudnn: version of torch's cuDNN, "" without.
        python_version: of Python.
        cards: the CUDA devices that torch sees, each with its compute capability.
        why_not_on_cards: for each of them why epiconv's kernels cannot run there, "" if they can.
    """

    version: str
    toolkit: str
    architectures: str
    driver: str
    torch_version: str
    torch_cuda: str
    cudnn: str
    python_version: str
    cards: tuple[str, ...]
    why_not_on_cards: tuple[str, ...]

    @property
    def cpu_only(self) -> bool:
        """Whether this build has no CUDA kernels."""
        return not self.toolkit

    def __str__(self) -> str:
        if self.cpu_only:
            build = "for the CPU only: install the CUDA toolkit, put nvcc on PATH and reinstall epiconv"
        else:
            build = f"CUDA {self.toolkit} for {self.architectures}"
        lines = [f"epiconv {self.version}", f"  built   {build}"]
        if not self.cpu_only:
            lines.append(f"  driver  {f'CUDA {self.driver}' if self.driver else 'none'}")
        torch_cuda = f"CUDA {self.torch_cuda}" if self.torch_cuda else "without CUDA"
        cudnn = f", cuDNN {self.cudnn}" if self.cudnn else ""
        lines.append(f"  torch   {self.torch_version}, {torch_cuda}{cudnn}, Python {self.python_version}")
        for card, reason in zip(self.cards, self.why_not_on_cards, strict=True):
            lines.append(f"  card    {card}" + (f": plain torch operations, {reason}" if reason else ""))
        if not self.cards:
            lines.append("  card    none")
        return "\n".join(lines)


def info() -> Info:
    """What is installed: epiconv, CUDA, driver, torch, cards.

    Example:
        >>> print(epiconv.info())
    """
    cards, reasons = [], []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        cards.append(f"{properties.name} ({properties.major}.{properties.minor})")
        reasons.append(why_not_fused(torch.device("cuda", index)))
    backend: Any = torch.backends.cudnn
    cudnn = backend.version() if backend.is_available() else None
    return Info(
        version=_core.version,
        toolkit=_core.cuda_toolkit,
        architectures=_core.cuda_architectures,
        driver=_core.driver_version(),
        torch_version=str(torch.__version__),
        torch_cuda=torch.version.cuda or "",
        cudnn="" if cudnn is None else str(cudnn),
        python_version=platform.python_version(),
        cards=tuple(cards),
        why_not_on_cards=tuple(reasons),
    )
