"""`epiconv.ops`: how operations are written, what is refused, and what the type stub says of them."""

import ast
import inspect
import pickle
from pathlib import Path

import numpy
import pytest
import torch

from epiconv import _core, ops
from epiconv.program import Program, bind_epilogue

BIAS = torch.arange(3.0).view(3, 1, 1)
VECTOR = torch.ones(3)


@pytest.mark.parametrize(
    ("operation", "statement"),
    [
        (ops.relu(), "v1 = relu(v0)"),
        (ops.add(BIAS), "v1 = add(v0, b0)"),
        (ops.add(other=2), "v1 = add(v0, 2)"),
        (ops.add(BIAS, alpha=0.5), "v1 = add(v0, b0, alpha=0.5)"),
        (ops.add(BIAS, 2), "v1 = add(v0, b0, alpha=2)"),
        (ops.add(True), "v1 = add(v0, True)"),
        (ops.sub(-0.0), "v1 = sub(v0, -0.0)"),
        (ops.mul(float("inf")), "v1 = mul(v0, inf)"),
        (ops.mul(numpy.float32(0.5)), "v1 = mul(v0, 0.5)"),
        (ops.add(numpy.int64(3)), "v1 = add(v0, 3)"),
        (ops.add(1e-40), "v1 = add(v0, 1e-40)"),
        (ops.clamp(max=0.5), "v1 = clamp(v0, max=0.5)"),
        (ops.clamp(BIAS, 0.5), "v1 = clamp(v0, min=b0, max=0.5)"),
        (ops.clamp(None, BIAS), "v1 = clamp(v0, max=b0)"),
        (ops.clamp(max=BIAS, min=-1), "v1 = clamp(v0, min=-1, max=b0)"),
        (ops.gelu(approximate="tanh"), "v1 = gelu(v0, approximate=tanh)"),
        (ops.gelu("none"), "v1 = gelu(v0)"),
        (ops.cast(torch.bfloat16), "v1 = cast(v0, dtype=bfloat16)"),
        (ops.cast("float16"), "v1 = cast(v0, dtype=float16)"),
        (ops.cast("half"), "v1 = cast(v0, dtype=float16)"),
        (ops.prelu(VECTOR), "v1 = prelu(v0, b0)"),
        (ops.group_norm(3, VECTOR, VECTOR, 0.5), "v1 = group_norm(v0, 3, weight=b0, bias=b1, eps=0.5)"),
        (ops.group_norm(3, bias=VECTOR), "v1 = group_norm(v0, 3, bias=b0)"),
        (ops.threshold(0.5, value=-1), "v1 = threshold(v0, 0.5, -1)"),
        (ops.softplus(threshold=3), "v1 = softplus(v0, threshold=3)"),
    ],
    ids=repr,
)
def test_statement(operation, statement):
    program, operands = bind_epilogue([operation])
    assert program.text == statement
    assert Program(operation.statement(1, 0)) == program
    assert list(map(id, operands)) == list(map(id, operation.operands))


def test_where_takes_the_running_value_as_condition():
    program, operands = bind_epilogue([ops.gt(0.5), ops.where(BIAS, -1.0)])
    assert program.text == "v1 = gt(v0, 0.5); v2 = where(v1, b0, -1.0)"
    assert operands[0] is BIAS


def test_operands_are_numbered_along_the_chain():
    other = torch.ones(())
    program, operands = bind_epilogue([ops.add(BIAS), ops.clamp(other, BIAS), ops.relu(), ops.mul(BIAS)])
    assert program.text == "v1 = add(v0, b0); v2 = clamp(v1, min=b1, max=b2); v3 = relu(v2); v4 = mul(v3, b3)"
    assert [operand is other for operand in operands] == [False, True, False, False]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.add(), TypeError, ["ops.add: other is missing", "add(other, alpha=1.0)"]),
        (lambda: ops.relu(1), TypeError, ["ops.relu: takes at most 0 arguments, got 1"]),
        (lambda: ops.add(1, 2, 3), TypeError, ["takes at most 2 arguments, got 3"]),
        (lambda: ops.add(1, other=2), TypeError, ["other is given twice"]),
        (lambda: ops.add(1, beta=2), TypeError, ["has no argument beta", "add(other, alpha=1.0)"]),
        (lambda: ops.relu(inplace=True), TypeError, ["has no argument inplace"]),
        (lambda: ops.add("1"), TypeError, ["other is a number, or a tensor", "not '1'"]),
        (lambda: ops.add(None), TypeError, ["not None"]),
        (lambda: ops.add(1j), TypeError, ["not 1j"]),
        (lambda: ops.add([1.0]), TypeError, ["not [1.0]"]),
        (lambda: ops.add(numpy.ones(3)), TypeError, ["other is a number, or a tensor"]),
        (lambda: ops.add(1, alpha=torch.ones(1)), TypeError, ["alpha is a number, not tensor"]),
        (lambda: ops.leaky_relu(None), TypeError, ["negative_slope is a number, not None"]),
        (lambda: ops.prelu(0.25), TypeError, ["weight is a tensor of shape (K,), not 0.25"]),
        (lambda: ops.group_norm(8.0), TypeError, ["num_groups is a positive integer, not 8.0"]),
        (lambda: ops.group_norm(True), TypeError, ["num_groups is a positive integer, not True"]),
        (lambda: ops.group_norm(0), ValueError, ["num_groups is a positive integer, not 0"]),
        (lambda: ops.group_norm(4, 1.0), TypeError, ["weight is a tensor of shape (K,), or None"]),
        (lambda: ops.gelu("exact"), ValueError, ["approximate is one of none, tanh, not 'exact'"]),
        (lambda: ops.cast(torch.int8), ValueError, ["dtype is a floating torch dtype", "torch.int8"]),
        (lambda: ops.cast(3), TypeError, ["dtype is a floating torch dtype"]),
        (lambda: ops.clampp(1), AttributeError, ["no operation 'clampp'; did you mean clamp?"]),
        (lambda: ops.convolution, AttributeError, ["no operation 'convolution'", "there are add, sub,"]),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error) as refusal:
        call()
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (ops.relu(), "ops.relu()"),
        (ops.clamp(0, 1), "ops.clamp(0, 1)"),
        (ops.clamp(max=0.5), "ops.clamp(max=0.5)"),
        (ops.add(BIAS, alpha=2), "ops.add(<tensor (3, 1, 1)>, 2)"),
        (ops.gelu("tanh"), "ops.gelu('tanh')"),
        (ops.group_norm(2, bias=VECTOR), "ops.group_norm(2, bias=<tensor (3,)>)"),
    ],
    ids=str,
)
def test_repr(operation, text):
    assert repr(operation) == text


def test_equality_is_by_structure():
    assert ops.add(BIAS) == ops.add(VECTOR)
    assert hash(ops.add(BIAS)) == hash(ops.add(VECTOR))
    different = [ops.add(BIAS), ops.add(1), ops.add(1.0), ops.add(True), ops.sub(1), ops.add(BIAS, alpha=2)]
    different += [ops.clamp(BIAS), ops.clamp(max=BIAS), ops.clamp(BIAS, BIAS), ops.gelu(), ops.gelu("tanh")]
    assert len(set(different)) == len(different)
    assert ops.relu() != "relu"


def test_operations_are_immutable_and_pickle():
    operation = ops.add(BIAS, alpha=0.5)
    with pytest.raises(AttributeError):
        operation.name = "sub"
    again = pickle.loads(pickle.dumps(operation))
    assert again == operation and torch.equal(again.operands[0], BIAS)


def test_operands_are_held_by_reference():
    tensor = torch.zeros(2)
    operation = ops.add(tensor)
    tensor.fill_(5.0)
    assert operation.operands[0] is tensor


@pytest.mark.parametrize("info", _core.operations(), ids=lambda info: info.name)
def test_function_describes_itself(info):
    function = getattr(ops, info.name)
    signature = inspect.signature(function)
    assert list(signature.parameters) == [argument.name for argument in info.arguments[1:]]
    document = function.__doc__
    for section in ("Returns:", "Raises:", "Example:", "Accuracy:"):
        assert section in document
    for name in signature.parameters:
        assert f"    {name}: " in document
    example = document.rpartition(">>> ")[2]
    scope = {"ops": ops, "torch": torch, "weight": VECTOR}
    exec(example, scope)
    program, _ = bind_epilogue(scope["epilogue"])
    assert program.steps[0].name == info.name


def test_dir_lists_every_operation():
    assert set(dir(ops)) == {"Operation", *[info.name for info in _core.operations()]}


# ---- The type stub.

STUB = ast.parse(Path(ops.__file__).with_suffix(".pyi").read_text())
STUB_FUNCTIONS = {
    node.name: node
    for node in STUB.body
    if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or ast.Constant(None)) == "Operation"
}
STUB_TYPES = {
    "any": "Tensor | float",
    "optional": "Tensor | float | None",
    "number": "float",
    "integer": "int",
    "channel": "Channel",
    "optional_channel": "Channel | None",
    "dtype": "torch.dtype | str",
}


def test_stub_lists_every_operation():
    assert list(STUB_FUNCTIONS) == [info.name for info in _core.operations()]


@pytest.mark.parametrize("spec", ops.TABLE.values(), ids=lambda spec: spec.name)
def test_stub_has_the_tables_signature(spec):
    arguments = STUB_FUNCTIONS[spec.name].args
    assert not (arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg)
    defaults = [inspect.Parameter.empty] * (len(arguments.args) - len(arguments.defaults))
    defaults += [ast.literal_eval(node) for node in arguments.defaults]
    written = [
        (node.arg, default, ast.unparse(node.annotation))
        for node, default in zip(arguments.args, defaults, strict=True)
    ]
    words = {name: "Literal[" + ", ".join(map(repr, choices)) + "]" for name, choices in _choices(spec)}
    assert written == [
        (argument.name, argument.default, words.get(argument.name) or STUB_TYPES[argument.kind])
        for argument in spec.arguments[1:]
    ]


def _choices(spec):
    return [(argument.name, argument.choices) for argument in spec.arguments if argument.choices]


def test_stub_knows_the_other_public_names():
    """Whatever the module defines in public, and is not made from the table, is typed as well."""
    source = ast.parse(Path(ops.__file__).read_text())
    defined = {
        node.name
        for node in source.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    stub = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined | set(STUB_FUNCTIONS) == stub
    for name, node in {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}.items():
        if name in defined:
            expected = list(inspect.signature(getattr(ops, name)).parameters)
            assert [argument.arg for argument in node.args.args] == expected
