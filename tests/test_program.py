"""Programs on the Python side: text, equality, operands, type promotion, and what they compute in torch."""

import copy
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from program_strategies import cases

from epiconv import _core, ops
from epiconv.program import (
    IDENTITY,
    BoundProgram,
    PartialProgram,
    Program,
    bind_epilogue,
    epilogue_text,
)
from epiconv.steps import Step

BIAS = torch.tensor([0.5, -1.5, 2.0]).view(3, 1, 1)
Y = torch.linspace(-4, 4, 2 * 3 * 4 * 5).view(2, 3, 4, 5)


# ---- Text and structure.


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        (" ;\n", ""),
        ("v1=relu( v0 )\nv2 = exp(v1)", "v1 = relu(v0); v2 = exp(v1)"),
        ("v1 = clamp(v0, None, 1)", "v1 = clamp(v0, max=1)"),
        ("v1 = add(v0, b0, alpha=1.0)", "v1 = add(v0, b0)"),
        ("v1 = exp(v0); v2 = relu(v0)", "v1 = relu(v0)"),
        ("v1 = add(v0, 1e3)", "v1 = add(v0, 1000.0)"),
    ],
)
def test_canonical_text(text, canonical):
    program = Program(text)
    assert program.text == str(program) == canonical
    assert repr(program) == f"Program({canonical!r})"
    assert eval(repr(program)) == program


@settings(max_examples=200, deadline=None)
@given(cases())
def test_text_round_trip(case):
    program = Program(case.text)
    again = Program(str(program))
    assert again == program and again.text == program.text
    assert again.steps == program.steps
    assert again.num_operands == program.num_operands == len(case.operands)
    assert again.channel_operands == program.channel_operands


def test_attributes():
    program = Program(
        "v1 = prelu_(v0, b2); v2 = add(v1, b0); v3 = group_norm(v2, 4, b1); v4 = gelu(v3, tanh)"
    )
    assert program.num_operands == 3
    assert program.channel_operands == (1, 2)
    assert program.steps == (
        Step("prelu", True, (("v", 0), ("b", 2))),
        Step("add", False, (("v", 1), ("b", 0), 1.0)),
        Step("group_norm", False, (("v", 2), 4, ("b", 1), None, 1e-5)),
        Step("gelu", False, (("v", 3), "tanh")),
    )
    assert isinstance(program.core, _core.Program) and program.core.text == program.text
    with pytest.raises(AttributeError):
        program.text = "v1 = relu(v0)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v1 = swish(v0)", ["unknown operation 'swish'", "mish"]),
        ("v2 = relu(v0)", ["must assign v1", "v2 = relu(v0)"]),
        ("v1 = add(v0)", ["argument 'other'", "is missing", "add(input, other, alpha=1)"]),
        ("v1 = relu(v0, 2)", ["too many arguments", "relu(input)"]),
        ("v1 = add(v0, v3)", ["v3 is used before it is computed"]),
        ("v1 = add(v0, b1)", ["operand b0 is not used"]),
        ("v1 = relu(b0)", ["not computed from the conv output"]),
        ("v1 = gelu(v0, fast)", ["one of none|tanh", "'fast'"]),
        ("v1 = cast(v0, int8)", ["float32, float16, bfloat16 or float64", "'int8'"]),
        ("relu", ["must assign v1"]),
        ("v1 = exp(v0); v2 = log(v0); v3 = abs(v0); v4 = neg(v0); v5 = add(v1, v2); v6 = add(v3, v4); "
         "v7 = add(v5, v6); v8 = add(v7, v0)", ["too many live values: v0, v1, v2, v3, v4", "at most 4"]),
    ],
)  # fmt: skip
def test_parse_errors(text, words):
    with pytest.raises(ValueError) as refusal:
        Program(text)
    for word in words:
        assert word in str(refusal.value)


def test_equality_and_hash_are_by_canonical_text():
    assert Program("v1=add(v0,b0,alpha=1)") == Program("v1 = add(v0, b0)")
    assert hash(Program("v1=add(v0,b0,alpha=1)")) == hash(Program("v1 = add(v0, b0)"))
    texts = ["", "v1 = add(v0, 1)", "v1 = add(v0, 1.0)", "v1 = add(v0, True)", "v1 = add_(v0, 1)"]
    assert len({Program(text) for text in texts}) == len(texts)
    assert Program("") != ""
    assert Program() == IDENTITY


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(duplicate):
    program = Program("v1 = minimum(v0, 0.5); v2 = add(v1, b0)")
    again = duplicate(program)
    assert again == program and again.steps == program.steps
    bound = program(BIAS)
    again = duplicate(bound)
    assert again == bound and torch.equal(again.operands[0], BIAS)
    partial = PartialProgram(program, (BIAS,))
    assert duplicate(partial) == partial


def test_a_pickled_program_is_its_text():
    assert b"minimum(v0, 0.5)" in pickle.dumps(Program("v1 = minimum(v0, 0.5)"))


# ---- Binding.


def test_binding_keeps_references():
    residual = torch.zeros(2, 3, 4, 5)
    program = Program("v1 = add(v0, b1); v2 = mul(v1, b0)")
    bound = program(BIAS, residual)
    assert bound.program is program
    assert bound.operands[0] is BIAS and bound.operands[1] is residual
    assert bound() is bound
    assert bind_epilogue(bound) == (program, bound.operands)


def test_bound_programs_compare_by_program():
    program = Program("v1 = add(v0, b0)")
    assert program(BIAS) == program(torch.zeros(1))
    assert hash(program(BIAS)) == hash(program(torch.zeros(1))) == hash(program)
    assert program(BIAS) != program
    assert program(BIAS) != Program("v1 = sub(v0, b0)")(BIAS)


def test_partial_programs():
    program = Program("v1 = add(v0, b0); v2 = mul(v1, b1)")
    partial = PartialProgram(program, (BIAS,))
    assert partial.num_operands == 1
    bound = partial(Y)
    assert isinstance(bound, BoundProgram)
    assert bound.operands[0] is Y and bound.operands[1] is BIAS
    assert partial == PartialProgram(program, (Y,))
    assert partial != PartialProgram(program, ())
    assert hash(partial) == hash(program)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p(), ["'v1 = add(v0, b0); v2 = mul(v1, b1)' needs 2 operands (b0, b1), got 0"]),
        (lambda p: p(BIAS), ["needs 2 operands (b0, b1), got 1"]),
        (lambda p: p(BIAS, BIAS, BIAS), ["got 3"]),
        (lambda p: p(BIAS, 2.0), ["operand b1 is a float, not a tensor", "0-d tensor"]),
        (lambda p: p(BIAS, BIAS)(BIAS), ["has all its operands already, got 1 more"]),
        (lambda p: PartialProgram(p, (BIAS,))(), ["needs 1 operand (b0), got 0"]),
        (lambda p: PartialProgram(p, (BIAS, BIAS))(BIAS), ["needs no operands, got 1"]),
        (lambda p: PartialProgram(p, (BIAS,))(None), ["operand b0 is a NoneType"]),
        (lambda p: p.apply(Y, [BIAS]), ["needs 2 operands (b0, b1), got 1"]),
        (lambda p: p.apply(Y.int(), [BIAS, BIAS]), ["floating tensor, not to torch.int32"]),
    ],
)
def test_binding_errors(call, words):
    with pytest.raises(TypeError) as refusal:
        call(Program("v1 = add(v0, b0); v2 = mul(v1, b1)"))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("epilogue", "text"),
    [
        (None, ""),
        ([], ""),
        ((ops.relu(),), "v1 = relu(v0)"),
        ([ops.minimum(0.5), ops.add(BIAS), ops.mul(2.0)],
         "v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, 2.0)"),
        (Program("v1 = relu(v0)"), "v1 = relu(v0)"),
        (Program("v1 = add(v0, b0)")(BIAS), "v1 = add(v0, b0)"),
    ],
)  # fmt: skip
def test_bind_epilogue(epilogue, text):
    program, operands = bind_epilogue(epilogue)
    assert program.text == text
    assert [operand is BIAS for operand in operands] == [True] * text.count("b0")
    written, same_operands = epilogue_text(epilogue)
    assert Program(written) == program
    assert list(map(id, same_operands)) == list(map(id, operands))


def test_chains_of_one_structure_share_a_program():
    first, _ = bind_epilogue([ops.add(BIAS), ops.mul(2.0)])
    second, operands = bind_epilogue([ops.add(Y), ops.mul(2.0)])
    assert first is second and operands[0] is Y
    other, _ = bind_epilogue([ops.add(BIAS), ops.mul(3.0)])
    assert other.text == "v1 = add(v0, b0); v2 = mul(v1, 3.0)"


@pytest.mark.parametrize(
    ("epilogue", "words"),
    [
        (3, ["epilogue is a int", "an epilogue is None, a list of ops.*"]),
        ("v1 = relu(v0)", ["epilogue is a str"]),
        (ops.relu(), ["a single operation goes into a list: epilogue=[ops.relu()]"]),
        (ops.relu, ["ops.relu is not called: write epilogue=[ops.relu(…)]"]),
        ([ops.relu], ["item 0", "call it: ops.relu(…)"]),
        ([ops.relu(), torch.relu], ["item 1 of the epilogue", "not an operation of epiconv.ops"]),
        ([ops.relu(), 2.0], ["item 1 of the epilogue is 2.0"]),
        (Program("v1 = add(v0, b0)"), ["needs 1 operand (b0): give it as epilogue=program(...)"]),
        (PartialProgram(Program("v1 = add(v0, b0)"), ()), ["needs 1 operand (b0)"]),
        (lambda y: y, ["trace it once, outside forward", "epiconv.trace(function)"]),
        (torch.nn.ReLU(), ["ReLU()", "trace it once, outside forward"]),
    ],
)
@pytest.mark.parametrize("bind", [bind_epilogue, epilogue_text])
def test_what_is_no_epilogue(bind, epilogue, words):
    with pytest.raises(TypeError) as refusal:
        bind(epilogue)
    for word in words:
        assert word in str(refusal.value)


def test_a_chain_that_is_no_program():
    with pytest.raises(ValueError, match="at most one group_norm"):
        bind_epilogue([ops.group_norm(3), ops.group_norm(3)])


def test_epilogue_text_under_compile():
    def function(y, b):
        text, operands = epilogue_text([ops.minimum(0.5), ops.add(b, alpha=2), ops.clamp(max=b)])
        return y + len(operands) if text == expected else y

    expected = "v1 = minimum(v0, 0.5); v2 = add(v1, b0, alpha=2); v3 = clamp(v2, max=b1)"
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(Y, BIAS), Y + 2)


def test_pickles_cross_processes():
    """The hash is the text's, so it may differ; equality must not."""
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    pickled = pickle.dumps(Program("v1 = relu(v0); v2 = mul(v1, 0.1)"))
    result = subprocess.run([sys.executable, "-c", script], input=pickled, capture_output=True, check=True)
    assert result.stdout.decode().strip() == "v1 = relu(v0); v2 = mul(v1, 0.1)"


def test_limits_are_the_cores():
    most = _core.max_operands
    adds = [ops.add(BIAS) for _ in range(most)]
    assert bind_epilogue(adds)[0].num_operands == most
    with pytest.raises(ValueError, match=f"at most {most} operands"):
        bind_epilogue([*adds, ops.add(BIAS)])
    with pytest.raises(ValueError, match=f"at most {_core.max_statements} fit"):
        bind_epilogue([ops.relu()] * (_core.max_statements + 1))


def test_chains_are_the_same_as_functions():
    pairs = itertools.product((ops.relu(), ops.gelu("tanh"), ops.clamp(-1, 1)), (ops.mul(2.0), ops.sigmoid()))
    for first, second in pairs:
        program, _ = bind_epilogue([first, second])
        one, two = (Program(step.statement(1, 0)) for step in (first, second))
        assert torch.equal(program.apply(Y), two.apply(one.apply(Y)))
