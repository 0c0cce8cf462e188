"""`explain` says what would run, and computes nothing."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import epiconv
from epiconv import ops
from epiconv.cards import CARDS

X = torch.randn(2, 4, 8, 8)
WEIGHT = torch.randn(6, 4, 3, 3)
BIAS = torch.randn(6)


def test_a_plan_on_the_cpu():
    scale, number = torch.randn(6, 1, 1), torch.tensor(2.0)
    epilogue = [ops.relu(), ops.mul(scale), ops.add(number)]
    plan = epiconv.explain(X, WEIGHT, BIAS, epilogue=epilogue)
    assert plan.path == "cpu"
    assert plan.kernel == "elementwise_cpu_f32"
    assert dict(plan.refused).keys() == {"implicit_gemm", "cudnn+epilogue"}
    assert "on cpu" in dict(plan.refused)["cudnn+epilogue"]
    assert plan.program == "v1 = relu(v0); v2 = mul(v1, b0); v3 = add(v2, b1)"
    assert (plan.shape, plan.dtype, plan.device) == ((2, 6, 6, 6), torch.float32, X.device)
    assert plan.strides == (216, 36, 6, 1)
    assert plan.math == "fp32"
    assert plan.flops == 2 * (2 * 6 * 6 * 6) * 4 * 9
    given = X.numel() + WEIGHT.numel() + BIAS.numel() + scale.numel()
    y = 2 * 6 * 6 * 6
    assert plan.least_bytes == 4 * (given + y)
    assert plan.bytes_moved == 4 * (given + y + 2 * y)  # written, read and written again
    assert plan.floor_ms is None
    assert "cpu" in plan.floor_note
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.path = "cudnn"


def test_it_prints():
    text = str(epiconv.explain(X, WEIGHT, BIAS, epilogue=[ops.group_norm(2)]))
    for word in (
        "cpu",
        "group_norm_cpu_f32",
        "implicit_gemm",
        "group_norm(v0, 2",
        "(2, 6, 6, 6)",
        "torch.float32",
    ):
        assert word in text
    assert "(none)" in str(epiconv.explain(X, WEIGHT))


def test_the_result_is_as_explained():
    x = X.to(memory_format=torch.channels_last)
    for words in (
        {},
        {"dtype": torch.float64},
        {"memory_format": torch.contiguous_format},
        {"stride": [2, 1], "padding": "valid"},
        {"padding": "same"},
    ):
        for given in (x, X, x[0]):
            plan = epiconv.explain(given, WEIGHT, BIAS, epilogue=[ops.relu()], **words)
            result = epiconv.fused_conv_epilogue(given, WEIGHT, BIAS, epilogue=[ops.relu()], **words)
            assert (plan.shape, plan.dtype, plan.strides) == (result.shape, result.dtype, result.stride())


def test_kernels_of_double_precision():
    assert epiconv.explain(X.double(), WEIGHT.double()).kernel == "elementwise_cpu_f64"
    assert epiconv.explain(X, WEIGHT, dtype=torch.float64).kernel == "elementwise_cpu_f64"
    assert epiconv.explain(X.double(), WEIGHT.double()).math == "fp64"
    assert epiconv.explain(X, WEIGHT, precision="bf16").math == "bf16"


def test_transposed_flops_count_no_inserted_zeros():
    weight = torch.randn(4, 6, 3, 3)
    plan = epiconv.explain(X, weight, transposed=True, stride=2)
    assert plan.shape == F.conv_transpose2d(X, weight, stride=2).shape
    assert plan.flops == 2 * X.numel() * 6 * 9


@pytest.mark.gpu
def test_why_plain_torch_runs(cuda):
    weight = WEIGHT.to(cuda).requires_grad_()
    x, bias = X.to(cuda), BIAS.to(cuda)
    plan = epiconv.explain(x, weight, bias, epilogue=[ops.relu(), ops.mul(2.0)])
    assert (plan.path, plan.kernel) == ("torch", "torch: convolution, bias and 2 operations")
    assert "requires grad" in dict(plan.refused)["cudnn+epilogue"]
    assert plan.saved == ""
    with torch.no_grad():
        assert epiconv.explain(x, weight, bias).path != "torch"


def test_plain_torch_runs_for_meta_tensors():
    meta = epiconv.explain(X.to("meta"), WEIGHT.to("meta"))
    assert meta.path == "torch"
    assert meta.device.type == "meta"


def test_what_is_saved_for_the_backward_pass():
    weight = WEIGHT.clone().requires_grad_()

    def saved(*operations, **words):
        plan = epiconv.explain(X, weight, BIAS, epilogue=list(operations), **words)
        assert plan.path == "cpu"
        assert "requires grad" in dict(plan.refused)["implicit_gemm"]
        assert (f"\nsaved     {plan.saved}\n" in str(plan)) == bool(plan.saved)
        return plan.saved

    y = F.conv2d(X, WEIGHT)
    conv = f"the convolution's output, {y.numel() * y.element_size() / 1e6:.3f} MB"
    assert saved(ops.mul(2.0)) == "nothing"
    assert saved(ops.mul(2.0), save="conv") == "nothing"
    assert saved(ops.relu()) == "the result"
    assert saved(ops.relu(), save="conv") == conv
    assert saved(ops.gelu()) == conv
    assert saved(ops.gelu(), save="recompute") == "nothing; the convolution is run again"
    with torch.no_grad():
        plan = epiconv.explain(X, weight, BIAS, epilogue=[ops.gelu()])
        assert plan.saved == "" and "saved" not in str(plan)


def test_nothing_runs_for_an_empty_result():
    for x, weight in ((X[:0], WEIGHT), (X[:, :0], WEIGHT[:, :0])):
        plan = epiconv.explain(x, weight, BIAS, epilogue=[ops.relu()])
        assert (plan.path, plan.kernel, plan.why, plan.packing) == ("cpu", "none", "", "")
        assert plan.bytes_moved == plan.least_bytes == 0
        assert plan.shape == F.conv2d(x, weight, BIAS).shape


def test_without_a_kernel_of_its_own_no_row_says_why():
    plan = epiconv.explain(X, WEIGHT)
    assert plan.why == ""
    assert "\nwhy " not in str(plan)


@pytest.mark.parametrize("name", CARDS)
def test_floors_of_cards(name):
    card = CARDS[name]
    assert set(card.flops_per_second) == {"fp32", "tf32", "bf16", "fp16", "fp64"}
    assert card.source
    seconds, bound_by = card.floor("bf16", 10**15, 1)
    assert (seconds, bound_by) == (10**15 / card.flops_per_second["bf16"], "FLOPs")
    seconds, bound_by = card.floor("fp32", 1, 10**12)
    assert (seconds, bound_by) == (10**12 / card.bytes_per_second, "bytes")
    three_products, _ = card.floor("tf32", 3 * 10**15, 1)
    assert card.floor("fp32", 10**15, 1)[0] == pytest.approx(three_products)


@pytest.mark.gpu
def test_a_plan_on_the_card(cuda):
    x, weight, bias = X.to(cuda), WEIGHT.to(cuda), BIAS.to(cuda)
    plan = epiconv.explain(x, weight, bias, epilogue=[ops.relu()], algorithm="cudnn")
    assert plan.path == "cudnn+epilogue"
    assert plan.kernel.startswith("elementwise_cuda_")
    assert plan.convolution == "cudnn"
    assert dict(plan.refused).keys() == {"implicit_gemm"}
    name = torch.cuda.get_device_name(cuda)
    assert (plan.floor_ms is not None) == (name in CARDS)
    if plan.floor_ms is not None:
        assert plan.floor_ms >= plan.least_bytes / CARDS[name].bytes_per_second * 1e3
    assert name in plan.floor_note or plan.floor_ms is not None


@pytest.mark.gpu
def test_explaining_allocates_next_to_nothing(cuda):
    x, weight = torch.zeros(64, 64, 64, 64, device=cuda), torch.zeros(64, 64, 3, 3, device=cuda)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    epiconv.explain(x, weight, epilogue=[ops.relu()])
    assert torch.cuda.max_memory_allocated() == before


def test_predictions_are_told(core):
    """That of the path, and those of all ways in milliseconds, the fastest first."""
    core.predicted_us = {"sm80": 28.41, "sm90": "a reason", "cudnn+epilogue": 20.0}
    plan = epiconv.explain(X, WEIGHT, algorithm="implicit_gemm")
    assert plan.predicted_ms == 0.0125
    assert plan.ways == (("cudnn+epilogue", 0.02), ("sm80", pytest.approx(0.02841)))
    text = str(plan)
    assert "\npredicted 12.5 us (tensor 12.5; limited by tensor) on an H200\n" in text
    assert "\nways      cudnn+epilogue 0.0200 ms, sm80 0.0284 ms\n" in text


def test_nothing_is_predicted_without_a_card():
    plan = epiconv.explain(X, WEIGHT)
    assert (plan.predicted_ms, plan.predicted, plan.ways) == (None, "", ())
    assert "predicted" not in str(plan) and "ways" not in str(plan)
