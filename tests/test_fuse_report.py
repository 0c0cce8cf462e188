"""`epiconv.report`; the examples of its guide are run by test_guide.py."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from fusion_blocks import make
from torch import nn

import epiconv

report_module = import_module("epiconv.fusion.report")  # whose name is the function's in its package


def test_rows(capsys):
    model, x = make("unet")
    report = epiconv.report(epiconv.fuse(model, x))
    assert isinstance(report, str)
    assert capsys.readouterr().out == f"{report}\n"
    first, last = report.rows[1], report.rows[0]
    assert (last.module, last.fused, last.program, last.plan) == ("last", False, "", None)
    assert first.module == "inner.0"
    assert first.modules == ("inner.0", "inner.1", "inner.2")
    assert first.program == "v1 = group_norm(v0, 2, weight=b0, bias=b1); v2 = silu(v1)"
    assert first.plan.path == "cpu"
    assert first.plan.program == first.program
    assert first.plan.shape == (2, 4, 8, 8)
    assert first.gain_ms is None
    assert "3 of 4 convolutions are fused" in report
    assert "no gain is predicted: predictions are made for tensors on a card" in report


def test_without_example_inputs(capsys):
    model, _ = make("basic")
    report = epiconv.report(epiconv.fuse(model))
    assert [row.plan for row in report.rows] == [None] * 5
    assert "without example inputs" in report


def test_why_a_chain_ends(capsys):
    model, x = make("bottleneck")
    reasons = {row.module: row.reason for row in epiconv.report(epiconv.fuse(model, x)).rows}
    assert reasons == {
        "conv1": "conv2 is a convolution of its own",
        "conv2": "conv3 is a convolution of its own",
        "conv3": "",
    }


def test_sites_within_what_cannot_be_traced(capsys):
    model, x = make("branching")
    rows = {row.module: row for row in epiconv.report(epiconv.fuse(model, x)).rows}
    assert rows["stem.0"].plan.shape == (2, 6, 6, 6)
    assert rows["block.conv1"].plan is None  # nobody knows whether it is called


def test_predicted_gain(monkeypatch, capsys):
    """On a card, where there are predictions."""

    def explained(*args, **words):
        plan = explain(*args, **words)
        return SimpleNamespace(
            path=plan.path,
            kernel="made_up",
            predicted_ms=0.25,
            ways=(("sm90_im2col", 0.25), ("cudnn+epilogue", 0.75)),
        )

    explain = report_module.explain
    monkeypatch.setattr(report_module, "explain", explained)
    model, x = make("bottleneck")
    report = epiconv.report(epiconv.fuse(model, x))
    assert [row.gain_ms for row in report.rows] == [0.5] * 3
    assert "made_up" in report
    assert "predicted: 0.2500 ms; of the ways sm90_im2col 0.2500 ms, cudnn+epilogue 0.7500 ms" in report
    assert "predicted gain over convolutions with a pass behind them: 1.5000 ms, of 3 sites" in report


def test_measured(capsys):
    model, x = make("unet")
    fused = epiconv.fuse(model, x)
    report = epiconv.report(fused, measure=True)
    rows = [row for row in report.rows if row.fused]
    assert all(time > 0 for row in rows for time in row.measured_ms)
    assert [row.measured_ms for row in report.rows if not row.fused] == [None]
    sums = [sum(row.measured_ms[i] for row in rows) for i in range(2)]
    assert f"measured: {sums[0]:.4f} ms, as they were written {sums[1]:.4f} ms, of 3 sites" in report
    assert [row.measured_ms for row in epiconv.report(fused).rows] == [None] * 4
    with pytest.raises(ValueError, match="needs example inputs"):
        epiconv.report(epiconv.fuse(model), measure=True)


def test_dtype_of_the_plan(capsys):
    model, x = make("basic")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.bfloat16()
    model.bfloat16()
    report = epiconv.report(epiconv.fuse(model, x.bfloat16()))
    assert {row.plan.dtype for row in report.rows} == {torch.bfloat16}
