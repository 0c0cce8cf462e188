"""`epiconv.trace`: what functions become, that they mean the same, and what is refused with which words."""

import functools
import operator
import pickle

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from epiconv import ops
from epiconv.program import BoundProgram, PartialProgram, Program, bind_epilogue
from epiconv.tracing import trace

B = torch.tensor([0.5, -1.5, 2.0]).view(3, 1, 1)
VECTOR = torch.tensor([0.25, -0.5, 1.5])
Y = torch.linspace(-4, 4, 2 * 3 * 5 * 5).view(2, 3, 5, 5)


def plus_equals(y, b):
    y += b
    y *= 2.0
    y -= 1
    y /= 4
    y **= 2
    return y


def alias(y, b):
    z = y
    z.add_(b)
    return z * y


def copy(y, b):
    z = y.clone()
    z.add_(b)
    return z * y


def where_method(y, b):
    return y.where(y > b, -y)


def keyword_only_with_default(y, b, *, scale=2.0):
    return y * scale + b


# (function, its program); the operands of all of them can be B.
FUNCTIONS = [
    (lambda y, b: torch.clamp(y, max=0.5).add(b).mul(2.0),
     "v1 = clamp(v0, max=0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)"),
    (lambda y, b: y.clamp(min=b, max=y), "v1 = clamp(v0, min=b0, max=v0)"),
    (lambda y: y.clamp(-1, 1), "v1 = clamp(v0, min=-1, max=1)"),
    (lambda y: torch.clip(y, 0, 1), "v1 = clamp(v0, min=0, max=1)"),
    (lambda y: y.clamp_min(0).clamp_max_(3), "v1 = clamp(v0, min=0); v2 = clamp_(v1, max=3)"),
    (lambda y, b: torch.clamp_min(y, min=b), "v1 = clamp(v0, min=b0)"),
    # Operators, and what numbers on their left mean in torch.
    (lambda y, b: (y + b - 2) * b / 3,
     "v1 = add(v0, b0); v2 = sub(v1, 2); v3 = mul(v2, b0); v4 = div(v3, 3)"),
    (lambda y, b: -abs(y) ** 2 + (+y) * b,
     "v1 = abs(v0); v2 = pow(v1, 2); v3 = neg(v2); v4 = mul(v0, b0); v5 = add(v3, v4)"),
    (lambda y: 2.0 - y, "v1 = sub(2.0, v0)"),
    (lambda y: 1 / y, "v1 = div(1.0, v0)"),
    (lambda y: 2.0 / y, "v1 = div(1.0, v0); v2 = mul(v1, 2.0)"),
    (lambda y: 3 * y + True, "v1 = mul(3, v0); v2 = add(v1, True)"),
    (lambda y, b: b - y, "v1 = sub(b0, v0)"),
    (lambda y, b: b / y, "v1 = div(b0, v0)"),
    (lambda y: torch.where(2 < y, y, 0),  # noqa: SIM300
     "v1 = gt(v0, 2); v2 = where(v1, v0, 0)"),
    (lambda y, b: (y >= b) * y, "v1 = ge(v0, b0); v2 = mul(v1, v0)"),
    (lambda y, b: torch.where(y == b, 1.0, (y != b).float()),
     "v1 = eq(v0, b0); v2 = ne(v0, b0); v3 = cast(v2, dtype=float32); v4 = where(v1, 1.0, v3)"),
    (lambda y, b: torch.where((b <= y), y, b).lt(0.5).half().float(),
     "v1 = le(b0, v0); v2 = where(v1, v0, b0); v3 = lt(v2, 0.5); v4 = cast(v3, dtype=float16); "
     "v5 = cast(v4, dtype=float32)"),
    (where_method, "v1 = gt(v0, b0); v2 = neg(v0); v3 = where(v1, v0, v2)"),
    (lambda y: y * float("-inf") + float("nan"), "v1 = mul(v0, -inf); v2 = add(v1, nan)"),
    (lambda y: y * numpy.float32(0.5) + numpy.int64(2), "v1 = mul(v0, 0.5); v2 = add(v1, 2)"),
    (lambda y: numpy.float64(0.5) * y, "v1 = mul(0.5, v0)"),
    # Names that torch has besides the table's.
    (lambda y, b: torch.multiply(y, b).subtract(1).true_divide(2).negative().absolute(),
     "v1 = mul(v0, b0); v2 = sub(v1, 1); v3 = div(v2, 2); v4 = neg(v3); v5 = abs(v4)"),
    (lambda y: torch.special.expit(y).reciprocal(), "v1 = sigmoid(v0); v2 = div(1.0, v1)"),
    (lambda y, b: torch.rsub(y, b, alpha=2), "v1 = sub(b0, v0, alpha=2)"),
    (lambda y, b: torch.add(y, b, alpha=0.5).sub(b, alpha=2),
     "v1 = add(v0, b0, alpha=0.5); v2 = sub(v1, b0, alpha=2)"),
    (lambda y, b: torch.min(y, b).max(y), "v1 = minimum(v0, b0); v2 = maximum(v1, v0)"),
    (lambda y, b: torch.max(y, other=b), "v1 = maximum(v0, b0)"),
    (lambda y, b: torch.greater_equal(y, b).float() + y.greater(b) + y.less(b),
     "v1 = ge(v0, b0); v2 = cast(v1, dtype=float32); v3 = gt(v0, b0); v4 = add(v2, v3); v5 = lt(v0, b0); "
     "v6 = add(v4, v5)"),
    # torch.nn.functional, with its arguments by position and by name.
    (lambda y: F.leaky_relu(F.elu(y, 0.5), negative_slope=0.2),
     "v1 = elu(v0, alpha=0.5); v2 = leaky_relu(v1, negative_slope=0.2)"),
    (lambda y: F.hardtanh(y, -2, 2.0, True), "v1 = hardtanh_(v0, min_val=-2, max_val=2.0)"),
    (lambda y: F.gelu(F.silu(y, inplace=True), approximate="tanh"),
     "v1 = silu_(v0); v2 = gelu(v1, approximate=tanh)"),
    (lambda y: F.softplus(F.logsigmoid(y), 2.0, 3),
     "v1 = logsigmoid(v0); v2 = softplus(v1, beta=2.0, threshold=3)"),
    (lambda y: F.threshold(y, 0.5, -1, inplace=True), "v1 = threshold_(v0, 0.5, -1)"),
    (lambda y: F.threshold_(F.elu_(F.relu_(y)), 1, 2),
     "v1 = relu_(v0); v2 = elu_(v1); v3 = threshold_(v2, 1, 2)"),
    (lambda y: F.sigmoid(F.tanh(y)), "v1 = tanh(v0); v2 = sigmoid(v1)"),
    (lambda y: F.group_norm(y, 3, eps=1e-3), "v1 = group_norm(v0, 3, eps=0.001)"),
    # In place.
    (plus_equals,
     "v1 = add_(v0, b0); v2 = mul_(v1, 2.0); v3 = sub_(v2, 1); v4 = div_(v3, 4); v5 = pow_(v4, 2)"),
    (alias, "v1 = add_(v0, b0); v2 = mul(v1, v1)"),
    (copy, "v1 = add_(v0, b0); v2 = mul(v1, v0)"),
    (lambda y, b: y.relu_().add_(b, alpha=2).clamp_(max=1),
     "v1 = relu_(v0); v2 = add_(v1, b0, alpha=2); v3 = clamp_(v2, max=1)"),
    (lambda y, b: y.float().add_(b), "v1 = cast(v0, dtype=float32); v2 = add_(v1, b0)"),
    # Casts.
    (lambda y: y.to(torch.float16).to(dtype=torch.float32),
     "v1 = cast(v0, dtype=float16); v2 = cast(v1, dtype=float32)"),
    (lambda y: y.bfloat16().double().type(torch.float32),
     "v1 = cast(v0, dtype=bfloat16); v2 = cast(v1, dtype=float64); v3 = cast(v2, dtype=float32)"),
    # What changes no value vanishes; what the result does not need, too.
    (lambda y: F.dropout(y.contiguous().clone(), training=False), ""),
    (lambda y: torch.dropout(y, 0.5, False), ""),
    (lambda y: (y.exp(), y.relu())[1], "v1 = relu(v0)"),
    (lambda y: y, ""),
    (keyword_only_with_default, "v1 = mul(v0, 2.0); v2 = add(v1, b0)"),
    (lambda y, b, slope=0.5: F.leaky_relu(y, slope) + b,
     "v1 = leaky_relu(v0, negative_slope=0.5); v2 = add(v1, b0)"),
    # Builtins, partials and bound methods.
    (torch.relu, "v1 = relu(v0)"),
    (torch.mul, "v1 = mul(v0, b0)"),
    (operator.neg, "v1 = neg(v0)"),
    (operator.sub, "v1 = sub(v0, b0)"),
    (F.hardswish, "v1 = hardswish(v0)"),
    (F.hardtanh, "v1 = hardtanh(v0)"),
    (functools.partial(torch.clamp, max=0.5), "v1 = clamp(v0, max=0.5)"),
    (functools.partial(torch.add, alpha=2), "v1 = add(v0, b0, alpha=2)"),
    (functools.partial(torch.sub, 2.0), "v1 = sub(2.0, v0)"),
    (functools.partial(F.gelu, approximate="tanh"), "v1 = gelu(v0, approximate=tanh)"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "text"), FUNCTIONS)
def test_function(function, text):
    program = trace(function)
    assert isinstance(program, Program)
    assert program.text == text
    operands = [B.clone() for _ in range(program.num_operands)]
    expected = function(Y.clone(), *operands)
    result = program.apply(Y, operands)
    assert result.dtype == expected.dtype or expected.dtype == torch.bool
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


MODULES = [
    (nn.ReLU(inplace=True), "v1 = relu_(v0)"),
    (nn.ReLU6(), "v1 = hardtanh(v0, min_val=0.0, max_val=6.0)"),
    (nn.LeakyReLU(0.2), "v1 = leaky_relu(v0, negative_slope=0.2)"),
    (nn.PReLU(3), "v1 = prelu(v0, b0)"),
    (nn.PReLU(), "v1 = prelu(v0, b0)"),
    (nn.ELU(0.5), "v1 = elu(v0, alpha=0.5)"),
    (nn.SELU(), "v1 = selu(v0)"),
    (nn.CELU(0.5, inplace=True), "v1 = celu_(v0, alpha=0.5)"),
    (nn.GELU("tanh"), "v1 = gelu(v0, approximate=tanh)"),
    (nn.SiLU(), "v1 = silu(v0)"),
    (nn.Mish(), "v1 = mish(v0)"),
    (nn.Sigmoid(), "v1 = sigmoid(v0)"),
    (nn.LogSigmoid(), "v1 = logsigmoid(v0)"),
    (nn.Tanh(), "v1 = tanh(v0)"),
    (nn.Softplus(2.0, 3.0), "v1 = softplus(v0, beta=2.0, threshold=3.0)"),
    (nn.Softsign(), "v1 = softsign(v0)"),
    (nn.Hardtanh(-2, 2), "v1 = hardtanh(v0, min_val=-2, max_val=2)"),
    (nn.Hardswish(), "v1 = hardswish(v0)"),
    (nn.Hardsigmoid(), "v1 = hardsigmoid(v0)"),
    (nn.Hardshrink(0.25), "v1 = hardshrink(v0, lambd=0.25)"),
    (nn.Softshrink(0.25), "v1 = softshrink(v0, lambd=0.25)"),
    (nn.Threshold(0.5, -1.0), "v1 = threshold(v0, 0.5, -1.0)"),
    (nn.GroupNorm(3, 3), "v1 = group_norm(v0, 3, weight=b0, bias=b1)"),
    (nn.GroupNorm(1, 3, eps=1e-3, affine=False), "v1 = group_norm(v0, 1, eps=0.001)"),
    (nn.Identity(), ""),
    (nn.Dropout(0.5).eval(), ""),
    (nn.Dropout2d(0.5).eval(), ""),
    (nn.AlphaDropout(0.5).eval(), ""),
    (nn.Dropout(0.0), ""),
    (nn.Sequential(nn.GELU(), nn.Dropout().eval(), nn.PReLU(3), nn.Identity(), nn.GroupNorm(3, 3)),
     "v1 = gelu(v0); v2 = prelu(v1, b0); v3 = group_norm(v2, 3, weight=b1, bias=b2)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "text"), MODULES, ids=[repr(module).split("\n")[0] for module, _ in MODULES]
)
def test_module(module, text):
    for index, parameter in enumerate(module.parameters()):
        parameter.data = VECTOR[: len(parameter)] + index
    program = trace(module)
    parameters = list(module.parameters())
    if parameters:
        assert isinstance(program, BoundProgram)
        assert list(map(id, program.operands)) == list(map(id, parameters))
        assert program() is program
    else:
        assert isinstance(program, Program)
    bound, operands = bind_epilogue(program)
    assert bound.text == text
    torch.testing.assert_close(bound.apply(Y, operands), module(Y.clone()), rtol=1e-5, atol=1e-6)


class Tail(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(VECTOR.clone())
        self.register_buffer("shift", B.clone())

    def forward(self, y, residual):
        return torch.relu(y * self.scale.view(-1, 1, 1) + self.shift) + residual

    def without(self, y):
        return y * self.shift + self.shift


def test_captured_tensors_and_operands():
    tail = Tail()
    program = trace(tail)
    assert isinstance(program, PartialProgram)
    assert program.program.text == "v1 = mul(v0, b1); v2 = add(v1, b2); v3 = relu(v2); v4 = add(v3, b0)"
    assert program.num_operands == 1
    assert program.captured[1] is tail.shift
    residual = torch.ones_like(Y)
    bound = program(residual)
    assert bound.operands[0] is residual
    torch.testing.assert_close(bound.program.apply(Y, bound.operands), tail(Y, residual))
    with torch.no_grad():  # by reference, views of parameters too
        tail.scale.mul_(3.0)
        tail.shift.add_(1.0)
    torch.testing.assert_close(bound.program.apply(Y, bound.operands), tail(Y, residual))
    bound.program.apply(Y, bound.operands).sum().backward()
    bound.program.apply(Y, bound.operands).sum().backward()
    assert tail.scale.grad is not None and tail.scale.grad.abs().sum() > 0


def test_a_bound_method_and_one_operand_for_a_tensor_captured_twice():
    tail = Tail()
    program = trace(tail.without)
    assert isinstance(program, BoundProgram)
    assert program.program.text == "v1 = mul(v0, b0); v2 = add(v1, b0)"
    assert len(program.operands) == 1 and program.operands[0] is tail.shift


def test_the_order_of_operands_is_that_of_the_parameters():
    captured = torch.tensor(3.0)
    program = trace(lambda y, first, second: captured * y / second - first)
    assert program.program.text == "v1 = mul(b2, v0); v2 = div(v1, b1); v3 = sub(v2, b0)"
    assert program.captured[0] is captured


def test_captured_tensors_that_the_result_does_not_need_are_no_operands():
    program = trace(lambda y: (y * B, y + VECTOR)[1])
    assert program.program.text == "v1 = add(v0, b0)"
    assert program.operands[0] is VECTOR


def test_constants_made_by_the_function_are_captured():
    program = trace(lambda y: torch.min(y, torch.tensor(0.5) * 2))
    assert program.program.text == "v1 = minimum(v0, b0)"
    assert program.operands[0].item() == 1.0


def test_default_parameters_may_be_tensors():
    program = trace(lambda y, b=B: y * b)
    assert program.operands[0] is B


def test_structure_alone_decides_equality():
    def scaled(by):
        return trace(lambda y: y * by)

    first, second = scaled(torch.ones(1)), scaled(torch.zeros(1))
    assert first == second and hash(first) == hash(second)
    assert first != trace(lambda y: y * 2.0)
    first, second = (trace(lambda y, b, by=by: y * by + b) for by in (torch.ones(1), torch.zeros(1)))
    assert first == second and hash(first) == hash(second)
    again = pickle.loads(pickle.dumps(first))
    assert again == first and torch.equal(again.captured[0], torch.ones(1))
    program = trace(lambda y: y * 2)
    assert pickle.loads(pickle.dumps(program)) == program
    assert program == Program("v1 = mul(v0, 2)")


def test_the_function_is_called_once():
    calls = []
    trace(lambda y: (calls.append(1), y)[1])
    assert calls == [1]


def test_a_statement_of_a_refusal_is_in_the_traceback():
    def function(y):
        return torch.sin(y)  # here

    with pytest.raises(TypeError) as refusal:
        trace(function)
    assert any("# here" in str(entry.statement) for entry in refusal.traceback)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def branch(y):
    return y if y > 0 else -y


def too_many_values(y):
    a, b, c, d = y.exp(), y.tanh(), y.abs(), -y
    return (a + b) * (c + d) * y


def maybe_alias(y, b):
    z = y.to(torch.float16)
    z.add_(b)
    return z * y


def long(y):
    for _ in range(49):
        y = y.exp()
    return y


REFUSALS = [
    # Unknown operations, by name, with close ones.
    (torch.sin, ["torch.sin is not an operation of an epilogue", "there are add, sub,", "apply it outside"]),
    (lambda y: y.softmin_(1), ["Tensor.softmin_"]),
    (lambda y: y.clampp(1), ["Tensor.clampp is not an operation", "did you mean clamp?"]),
    (lambda y: y // 2, ["operator.floordiv is not an operation"]),
    (lambda y: 2**y, ["operator.pow takes input as a tensor", "not 2"]),
    (lambda y: (y > 0) & (y < 1), ["operator.and_ is not an operation"]),
    (nn.Tanhshrink(), ["in Tanhshrink, torch.nn.functional.tanhshrink", "did you mean softshrink"]),
    (lambda y: y.masked_fill(y > 0, 0), ["Tensor.masked_fill", "torch.where(mask, value, y)"]),
    (lambda y: y.detach(), ["Tensor.detach cuts the gradient"]),
    (lambda y: y.to("cuda"), ["Tensor.to with anything but a dtype"]),
    (lambda y, b: y.to(b), ["Tensor.to with anything but a dtype"]),
    (lambda y: y.to(torch.float16, memory_format=torch.channels_last), ["memory_format="]),
    (lambda y: y.to(torch.int32), ["dtype is a floating torch dtype", "torch.int32"]),
    (lambda y: y.reciprocal_(), ["Tensor.reciprocal_", "y = 1 / y"]),
    (lambda y: torch.div(y, 2, rounding_mode="floor"), ["torch.div with rounding_mode="]),
    (lambda y: torch.add(y, 1, out=y), ["torch.add writes to out="]),
    (lambda y: y.contiguous(memory_format=torch.channels_last), ["give the convolution memory_format="]),
    # What is not random, and not over the batch, in eval mode only.
    (nn.Dropout(), ["in Dropout, torch.nn.functional.dropout in training mode is random", "call eval()"]),
    (nn.AlphaDropout(), ["torch.nn.functional.alpha_dropout in training mode is random"]),
    (lambda y: torch.dropout(y, 0.5, True), ["torch.dropout in training mode"]),
    (nn.BatchNorm2d(3), ["BatchNorm2d in training mode depends on the whole batch", "outside"]),
    (nn.BatchNorm2d(3).eval(), ["BatchNorm2d: fold it into the convolution", "fuse_conv_bn_eval"]),
    (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), ["BatchNorm1d in training mode"]),
    (lambda y: F.batch_norm(y, VECTOR, VECTOR), ["batch_norm is a normalisation over the batch"]),
    (nn.InstanceNorm2d(3), ["InstanceNorm2d", "torch.nn.GroupNorm(3, 3)"]),
    (nn.RReLU(), ["torch.nn.functional.rrelu is random in training mode"]),
    # Values are not known while tracing.
    (branch, ["a condition depends on the values", "torch.where"]),
    (lambda y: y.item(), ["Tensor.item reads a number"]),
    (lambda y: float(y), ["torch operations only"]),
    (lambda y: list(y), ["loops over a tensor"]),
    (lambda y: y if y.is_cuda else -y, ["Tensor.is_cuda asks for a property"]),
    # Shapes neither, nor may they change.
    (lambda y: y.view(y.shape[0], -1), ["Tensor.shape asks for a property", "does not depend on shapes"]),
    (lambda y: y.reshape(-1), ["Tensor.reshape looks across values or changes the shape", "outside"]),
    (lambda y: y * y.size(0), ["Tensor.size asks for a property"]),
    (lambda y: y.to(y.dtype), ["Tensor.dtype asks for a property"]),
    (lambda y: y.mean((2, 3), keepdim=True), ["Tensor.mean looks across values"]),
    (lambda y: torch.cat([y, y]), ["torch.cat looks across values or changes the shape"]),
    (lambda y: y[:, 0], ["operator.getitem looks across values or changes the shape"]),
    (lambda y: y @ y, ["operator.matmul looks across values"]),
    (lambda y: y.max(0), ["Tensor.max of one tensor looks for the extreme", "torch.clamp"]),
    (nn.LayerNorm(5), ["in LayerNorm, torch.nn.functional.layer_norm looks across"]),
    (nn.Conv2d(3, 3, 1), ["in Conv2d", "looks across values"]),
    # Results.
    (lambda y: (y, y + 1), ["returns 2 results in a tuple", "one result"]),
    (lambda y: {"a": y}, ["returns 1 results in a dict"]),
    (lambda y: None, ["returns None, not a tensor"]),
    (lambda y: 3.0, ["returns 3.0, not a tensor"]),
    (lambda y: B, ["not computed from its first argument"]),
    (lambda y, b: b * 2, ["not computed from the first argument"]),
    (lambda y, b: b, ["not computed from the first argument"]),
    (lambda y, b, c: y + b, ["does not depend on the parameter c"]),
    # Parameters.
    (lambda: 1, ["no parameter for the convolution's output"]),
    (lambda y, *bs: y, ["*bs leaves open how many operands"]),
    (lambda y, *, b: y + b, ["b is keyword-only", "functools.partial"]),
    # Arguments that are constants in a program.
    (lambda y, b: y**b, ["operator.pow takes exponent as a constant, not as a tensor"]),
    (lambda y, b: F.leaky_relu(y, b), ["takes negative_slope as a constant"]),
    (lambda y: F.prelu(y, y), ["takes as weight a tensor of shape (K,)"]),
    (lambda y: F.gelu(y, approximate="exact"), ["approximate is one of none, tanh", "'exact'"]),
    (lambda y: y.add(), ["Tensor.add lacks its argument other"]),
    (lambda y: y.relu(1, 2), ["Tensor.relu takes at most 1 arguments"]),
    (lambda y: y + numpy.ones(3), ["numpy.ndarray"]),
    # In place, on what is not the output's; or perhaps.
    (lambda y, b: y * b.add_(1), ["Tensor.add_ would change an operand or a captured tensor"]),
    (lambda y: operator.iadd(B, y), ["Tensor.add_ would change an operand or a captured tensor"]),
    (lambda y, b: (b * 2).add_(1) * y, ["in place that is not computed from the convolution's output"]),
    (maybe_alias, ["operator.mul reads a tensor which Tensor.add_ may have changed in place"]),
    # Tensors computed while tracing would be stale later.
    (lambda y: y * (B * 2), ["torch.Tensor.mul computes a tensor from captured tensors alone", "parameter"]),
    (lambda y: y * B.exp().view(3, 1, 1), ["torch.Tensor.exp computes a tensor from captured"]),
    (lambda y: F.prelu(y, VECTOR) + VECTOR.exp(), ["torch.Tensor.exp computes"]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "words"), REFUSALS, ids=[words[0] for _, words in REFUSALS])
def test_refusal(function, words):
    with pytest.raises(TypeError) as refusal:
        trace(function)
    message = str(refusal.value)
    assert message.startswith("cannot trace ")
    for word in words:
        assert word in message


def test_refusals_leave_captured_tensors_alone():
    tensor = torch.ones(3)
    for function in (lambda y: operator.iadd(tensor, y), lambda y: y * tensor.mul_(y)):
        with pytest.raises(TypeError):
            trace(function)
    assert torch.equal(tensor, torch.ones(3))
    module = nn.BatchNorm2d(3)
    with pytest.raises(TypeError):
        trace(module)
    assert module.num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (too_many_values, ["cannot trace too_many_values", "too many live values", "at most 4"]),
        (long, ["cannot trace long", "49 operations", "at most 48"]),
        (lambda y: y.clamp(), ["clamp needs min, max or both"]),
        (lambda y: F.prelu(y, VECTOR) + VECTOR, ["b0", "b.view(-1, 1, 1)"]),
    ],
)
def test_the_cores_refusals_pass_through(function, words):
    with pytest.raises(ValueError) as refusal:
        trace(function)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (3, "takes a function of torch operations, not 3"),
        (nn.ReLU, "ReLU is a class: give trace an instance"),
        ([ops.relu()], "need no trace"),
        (ops.relu(), "need no trace"),
        (ops.relu, "trace takes functions of torch's"),
        (Program("v1 = relu(v0)"), "is a program already"),
        (Program("v1 = add(v0, b0)")(B), "is a program already"),
    ],
)
def test_what_is_no_function(thing, words):
    with pytest.raises(TypeError) as refusal:
        trace(thing)
    assert words in str(refusal.value)


def test_other_errors_of_the_function_pass_through():
    with pytest.raises(ZeroDivisionError):
        trace(lambda y: y * (1 / 0))
    with pytest.raises(KeyError):
        trace(lambda y: {}["missing"])


@pytest.mark.parametrize("function", [lambda y: y, torch.relu, nn.ReLU(), functools.partial(torch.mul, 2.0)])
def test_a_bare_function_is_no_epilogue(function):
    with pytest.raises(TypeError) as refusal:
        bind_epilogue(function)
    assert "trace it once, outside forward" in str(refusal.value)
    assert "epiconv.trace(function)" in str(refusal.value)
