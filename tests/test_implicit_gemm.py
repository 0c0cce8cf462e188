"""The Python side of the path "implicit_gemm": selection, reasons, what the core is given. The kernels are
stood in for, so that all of it runs without a card.
"""

import pytest
import torch
import torch.nn.functional as F
from card_convolutions import GRADIENTS, exactly, in_layout, input_gradient
from fake_conv_core import at_offset, ran

import epiconv
from epiconv import _core, checks, implicit_gemm, ops
from epiconv.arguments import normalise
from epiconv.call import Call

TORCH_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def integers(*shape, dtype=torch.float32):
    return torch.randint(-3, 4, shape).to(dtype)


X, WEIGHT, BIAS = integers(2, 4, 8, 7), integers(6, 4, 3, 3), integers(6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("wanted", [None, torch.contiguous_format, torch.channels_last], ids=str)
def test_the_kernel_gets_what_it_needs(layout, wanted, dtype, core):
    x = X.to(dtype).to(memory_format=layout)
    weight, bias = WEIGHT.to(dtype), BIAS.to(dtype)
    residual = integers(2, 6, 6, 5, dtype=dtype).to(memory_format=torch.channels_last)
    scale, number = integers(6, 1, 1), torch.tensor(2.0)
    epilogue = [ops.add(residual), ops.mul(scale), ops.relu(), ops.minimum(number)]
    got = ran(core, x, weight, bias, epilogue=epilogue, memory_format=wanted, dtype=dtype)
    y = F.conv2d(x.float(), weight.float(), bias.float())
    assert torch.equal(got.float(), torch.clamp(torch.relu((y + residual) * scale), max=2.0))
    assert got.is_contiguous(memory_format=wanted or layout)
    plan = core.plans[-1]
    assert plan.math == {torch.float32: "tf32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    assert (plan.input_strides, plan.input_alignment) == (x.stride(), 16)
    number.fill_(-1.0)  # read at each call
    assert ran(core, x, weight, bias, epilogue=epilogue, memory_format=wanted, dtype=dtype).max() == -1.0


@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)], ids=str)
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_padding_is_the_kernel_s(mode, padding, core, monkeypatch):
    weight = integers(6, 4, 3, 4)  # "same" pads more at the end than in front
    module = torch.nn.Conv2d(4, 6, (3, 4), padding=padding, padding_mode=mode, bias=False)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    got = ran(core, X, weight, padding=padding, padding_mode=mode)
    assert core.runs[-1][0].input_strides == X.stride()  # nothing was padded before
    assert torch.equal(got, module(X))


def test_unbatched(core):
    for x in (X[0], X.to(memory_format=torch.channels_last)[0]):
        for layout in (None, torch.channels_last):
            got = ran(core, x, WEIGHT, BIAS, memory_format=layout, epilogue=[ops.add(BIAS.view(-1, 1, 1))])
            assert torch.equal(got, F.conv2d(x, WEIGHT, BIAS) + BIAS.view(-1, 1, 1))
            assert core.plans[-1].problem.input == (1, 4, 8, 7)
            assert len(core.plans[-1].output_strides) == 4


TRANSPOSED_PROBLEMS = {  # input, taps, words with an entry per dimension
    "2d": ((2, 4, 8, 7), (3, 3), {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)}),
    "unlike": ((3, 4, 5, 7), (2, 5), {"stride": (4, 3), "padding": (0, 3), "output_padding": (3, 0)}),
    "unbatched": ((4, 5, 7), (1, 4), {"stride": (2, 1), "padding": (0, 1), "output_padding": (0, 0)}),
    "1d": ((2, 4, 19), (8,), {"stride": (4,), "padding": (2,), "output_padding": (3,)}),
    "unbatched 1d": ((4, 19), (1,), {"stride": (2,), "padding": (0,), "output_padding": (1,)}),
}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", TRANSPOSED_PROBLEMS)
def test_transposed(case, layout, core):
    shape, taps, words = TRANSPOSED_PROBLEMS[case]
    batched = shape if len(shape) == len(taps) + 2 else (1, *shape)
    x = in_layout(integers(*batched), layout)
    x = x if batched is shape else x[0]
    weight = integers(6, 4, *taps).transpose(0, 1)
    y = (F.conv_transpose1d if len(taps) == 1 else F.conv_transpose2d)(x, weight, BIAS, **words)
    residual = integers(*y.shape)
    got = ran(core, x, weight, BIAS, transposed=True, epilogue=[ops.sub(residual), ops.relu()], **words)
    assert torch.equal(got, torch.relu(y - residual))
    plan = core.plans[-1]
    problem = plan.problem
    assert plan.kernel.startswith("dgrad_") and problem.transposed
    assert (problem.input, problem.weight) == (batched, (4, 6, *taps))
    given = {"stride": problem.stride, "padding": problem.padding_begin}
    assert given | {"output_padding": problem.output_padding} == words
    assert problem.padding_end == problem.padding_begin
    assert core.weight_strides == weight.stride()
    assert (plan.input_strides[-len(shape) :], plan.output_strides[-len(shape) :]) == (
        x.stride(),
        got.stride(),
    )


@pytest.mark.parametrize("words", [{"padding": "same"}, {"padding": 3, "dilation": 2}], ids=str)
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_one_dimension(mode, words, core):
    x, weight = integers(3, 4, 17), integers(6, 4, 4)
    module = torch.nn.Conv1d(4, 6, 4, padding_mode=mode, bias=False, **words)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    for given in (x, in_layout(x, "channels_last"), x[0]):
        assert torch.equal(ran(core, given, weight, padding_mode=mode, **words), module(given))
        assert core.plans[-1].input_strides[-given.dim() :] == given.stride()
        assert core.plans[-1].kernel.startswith("fprop_")


@pytest.mark.parametrize("problem", GRADIENTS, ids=str)
def test_the_gradient_of_an_input_is_a_transposed_convolution(problem, core):
    for grad, weight, words, expected in input_gradient(*problem):
        exactly(ran(core, grad, weight, **words), expected)


def test_each_way_of_convolving_packs_a_weight_for_itself(core):
    weight = integers(4, 4, 3, 3)
    for _ in range(2):
        assert torch.equal(ran(core, X, weight), F.conv2d(X, weight))
        for words in ({"stride": 2}, {"stride": 3}, {"stride": 2, "padding": 1}):
            expected = F.conv_transpose2d(X, weight, **words)
            assert torch.equal(ran(core, X, weight, transposed=True, **words), expected)
    assert len(core.packs) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_each_alignment_has_a_plan(dtype, core):
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    expected = F.conv2d(x.float(), weight.float())
    alignments = {0: 16, 4: 4, 8: 8, 12: 4} | ({2: 2, 6: 2} if dtype == torch.float16 else {})
    for _ in range(2):
        for offset, alignment in alignments.items():
            given = at_offset(x, offset)
            assert torch.equal(epiconv.fused_conv_epilogue(given, weight).float(), expected)
            assert core.runs[-1][0].input_alignment == alignment
    assert sorted(plan.input_alignment for plan in core.plans) == sorted(set(alignments.values()))
    assert len(core.packs) == 1  # they share the weight's format


def test_an_address_that_the_kernel_refuses(core):
    core.refuse = lambda plan: "" if plan.input_alignment == 16 else "TMA reads addresses of 16 bytes"
    unaligned, expected = at_offset(X, 4), F.conv2d(X, WEIGHT)
    for first, second in ((unaligned, X), (X, unaligned)):
        for x in (first, second, first):
            assert torch.equal(epiconv.fused_conv_epilogue(x, WEIGHT), expected)
            assert (epiconv.explain(x, WEIGHT).path == "implicit_gemm") == (x is X)
    assert ("implicit_gemm", "TMA reads addresses of 16 bytes") in epiconv.explain(unaligned, WEIGHT).refused
    assert torch.equal(epiconv.fused_conv_epilogue(X, WEIGHT, algorithm="implicit_gemm"), expected)
    for call in (epiconv.fused_conv_epilogue, epiconv.explain):
        with pytest.raises(NotImplementedError, match="cannot run: TMA reads addresses of 16 bytes; leave"):
            call(unaligned, WEIGHT, algorithm="implicit_gemm")


DOUBLE = (X.double(), WEIGHT.double())
REFUSED = {
    "float64": (DOUBLE, {}, "float64"),
    "float64, transposed": ((DOUBLE[0], DOUBLE[1].transpose(0, 1)), {"transposed": True}, "float64"),
    "float64, no images": ((DOUBLE[0][:0], DOUBLE[1]), {}, "float64"),
}


def check_refused(core, args, words, match):
    """Otherwise the fallback runs; the algorithm by its name is an error."""
    plan = epiconv.explain(*args, **words)
    assert plan.path == "cpu"
    reason = dict(plan.refused)["implicit_gemm"]
    assert not reason.endswith(".")
    epiconv.fused_conv_epilogue(*args, **words)
    assert core.runs == core.packs == []
    for function in (epiconv.fused_conv_epilogue, epiconv.explain):
        with pytest.raises(NotImplementedError, match=match) as raised:
            function(*args, **words, algorithm="implicit_gemm")
        assert str(raised.value) == f"algorithm='implicit_gemm' cannot run: {reason}; leave 'auto'"


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kernel_computes(case, core):
    check_refused(core, *REFUSED[case])
    assert core.plans == []


class WithRules(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return NotImplemented


def test_a_tensor_with_rules_of_its_own_may_have_no_memory(core):
    arguments = normalise(WEIGHT, 1, 0, 1, 1, False, 0, "zeros", None, "auto", None, None)
    for x, reason in ((X, ""), (X.as_subclass(WithRules), "a tensor is of a subclass with rules of its own")):
        plan = Call(x, WEIGHT, None, (), epiconv.Program(""), arguments).implicit_gemm(x)
        assert (plan if isinstance(plan, str) else "") == reason
    assert len(core.plans) == 1


def test_where_a_pass_behind_another_convolution_is_faster(core):
    core.why_slower = "its interpreter takes longer than a pass"
    plan = epiconv.explain(X, WEIGHT, epilogue=[ops.gelu()])
    assert plan.path == "cpu"
    reason = "its interpreter takes longer than a pass; algorithm='implicit_gemm' runs it all the same"
    assert dict(plan.refused)["implicit_gemm"] == reason
    before = len(core.runs)
    epiconv.fused_conv_epilogue(X, WEIGHT, epilogue=[ops.gelu()])
    assert len(core.runs) == before
    ran(core, X, WEIGHT, epilogue=[ops.gelu()], algorithm="implicit_gemm")


def test_what_the_core_refuses(core):
    core.refuse = lambda plan: "the program has a group_norm" if "group_norm" in plan.program.text else ""
    check_refused(core, (X, WEIGHT), {"epilogue": [ops.group_norm(2)]}, "the program has a group_norm")
    assert torch.equal(ran(core, X, WEIGHT), F.conv2d(X, WEIGHT))


def test_settings_of_cudnn_do_not_matter(core):
    with torch.backends.cudnn.flags(enabled=False, deterministic=True):
        ran(core, X, WEIGHT)


def test_the_other_algorithm(core, monkeypatch):
    monkeypatch.setattr(checks, "no_cudnn", lambda device: "")
    epiconv.fused_conv_epilogue(X, WEIGHT, algorithm="cudnn")
    assert core.plans == []
    plan = epiconv.explain(X, WEIGHT, algorithm="cudnn")
    assert (plan.path, dict(plan.refused)["implicit_gemm"]) == (
        "cpu",
        "algorithm='cudnn' asks for torch's convolution",
    )


def test_cards_and_builds_without_kernels(monkeypatch):
    assert implicit_gemm.why_not_on(torch.device("cpu")) == "the tensors are on cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(_core, "why_no_conv_kernels", lambda *card: f"no kernels for {card}", raising=False)
    cases = {"": "no kernels for (8, 6)", "the driver is old": "the driver is old"}
    for why_not_fused, expected in cases.items():
        monkeypatch.setattr(implicit_gemm, "why_not_fused", lambda device, reason=why_not_fused: reason)
        implicit_gemm.why_not_on.cache_clear()
        assert implicit_gemm.why_not_on(torch.device("cuda", 0)) == expected
    implicit_gemm.why_not_on.cache_clear()


def test_without_a_card_the_tensors_are_the_reason():
    assert dict(epiconv.explain(X, WEIGHT).refused)["implicit_gemm"] == "the tensors are on cpu"
    with pytest.raises(NotImplementedError, match="the tensors are on cpu"):
        epiconv.fused_conv_epilogue(X, WEIGHT, algorithm="implicit_gemm")


def test_where_gradients_are_wanted_another_path_runs(core):
    weight = WEIGHT.clone().requires_grad_()
    plan = epiconv.explain(X, weight)
    assert plan.path == "cpu"
    assert "requires grad" in dict(plan.refused)["implicit_gemm"]
    epiconv.fused_conv_epilogue(X, weight).sum().backward()
    assert weight.grad is not None
    assert core.runs == []
    for function in (epiconv.fused_conv_epilogue, epiconv.explain):
        with pytest.raises(NotImplementedError, match="grad"):
            function(X, weight, algorithm="implicit_gemm")
    with torch.no_grad():
        assert not ran(core, X, weight).requires_grad
    with torch.inference_mode():
        assert ran(core, X, weight).is_inference()


def test_explain(core):
    residual = integers(2, 6, 6, 5)
    plan = epiconv.explain(X, WEIGHT, BIAS, epilogue=[ops.add(residual)])
    assert (plan.path, plan.kernel, plan.convolution) == ("implicit_gemm", "fprop_fake_tf32_tma", "")
    assert plan.packing.startswith("tf32_any, 0.001 MB")
    assert plan.why == "the stand-in takes everything"
    assert "implicit_gemm" not in dict(plan.refused)
    given = X.numel() + BIAS.numel() + 2 * residual.numel()
    assert plan.least_bytes == 4 * (given + WEIGHT.numel())
    assert plan.bytes_moved == 4 * given + core.plans[-1].packed_bytes
    assert core.packs == core.runs == []
    text = str(plan)
    assert "\nkernel    fprop_fake_tf32_tma\nwhy       the stand-in takes everything\n" in text
    assert "\npacking   tf32_any" in text
    with torch.no_grad():
        assert "by modules" in epiconv.explain(X, WEIGHT.clone().requires_grad_()).packing
    with torch.inference_mode():
        assert "in every call" in epiconv.explain(X, WEIGHT.clone()).packing
    assert "packing" not in str(epiconv.explain(*DOUBLE))


def test_a_workspace_where_the_plan_takes_one(core):
    """Statistics of a GroupNorm lie there; the stand-in for the plan asks for an address exactly then."""
    epilogue = [ops.relu(), ops.group_norm(3)]
    expected = F.group_norm(F.conv2d(X, WEIGHT, BIAS).relu(), 3)
    for size in (0, 1000):
        core.workspace_bytes = size
        got = ran(
            core, X.clone(memory_format=torch.channels_last) if size else X, WEIGHT, BIAS, epilogue=epilogue
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend, core):
    def function(x, weight, bias):
        return epiconv.fused_conv_epilogue(x, weight, bias, padding=1, epilogue=[ops.relu()])

    try:
        got = torch.compile(function, fullgraph=True, backend=backend)(X, WEIGHT, BIAS)
    finally:
        torch.compiler.reset()
    assert len(core.runs) == 1
    assert torch.equal(got, F.conv2d(X, WEIGHT, BIAS, padding=1).relu())


def test_compiled_what_no_kernel_computes():
    function = torch.compile(epiconv.fused_conv_epilogue, fullgraph=True, backend="aot_eager")
    try:
        with pytest.raises(Exception, match="do not multiply float64"):
            function(*DOUBLE, algorithm="implicit_gemm")
    finally:
        torch.compiler.reset()


def test_any_strides(core):
    wide = integers(4, 8, 9, 14)
    weight = integers(6, 8, 3, 3)[:, ::2].transpose(2, 3)
    residual = integers(4, 6, 7, 1).expand(4, 6, 7, 5)
    for x in (wide[:, ::2, :, ::2], wide[:1, :4, :, :7].expand(4, -1, -1, -1)):
        got = ran(core, x, weight, epilogue=[ops.relu(), ops.add(residual)])
        assert torch.equal(got, F.conv2d(x, weight).relu() + residual)
