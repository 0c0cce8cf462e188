"""What the tests of the path "implicit_gemm" on a card share: maths, exact values, which kernels are asked
for, and what is expected.
"""

import torch
import torch.nn.functional as F
from exact_convolution import exact_convolution

import epiconv
from epiconv import _library, functional, implicit_gemm
from epiconv.form_cache import FormCache

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


def format_of(layout, rank):
    """torch's name of a layout for so many spatial dimensions; it has none for (N, L, C)."""
    return torch.channels_last_3d if (layout, rank) == ("channels_last", 3) else LAYOUTS[layout]


def in_layout(tensor, layout):
    """A batched tensor of one to three spatial dimensions."""
    if tensor.dim() == 3:
        return tensor.mT.contiguous().mT if layout == "channels_last" else tensor.contiguous()
    return tensor.contiguous(memory_format=format_of(layout, tensor.dim() - 2))


def force(monkeypatch, family):
    """Plans kernels of that family only; nothing that was planned before is taken."""
    monkeypatch.setattr(implicit_gemm, "FAMILY", family)
    monkeypatch.setattr(functional, "_runs", FormCache())
    monkeypatch.setattr(_library, "_calls", FormCache())


def kernel_of(*args, **kwargs):
    """The name of the kernel that a call asking for one runs."""
    plan = epiconv.explain(*args, **kwargs | {"algorithm": "implicit_gemm"})
    assert plan.path == "implicit_gemm"
    return plan.kernel


def fused(*args, family="sm90", **kwargs):
    """The call, after a look at the plan."""
    kwargs["algorithm"] = "implicit_gemm"
    kind = "dgrad" if kwargs.get("transposed") else "fprop"
    assert kernel_of(*args, **kwargs).startswith(f"{kind}_{family}_")
    return epiconv.fused_conv_epilogue(*args, **kwargs)


def portable(*args, **kwargs):
    """`fused`, by the kernels that run on any card."""
    return fused(*args, family="sm80", **kwargs)


def exact(x, weight, bias=None, padding=0, padding_mode="zeros", **words):
    """What `fused_conv_epilogue` computes of these words, in float64 on the tensors' device."""
    rank = weight.dim() - 2
    if padding == "same":
        dilation = words.get("dilation", 1)
        more = [d * (t - 1) for d, t in zip(_each(dilation, rank), weight.shape[2:], strict=True)]
        begin, end = [total // 2 for total in more], [total - total // 2 for total in more]
    else:
        begin = end = padding
    y = exact_convolution(x, weight, begin=begin, end=end, mode=padding_mode, **words)
    return y if bias is None else y + bias.double().view(-1, *(1,) * rank)


def _each(value, rank):
    return (value,) * rank if isinstance(value, int) else value


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
