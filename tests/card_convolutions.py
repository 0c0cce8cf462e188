"""What the tests of the path "implicit_gemm" on a card share: maths, exact values and what is expected."""

import torch
import torch.nn.functional as F

import epiconv

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# dtype of the tensors, precision: all maths, from every dtype that has them.
MATHS = {
    "tf32": (torch.float32, "tf32"),
    "fp32 as bf16": (torch.float32, "bf16"),
    "fp32 as fp16": (torch.float32, "fp16"),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
}
MODES = ("zeros", "reflect", "replicate", "circular")

# Taps, stride and padding of convolutions.
GRADIENTS = [
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1)),
    ((1, 1), (2, 2), (0, 0)),
    ((4, 4), (2, 2), (1, 1)),
    ((7, 7), (2, 2), (3, 3)),
    ((5, 2), (3, 1), (2, 0)),
    ((2, 3), (3, 3), (0, 1)),
    ((1, 3), (1, 2), (0, 2)),
    ((3,), (1,), (2,)),
    ((3,), (2,), (1,)),
    ((8,), (3,), (2,)),
]


def integers(*shape, device="cpu", dtype=torch.float32, most=2):
    """Small enough that every sum of products is exact in float32."""
    return torch.randint(-most, most + 1, shape, device=device).to(dtype)


def in_layout(tensor, layout):
    """A batched tensor of one or two spatial dimensions; torch has no name for the layout (N, L, C)."""
    if tensor.dim() == 3:
        return tensor.mT.contiguous().mT if layout == "channels_last" else tensor.contiguous()
    return tensor.contiguous(memory_format=LAYOUTS[layout])


def fused(*args, **kwargs):
    """The call, after a look at the plan."""
    kwargs["algorithm"] = "implicit_gemm"
    plan = epiconv.explain(*args, **kwargs)
    assert plan.path == "implicit_gemm"
    assert plan.kernel.startswith("dgrad_sm90_" if kwargs.get("transposed") else "fprop_sm90_")
    return epiconv.fused_conv_epilogue(*args, **kwargs)


def convolution(x, weight, bias=None, padding=0, dilation=1, mode="zeros"):
    """In float64, on the tensors' device."""
    x, weight, rank = x.double(), weight.double(), weight.dim() - 2
    if padding:
        x = F.pad(x, [padding] * (2 * rank), mode="constant" if mode == "zeros" else mode)
    function = F.conv1d if rank == 1 else F.conv2d
    return function(x, weight, None if bias is None else bias.double(), dilation=dilation)


def transposed_convolution(x, weight, bias=None, **words):
    """In float64, on the CPU: torch multiplies no zeros there but those that are given."""
    x, weight, bias = (None if tensor is None else tensor.double().cpu() for tensor in (x, weight, bias))
    return (F.conv_transpose1d if weight.dim() == 3 else F.conv_transpose2d)(x, weight, bias, **words)


def input_gradient(taps, stride, padding):
    """Inputs' gradients by autograd, for extents that the stride divides and for others.

    Yields:
        The gradient of the output, the weight, the words of the transposed convolution of those, and the
        float64 gradient of the input; all on the CPU.
    """
    convolve = F.conv1d if len(taps) == 1 else F.conv2d
    for extents in ((12, 18), (13, 17), (14, 19)):
        extents = extents[: len(taps)]
        x, weight = integers(2, 8, *extents).double().requires_grad_(), integers(24, 8, *taps)
        y = convolve(x, weight.double(), stride=stride, padding=padding)
        grad = integers(*y.shape)
        (expected,) = torch.autograd.grad(y, x, grad.double())
        sides = zip(extents, padding, taps, stride, strict=True)
        rest = tuple((n + 2 * before - t) % step for n, before, t, step in sides)
        words = {"transposed": True, "stride": stride, "padding": padding, "output_padding": rest}
        yield grad, weight, words, expected


def exactly(got, expected):
    """Equal to a float64 result that is rounded once."""
    assert got.shape == expected.shape
    assert torch.equal(got, expected.to(got))
