"""Kernels compiled at run time for one plan: what is compiled, where it is kept, and what happens where it
cannot be. On a card: their results, which are those of the library's kernels.
"""

import re
from dataclasses import replace
from pathlib import Path

import fuzz_conv
import pytest
import torch
from card_convolutions import exact, force, in_layout, integers
from fuzz_problems import problem
from portable_problems import ORDINARY, TRANSPOSED
from python_process import run_python

import epiconv
from epiconv import _core, compiler, implicit_gemm, ops
from epiconv.program import Program

CHAIN = ("v1 = sub(v0, b0); v2 = gelu(v1); v3 = clamp(v2, -1.0, 90.0)", (("channel", "float32", "sliced"),))
# Equal steps, a value that is multiplied by itself, three values that live at once.
DAG = (
    "v1 = mul(v0, v0); v2 = sigmoid(v0); v3 = sigmoid(v2); v4 = mul(v1, v3); v5 = add(v4, v2);"
    "v6 = add(v5, v0)",
    (),
)


@pytest.fixture(autouse=True)
def kept(kept_files):
    """A compiler whose work is kept in a directory of its own."""


def plan_of(conv, capability=(9, 0), compile="always"):
    plan = fuzz_conv.plan_of(conv, fuzz_conv.make(conv, torch.device("cpu")), "sm80", capability, compile)
    assert isinstance(plan, _core.ConvPlan), plan
    return plan


@pytest.mark.parametrize(
    ("math", "capability"),
    [("tf32", (8, 0)), ("bf16", (8, 9)), ("fp16", (9, 0)), ("ieee", (9, 0)), ("tf32", (12, 0))],
)
def test_every_math_is_compiled(math, capability, nvrtc):
    kernel = plan_of(replace(ORDINARY["3x3"], math=math), capability).kernel
    assert kernel.startswith(f"fprop_sm80_{math}_")
    assert kernel.endswith("_f32_compiled")


@pytest.mark.parametrize("epilogue", [CHAIN, DAG], ids=["chain", "dag"])
@pytest.mark.parametrize("name", ["3x3", "1-d", "3-d", "no images", *list(TRANSPOSED)[::30]])
def test_every_convolution_is_compiled(name, epilogue, nvrtc):
    program, operands = epilogue
    conv = replace((ORDINARY | TRANSPOSED)[name], program=program, operands=operands)
    plan = plan_of(conv)
    assert plan.kernel.endswith("_f32_compiled" if 0 not in conv.output else "none")
    assert plan.why_kernel == "kernels of sm_80 are asked for" or 0 in conv.output


def test_nothing_is_compiled_unasked(kept_files):
    conv = next(iter(ORDINARY.values()))
    if _core.why_no_conv_kernels(8, 0):
        pytest.skip("this build has no kernels")
    assert "_f32_interpreted_" in plan_of(conv, compile="never").kernel
    assert not list(kept_files.iterdir())


def test_if_faster(nvrtc, kept_files):
    """A plan that "auto" will not take is not worth a kernel."""
    slow = problem((8, 256, 56, 56), (256, 256, 3, 3))
    plan = plan_of(slow, compile="if faster")
    assert plan.why_slower
    assert "_f32_interpreted_" in plan.kernel
    assert not list(kept_files.iterdir())
    fast = problem((2, 8, 9, 9), (64, 8, 3, 3))
    plan = plan_of(fast, compile="if faster")
    assert not plan.why_slower
    assert plan.kernel.endswith("_f32_compiled")
    assert len(list(kept_files.iterdir())) == 1


def test_numbers_that_come_late_are_interpreted(nvrtc):
    late = {"program": "v1 = mul(v0, b0)", "operands": (("number", "float32", "contiguous"),)}
    plan = plan_of(problem((2, 8, 9, 9), (64, 8, 3, 3), **late))
    assert "_f32_interpreted_" in plan.kernel
    assert plan.why_kernel.endswith(
        "; not compiled for the plan: an operand is a number on the host, known only when it runs"
    )


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_was_compiled_is_kept(nvrtc, kept_files):
    conv = next(iter(ORDINARY.values()))
    plan_of(conv)
    (path,) = kept_files.iterdir()
    assert path.suffix == ".kernel"
    times = path.stat()
    kept = contents(kept_files)
    plan_of(conv)  # finds it
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert contents(kept_files) == kept
    plan_of(conv, (8, 0))  # machine code of another card
    assert len(contents(kept_files)) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another key"])
def test_damaged_files_are_written_again(damage, nvrtc, kept_files):
    plan_of(next(iter(ORDINARY.values())))
    (path,) = kept_files.iterdir()
    right = path.read_bytes()
    if damage == "cut":
        path.write_bytes(right[:-100])
    elif damage == "changed":
        path.write_bytes(right[:-100] + bytes(100))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(right.replace(b"-arch=sm_90", b"-arch=sm_80"))
    assert plan_of(next(iter(ORDINARY.values()))).kernel.endswith("_f32_compiled")
    assert contents(kept_files) == {path.name: right}


def test_where_nothing_can_be_kept(nvrtc, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("not a directory")
    _core.set_compiler("", str(taken / "below"))
    assert plan_of(next(iter(ORDINARY.values()))).kernel.endswith("_f32_compiled")
    assert taken.read_text() == "not a directory"


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("EPICONV_CACHE_DIR", "/somewhere")
    assert compiler.cache_directory() == "/somewhere"
    monkeypatch.setenv("EPICONV_CACHE_DIR", "")
    assert compiler.cache_directory() == ""
    monkeypatch.delenv("EPICONV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compiler.cache_directory() == "/caches/epiconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert compiler.cache_directory() == str(Path("/home/someone/.cache/epiconv"))


@pytest.mark.parametrize("word", ["benchmark", "always", "never"])
def test_setting(word):
    code = (
        "import torch; from epiconv import compiler; found = [compiler.is_wanted()]\n"
        "torch.backends.cudnn.benchmark = True; print(found + [compiler.is_wanted()])"
    )
    done = run_python(code, EPICONV_COMPILE=word)
    expected = {"benchmark": [False, True], "always": [True, True], "never": [False, False]}[word]
    assert done.stdout.strip() == str(expected), done.stderr


def test_a_setting_that_is_none():
    done = run_python("import epiconv", EPICONV_COMPILE="yes")
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ValueError: EPICONV_COMPILE is 'yes', but it is one of benchmark, always, never"


def test_a_missing_compiler():
    """A kernel of the library runs, and the plan says why."""
    if _core.why_no_conv_kernels(8, 0):
        pytest.skip("this build has no kernels")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from epiconv import _core; _core.set_compiler('/nowhere/libnvrtc.so', '')\n"
        "import test_compiled_kernels as tests\n"
        "plan = tests.plan_of(next(iter(tests.ORDINARY.values())))\n"
        "print(plan.kernel); print(plan.why_kernel)"
    )
    done = run_python(code, LD_LIBRARY_PATH="")
    kernel, why = done.stdout.strip().splitlines()
    if kernel.endswith("_f32_compiled"):
        pytest.skip("the loader finds NVRTC by itself")
    assert "_f32_interpreted_" in kernel
    assert re.search(r"not compiled for the plan: NVRTC is not there .*pip install nvidia-cuda-nvrtc$", why)


# ---- On a card


@pytest.fixture
def compiling(monkeypatch, card, nvrtc):
    """Plans of the portable family, which are compiled or not as `set_to(…)` says."""
    force(monkeypatch, "sm80")
    wanted = [True]
    monkeypatch.setattr(compiler, "is_wanted", lambda: wanted[0])

    def set_to(value):
        wanted[0] = value

    return set_to


# Programs whose results are known to the bit.
EXACT_CHAIN = ("v1 = sub(v0, b0); v2 = relu(v1); v3 = clamp(v2, -1.0, 90.0)", CHAIN[1])
EXACT_DAG = ("v1 = add(v0, b0); v2 = maximum(v1, v0); v3 = sub(v2, v0); v4 = add(v3, v1)", CHAIN[1])


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", [EXACT_CHAIN, EXACT_DAG], ids=["chain", "dag"])
@pytest.mark.parametrize("name", [*list(ORDINARY)[::3], *list(TRANSPOSED)[::3]])
def test_results(name, epilogue, card, nvrtc):
    program, operands = epilogue
    conv = replace((ORDINARY | TRANSPOSED)[name], program=program, operands=operands)
    assert fuzz_conv.check(conv, card, compile="always") == (True, "")


OPERATIONS = [
    *("neg", "abs", "square", "sqrt", "rsqrt", "exp", "log", "relu", "relu6", "selu", "silu", "mish"),
    *("sigmoid", "logsigmoid", "tanh", "softsign", "hardswish", "hardsigmoid", "gelu", "elu", "softplus"),
]


def of_each(operations):
    """The same value through every operation, clamped to what does not hide the others, and summed."""
    text, total = "v1 = mul(v0, 1.7)", 1
    for name in operations:
        n = total + 1
        text += f"; v{n} = {name}(v0); v{n + 1} = clamp(v{n}, -9.0, 9.0); v{n + 2} = add(v{n + 1}, v{total})"
        total = n + 2
    return text


# Of operations without parameters; of steps that might be contracted; of gates and folded steps.
SAME = {
    "operations": of_each(OPERATIONS[:14]),
    "more operations": of_each(OPERATIONS[14:]),
    "sums of products": "v1 = mul(v0, 1.7); v2 = add(v1, 0.3); v3 = mul(v2, v2); v4 = add(v3, v0);"
    "v5 = silu(v4); v6 = hardswish(v5)",
    "operands": "v1 = mul(v0, b0); v2 = add(v1, b1); v3 = hardswish(v2); v4 = mul(v2, v3)",
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAME)
def test_same_bits_as_interpreted(name, dtype, compiling):
    transposed = name == "operands"
    x = torch.randn(2, 8, 13, 11, device="cuda").to(dtype)
    weight = (torch.randn(8, 8, 3, 3, device="cuda") / 5).to(dtype)
    scale, residual = torch.randn(8, 1, 1, device="cuda"), torch.randn(2, 8, 27, 23, device="cuda")
    program = Program(SAME[name])
    arguments = {"epilogue": program(scale, residual) if program.num_operands else program}
    arguments |= {"transposed": transposed, "stride": 2 if transposed else 1, "algorithm": "implicit_gemm"}
    results = []
    for compiles in (False, True):
        compiling(compiles)
        kernel = epiconv.explain(x, weight, **arguments).kernel
        assert kernel.endswith("_f32_compiled") is compiles
        results.append(epiconv.fused_conv_epilogue(x, weight, **arguments))
    interpreted, compiled = results
    assert torch.equal(interpreted.isnan(), compiled.isnan())
    assert not interpreted.isnan().all()
    assert torch.equal(interpreted.nan_to_num(), compiled.nan_to_num())


# Extents that tiles divide, so that the compiler knows that nothing lies outside of them, and some that they
# do not: input, weight, words of the call.
WHOLE = {
    "2-d": ((2, 16, 32, 32), (64, 16, 3, 3), {"padding": 1}),
    "2-d, a row more": ((2, 16, 33, 32), (64, 16, 3, 3), {"padding": 1}),
    "2-d, a filter more": ((2, 16, 32, 32), (65, 16, 3, 3), {"padding": 1}),
    "3-d": ((2, 8, 8, 16, 16), (32, 8, 3, 3, 3), {"padding": 1}),
    "groups": ((2, 32, 32, 32), (64, 16, 3, 3), {"padding": 1, "groups": 2}),
    "groups of odd numbers": ((2, 32, 32, 32), (66, 16, 3, 3), {"padding": 1, "groups": 2}),
    "transposed": ((2, 32, 16, 16), (32, 64, 4, 4), {"padding": 1, "stride": 2, "transposed": True}),
    "transposed, 3-d": ((2, 32, 8, 8, 8), (32, 32, 2, 2, 2), {"stride": 2, "transposed": True}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_tiles(name, channels_last, dtype, compiling):
    """With residuals that are aligned to words, to half a word, to an element, and of another layout."""
    shape, taps, words = WHOLE[name]
    layout = "channels_last" if channels_last else "nchw"
    x, weight = integers(*shape, device="cuda", dtype=dtype), integers(*taps, device="cuda", dtype=dtype)
    x = in_layout(x, layout)
    y = exact(x, weight, **words)
    for shift in (0, 1, 2, 4):
        residual = in_layout(integers(*y.shape, device="cuda", dtype=dtype), layout)
        memory = torch.empty(residual.numel() + shift, dtype=dtype, device="cuda")
        shifted = memory[shift:].as_strided(residual.shape, residual.stride(), shift).copy_(residual)
        arguments = {"epilogue": [ops.add(shifted), ops.relu()], "algorithm": "implicit_gemm"} | words
        assert epiconv.explain(x, weight, **arguments).kernel.endswith("_f32_compiled")
        got = epiconv.fused_conv_epilogue(x, weight, **arguments)
        assert torch.equal(got, (y + residual.double()).relu().to(dtype))
    other = in_layout(residual, "nchw" if channels_last else "channels_last")
    got = epiconv.fused_conv_epilogue(x, weight, **(arguments | {"epilogue": [ops.sub(other)]}))
    assert torch.equal(got, (y - residual.double()).to(dtype))


@pytest.mark.gpu
def test_in_a_graph(compiling, card):
    """The first call of a plan is captured: its kernel is loaded then."""
    x, weight = integers(2, 8, 9, 9, device=card), integers(16, 8, 3, 3, device=card)
    arguments = {"epilogue": [ops.relu()], "algorithm": "implicit_gemm", "padding": 1}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = epiconv.fused_conv_epilogue(x, weight, **arguments)
    x.copy_(integers(2, 8, 9, 9, device=card))
    graph.replay()
    assert torch.equal(y, exact(x, weight, padding=1).relu().to(y))


@pytest.mark.gpu
def test_benchmark_asks_for_it(monkeypatch, card, nvrtc):
    """torch.backends.cudnn.benchmark, as it is at each call."""
    force(monkeypatch, "sm80")
    monkeypatch.setattr(compiler, "is_wanted", compiler._SETTINGS["benchmark"])
    x, weight = integers(2, 8, 9, 9, device=card), integers(16, 8, 3, 3, device=card)
    for benchmark in (False, True, False):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
        plan = epiconv.explain(x, weight, epilogue=[ops.relu()])
        assert plan.path == "implicit_gemm"
        assert plan.kernel.endswith("_f32_compiled") is benchmark
        y = epiconv.fused_conv_epilogue(x, weight, epilogue=[ops.relu()])
        assert torch.equal(y, exact(x, weight).relu().to(y))
    assert implicit_gemm.FAMILY == "sm80"
