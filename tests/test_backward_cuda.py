"""The core's `BackwardPlan` on CUDA, as far as it needs no card: what is compiled, and what is not.

What its kernels compute is tested in test_backward.py, on a card; and on the host, one thread after another,
in tests/cpp/test_backward_tiles.cpp.
"""

import pytest
import torch

from epiconv import _core
from epiconv.core_tensors import operand_layout
from epiconv.program import Program

SHAPE = (2, 6, 5, 7)
PROGRAMS = [
    ("v1 = relu(v0); v2 = add(v1, b0)", [(6, 1, 1)]),
    ("v1 = mul(v0, b0); v2 = gelu(v1); v3 = add(v2, b1)", [(2, 6, 1, 1), SHAPE]),
    ("v1 = mul(v0, b0); v2 = sigmoid(v1); v3 = group_norm(v2, 3, b1, b2)", [(2, 1, 5, 7), (6,), (6,)]),
]


def plan(text, shapes, dtype, compiled_for, channels_last=False):
    """A plan for tensors without memory, all of whose gradients are wanted."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty(SHAPE, dtype=dtype, device="meta").to(memory_format=layout)
    operands = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    name = str(dtype).removeprefix("torch.")
    return _core.BackwardPlan(
        *(Program(text).core, "cuda", compiled_for, SHAPE, name, name, "conv", y.stride(), name, y.stride()),
        *(None, [operand_layout(operand) for operand in operands], (name, y.stride()), None),
        [(name, operand.stride()) for operand in operands],
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("text", "shapes"), PROGRAMS, ids=[text for text, _ in PROGRAMS])
def test_kernels_are_compiled_for_a_card(text, shapes, dtype, channels_last, nvrtc):
    of = "f64" if dtype == torch.float64 else "f32"
    for capability in (80, 90):
        compiled = plan(text, shapes, dtype, capability, channels_last)
        assert (compiled.kernel, compiled.why_not_compiled) == (f"backward_cuda_{of}_compiled", "")
        assert compiled.workspace_bytes > 0
    assert plan(text, shapes, dtype, 0).kernel == f"backward_cuda_{of}_interpreted"


def test_what_cannot_be_compiled_runs_interpreted(nvrtc):
    made = plan(*PROGRAMS[0], torch.float32, 12)  # no card has the capability 1.2 any more
    assert made.kernel == "backward_cuda_f32_interpreted"
    assert made.why_not_compiled.startswith("NVRTC says NVRTC_ERROR_INVALID_OPTION: ")
    assert made.why_not_compiled == made.why_not_compiled.strip("\n\0")


def test_without_kernels():
    if _core.has_cuda:
        pytest.skip("this build has CUDA kernels")
    with pytest.raises(NotImplementedError, match="no CUDA kernels"):
        plan(*PROGRAMS[0], torch.float32, 0)
