"""Problems of the benchmark as the core's planner takes them, without memory."""

import torch

from epiconv import _core
from epiconv.core_tensors import operand_layout


def in_layout(shape, dtype, layout):
    """Without memory. Of one spatial dimension pixels lie side by side."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "nchw" or tensor.dim() == 3:
        return tensor
    return tensor.contiguous(
        memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    )


def per_dimension(words, name, rank):
    return (words.get(name, 1 if name in ("stride", "dilation") else 0),) * rank


def core_arguments(problem, dtype_word="bf16", layout="channels_last", *, math=None, capability=(9, 0)):
    """What the core plans for tensors of such a form, that begin at a multiple of 16 bytes."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype_word]
    rank, words = len(problem.input) - 2, problem.conv_arguments
    conv = _core.ConvProblem(
        *(problem.input, problem.weight, (problem.out_channels,) if problem.conv_bias else None),
        *(per_dimension(words, name, rank) for name in ("stride", "padding", "padding", "dilation")),
        *(problem.groups, problem.transposed, per_dimension(words, "output_padding", rank)),
    )
    bias = operand_layout(torch.empty(problem.out_channels, dtype=dtype, device="meta"))
    name = str(dtype).removeprefix("torch.")
    return (
        *(conv, math or {"fp32": "tf32"}.get(dtype_word, dtype_word), name),
        *(in_layout(problem.input, dtype, layout).stride(), 16, "zeros", problem.program.core),
        bias if problem.conv_bias else None,
        [
            operand_layout(
                in_layout(shape, dtype, layout)
                if len(shape) == rank + 2
                else torch.empty(shape, dtype=dtype, device="meta")
            )
            for shape in problem.operand_shapes
        ],
        *(name, in_layout(conv.output, dtype, layout).stride(), capability),
    )
