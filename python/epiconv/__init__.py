"""Convolution with a fused epilogue for PyTorch on CUDA.

    >>> import torch, epiconv
    >>> from epiconv import ops
    >>> x, weight, bias = torch.randn(8, 64, 56, 56), torch.randn(128, 64, 3, 3), torch.randn(128)
    >>> y = epiconv.fused_conv_epilogue(x, weight, bias, padding=1, epilogue=[ops.relu(), ops.mul(2.0)])

`explain` says how a call runs, `info` what is installed, `trace` makes a program of a torch function,
`fuse` finds the programs in an existing model and `report` tells which.
"""

from epiconv import _core, functional, nn, ops, recipes
from epiconv._core import CudaError
from epiconv.batch_invariance import (
    are_batch_invariant_algorithms_enabled,
    use_batch_invariant_algorithms,
)
from epiconv.functional import fused_conv_epilogue
from epiconv.fusion import fuse, report
from epiconv.info import info
from epiconv.plan import Plan, explain
from epiconv.program import Program
from epiconv.tracing import trace

__version__: str = _core.version

__all__ = [
    "CudaError",
    "Plan",
    "Program",
    "__version__",
    "are_batch_invariant_algorithms_enabled",
    "explain",
    "functional",
    "fuse",
    "fused_conv_epilogue",
    "info",
    "nn",
    "ops",
    "recipes",
    "report",
    "trace",
    "use_batch_invariant_algorithms",
]
