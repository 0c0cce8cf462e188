"""A stand-in for the implicit-GEMM kernels and the card, so that their Python side is tested on the CPU.

`install` makes CPU tensors count as tensors on a card that has kernels. A plan keeps what it was given,
packs and runs on the addresses it gets, as a kernel would, and notes what it was asked to do.
"""

import ctypes
import itertools
import weakref

import torch
import torch.nn.functional as F

import epiconv
from epiconv import _core, _library, _torch_private, call, functional, packed_weights
from epiconv.convolution import round_to
from epiconv.form_cache import FormCache
from epiconv.program import Program


def memory(address, dtype, shape, strides):
    """The tensor that lies at an address."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    size = count * dtype.itemsize
    flat = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype)
    return flat.as_strided(shape, strides)


class Problem(_core.ConvProblem):
    """The core's, which remembers its arguments."""

    def __init__(self, *given):
        super().__init__(*given)
        names = "input weight bias stride padding_begin padding_end dilation groups transposed output_padding"
        for name, value in zip(names.split(), given, strict=True):
            setattr(self, name, value)


class Layout(_core.OperandLayout):
    """The core's, which remembers its arguments."""

    def __init__(self, dtype, extents, strides, is_number=False):
        super().__init__(dtype, extents, strides, is_number)
        self.dtype, self.extents, self.strides = dtype, extents, strides
        self.is_number = is_number

    def tensor(self, given):
        if self.is_number:
            return torch.tensor(given, dtype=getattr(torch, self.dtype))
        return memory(given, getattr(torch, self.dtype), self.extents, self.strides)


class Stream:
    """Notes what waits for what."""

    def __init__(self, core, handle):
        self.core, self.handle = core, handle

    def record_event(self):
        return f"packed {len(self.core.packs)} on {self.handle}"

    def wait_event(self, event):
        self.core.log.append((self.handle, "waits for", event))

    def wait_stream(self, other):
        self.core.log.append((self.handle, "waits for stream", other.handle))


class Predicted:
    """A time that no model gives."""

    def __init__(self, us):
        self.us = us

    def __str__(self):
        return f"{self.us} us (tensor {self.us}; limited by tensor)"


class Plan:
    """Computes in float32 what the kernel computes."""

    NAMES = (
        *("problem", "math", "input_dtype", "input_strides", "input_alignment", "padding_mode", "program"),
        *("bias", "operands", "output_dtype", "output_strides", "capability", "family", "compile"),
        "is_batch_invariant",
    )

    def __init__(self, core, given):
        self.core = core
        assert given.keys() == set(self.NAMES)
        for name, value in given.items():
            setattr(self, name, value)
        producer = "tma" if self.input_alignment == 16 else "gather"
        problem = self.problem
        self.kernel = f"{'dgrad' if problem.transposed else 'fprop'}_fake_{self.math}_{producer}"
        self.weight_format = f"{self.math}_{producer if core.formats_differ else 'any'}"
        if problem.transposed:
            rests = [p % s for p, s in zip(problem.padding_begin, problem.stride, strict=True)]
            self.weight_format += f"_transposed_{problem.stride}_{rests}"
        self.why_kernel, self.why_slower = "the stand-in takes everything", core.why_slower
        self.predicted = Predicted(12.5)
        self.workspace_bytes = core.workspace_bytes
        self.packed_bytes = 4 * torch.Size(self.problem.weight).numel()
        self.is_empty = 0 in problem.output
        if self.is_empty:
            self.kernel, self.why_kernel, self.why_slower = "none", "the output has no elements", ""
            self.weight_format, self.workspace_bytes, self.packed_bytes = "", 0, 0

    def _rounded(self, tensor):
        return tensor.float() if self.math == "ieee" else round_to(tensor.float(), self.math)

    def pack(self, weight, weight_dtype, weight_strides, packed, device, stream):
        self.core.packs.append((weight, packed, stream))
        self.core.weight_strides = weight_strides
        if self.is_empty:
            return
        shape = self.problem.weight
        given = memory(weight, getattr(torch, weight_dtype), shape, weight_strides)
        contiguous = torch.empty(shape, device="meta").stride()
        memory(packed, torch.float32, shape, contiguous).copy_(self._rounded(given.detach()))

    def _convolution(self, x, weight):
        problem = self.problem
        begin, end, stride = problem.padding_begin, problem.padding_end, problem.stride
        rank, groups = len(stride), problem.groups
        if problem.transposed:  # a convolution over the pixels with zeros between them
            taps, more = weight.shape[2:], problem.output_padding
            reach = [d * (t - 1) for d, t in zip(problem.dilation, taps, strict=True)]
            extents = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
            apart = x.new_zeros(*x.shape[:2], *extents)
            apart[(..., *(slice(None, None, step) for step in stride))] = x
            begin = [r - b for r, b in zip(reach, begin, strict=True)]
            end = [r - e + m for r, e, m in zip(reach, end, more, strict=True)]
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            x, weight, stride = apart, weight.flip(*range(2, 2 + rank)), 1
        pads = [side for sides in zip(reversed(begin), reversed(end), strict=True) for side in sides]
        if any(pads):
            x = F.pad(x, pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        return function(x, weight, stride=stride, dilation=problem.dilation, groups=groups)

    def run(self, input, packed, output, bias, workspace, device, stream, *operands):
        assert input % self.input_alignment == 0
        assert (bias != 0) == (self.bias is not None)
        assert (workspace != 0) == (self.workspace_bytes > 0)
        self.core.runs.append((self, stream, packed))
        if self.is_empty:
            return
        problem = self.problem
        x = self._rounded(memory(input, getattr(torch, self.input_dtype), problem.input, self.input_strides))
        contiguous = torch.empty(problem.weight, device="meta").stride()
        weight = memory(packed, torch.float32, problem.weight, contiguous)
        y = self._convolution(x, weight)
        if bias:
            y = y + self.bias.tensor(bias).float().view(-1, *(1,) * len(problem.stride))
        given = [layout.tensor(value) for layout, value in zip(self.operands, operands, strict=True)]
        dtype = getattr(torch, self.output_dtype)
        target = memory(output, dtype, problem.output, self.output_strides)
        target.copy_(Program(self.program.text).apply(y, given, dtype))


class Core:
    """What was asked for, and how to answer.

    Attributes:
        plans, packs, runs: made, done.
        weight_strides: as they were given to the last pack.
        log: what streams waited for, and what was recorded on them.
        refuse: from a plan the reason why it cannot run, or "".
        why_slower: what its plans say.
        capability: of the card.
        workspace_bytes: of its plans.
        predicted_us: of ways, by name, or why they do not take it.
        formats_differ: whether the weight's format depends on the input's alignment.
        stream: address of the current stream.
        capturing: whether a CUDA graph is being captured.
    """

    def __init__(self):
        self.plans, self.packs, self.runs, self.log = [], [], [], []
        self.weight_strides = ()
        self.refuse = lambda plan: ""
        self.why_slower = ""
        self.capability = (9, 0)
        self.formats_differ = False
        self.workspace_bytes = 0
        self.predicted_us = {}
        self.stream = 1
        self.capturing = False

    def make_conv_plan(self, *given, **named):
        positional = dict(zip(Plan.NAMES[: len(given)], given, strict=True))
        plan = Plan(
            self, {"family": "any", "compile": "never", "is_batch_invariant": False} | positional | named
        )
        self.plans.append(plan)
        return self.refuse(plan) or plan

    def predict_conv_ways(self, *given):
        return {way: us if isinstance(us, str) else Predicted(us) for way, us in self.predicted_us.items()}


def install(monkeypatch):
    """Puts the stand-in where the core and the card are asked; returns its `Core`."""
    core = Core()
    streams = {}

    def current_stream(device=None):
        return streams.setdefault(core.stream, Stream(core, core.stream))

    def record_stream(tensor, stream):
        core.log.append((stream.handle, "uses", tensor.data_ptr()))

    patch = monkeypatch.setattr
    patch(_core, "make_conv_plan", core.make_conv_plan, raising=False)
    patch(_core, "predict_conv_ways", core.predict_conv_ways, raising=False)
    patch(_core, "ConvProblem", Problem)
    patch(_core, "OperandLayout", Layout)
    patch(call, "why_not_on", lambda device: "")
    patch(torch.cuda, "get_device_capability", lambda device: core.capability)
    patch(_torch_private, "current_cuda_device", lambda: None)
    patch(_torch_private, "raw_stream", lambda index: core.stream)
    patch(packed_weights, "capturing", lambda: core.capturing)
    patch(packed_weights, "current_stream", current_stream)
    patch(packed_weights, "_packings", weakref.WeakValueDictionary())
    patch(torch.Tensor, "record_stream", record_stream, raising=False)
    patch(functional, "_runs", FormCache())
    patch(_library, "_calls", FormCache())
    return core


def ran(core, *args, **kwargs):
    """The result of a call, which the kernel computed, as was explained."""
    plan = epiconv.explain(*args, **kwargs)
    assert plan.path == "implicit_gemm"
    before = len(core.runs)
    result = epiconv.fused_conv_epilogue(*args, **kwargs)
    assert len(core.runs) == before + 1
    assert core.runs[-1][0].kernel == plan.kernel
    assert (plan.shape, plan.dtype, plan.strides) == (result.shape, result.dtype, result.stride())
    return result


def at_offset(tensor, offset_bytes):
    """The same values and strides, at an address that is `offset_bytes` behind a multiple of 16."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    step, remainder = divmod(offset_bytes, tensor.element_size())
    assert remainder == 0
    buffer = torch.zeros(span + step + 16, dtype=tensor.dtype, device=tensor.device)
    first = next(i for i in itertools.count() if (buffer.data_ptr() + i * buffer.element_size()) % 16 == 0)
    moved = buffer.as_strided(tensor.shape, tensor.stride(), first + step)
    return moved.copy_(tensor)
