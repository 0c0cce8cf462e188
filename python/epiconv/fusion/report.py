"""`epiconv.report`: what `epiconv.fuse` did with a model, and how it runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from epiconv.functional import ARGUMENT_NAMES
from epiconv.fusion.rewrite import Fused, FusedForward, NotFused
from epiconv.fusion.shapes import Form
from epiconv.fusion.site import Site, find
from epiconv.plan import Plan, explain


@dataclass(frozen=True)
class Row:
    """What became of one convolution.

    Attributes:
        module: its name in the model.
        fused: whether it is a site.
        program: what runs in its store stage; "" where it is not fused.
        modules: names of the modules that the site stands for.
        reason: why it is not fused, or why the chain ends where it does; "" where nothing follows.
        plan: how it runs for the example inputs, by `epiconv.explain`; None without them.
        gain_ms: what the site is predicted to save against torch's convolution with a pass behind it;
            None where nothing is predicted.
        measured_ms: what the site took, and what its operations took as they were written, where that was
            measured; else None.
    """

    module: str
    fused: bool
    program: str
    modules: tuple[str, ...]
    reason: str
    plan: Plan | None
    gain_ms: float | None
    measured_ms: tuple[float, float] | None = None


class Report(str):
    """The text of a report.

    Attributes:
        rows: one for each call of a convolution.
    """

    rows: tuple[Row, ...]


def report(model: nn.Module, *, measure: bool = False) -> Report:
    """Prints which convolutions of a fused model are one call with what follows them, and why others are not.

    Where `fuse` was given example inputs, `epiconv.explain` says for their shapes which path and kernel a
    site takes in eval mode without gradients, and what that is predicted to take. Nothing runs, unless it is
    to be measured.

    Args:
        model: of `epiconv.fuse`.
        measure: whether to time each site beside its operations as they were written, in turns, without
            gradients, on random values of the example inputs' forms: a fifth of a second for each. In
            training mode a site with a BatchNorm is those operations.

    Returns:
        The text that it printed, with `rows`.

    Raises:
        TypeError: the model is not of `epiconv.fuse`.
        ValueError: it is to be measured, and `fuse` was given no example inputs.

    Example:
        >>> rows = epiconv.report(epiconv.fuse(model)).rows
    """
    known = vars(model).get("_epiconv_rows") if isinstance(model, nn.Module) else None
    if known is None:
        raise TypeError(
            f"report takes a model that epiconv.fuse returned, not a {type(model).__name__} without: call "
            "epiconv.report(epiconv.fuse(model, example_inputs))"
        )
    if measure and not any(isinstance(each, Fused) and each.forms is not None for each in known):
        raise ValueError(
            "measure=True needs example inputs, whose forms it takes: epiconv.fuse(model, example_inputs)"
        )
    rows = tuple([_row(model, each, measure) for each in _in_turn(known, measure)])
    text = Report(_text(rows))
    text.rows = rows
    print(text)
    return text


def _in_turn(known: Sequence[Fused | NotFused], measure: bool) -> Iterable[Fused | NotFused]:
    """With a progress bar, if it takes time and rich is there."""
    if not measure:
        return known
    try:
        from rich.progress import track
    except ModuleNotFoundError:
        return known
    return track(known, description="measuring", transient=True)


def _row(model: nn.Module, known: Fused | NotFused, measure: bool) -> Row:
    if isinstance(known, NotFused):
        return Row(known.conv, False, "", (), known.reason, None, None)
    root = model.get_submodule(known.root)
    plan = measured = None
    if isinstance(root, FusedForward) and known.forms is not None and None not in known.forms:
        site, forms = root._epiconv_root.sites[known.site], [form for form in known.forms if form]
        plan = _plan(root, site, forms)
        if measure:
            measured = _measured(root, site, forms)
    return Row(known.conv, True, known.program, known.modules, known.ended_by, plan, _gain(plan), measured)


def _measured(root: nn.Module, site: Site, forms: Sequence[Form]) -> tuple[float, float]:
    """Milliseconds of a site, and of its operations as they were written."""
    from epiconv.bench.timing import interleave, stopwatch_for

    device = find(root, site.plan.conv).weight.device
    given = [_random(form, device) for form in forms]
    ways: dict[str, Callable[[], object]] = {
        "fused": lambda: site.run(root, *given),
        "unfused": lambda: site.plan.unfused(root, *given),
    }
    with torch.no_grad():
        timings = interleave(_graphs(ways, device), stopwatch_for(device), seconds=0.1, warm_up=0.1)
    return timings["fused"].seconds * 1e3, timings["unfused"].seconds * 1e3


def _random(form: Form, device: torch.device) -> torch.Tensor:
    tensor = torch.empty_strided(form.shape, form.strides, dtype=form.dtype, device=device)
    return tensor.normal_() if form.dtype.is_floating_point else tensor.zero_()


def _graphs(
    ways: dict[str, Callable[[], object]], device: torch.device
) -> Mapping[str, Callable[[], object]]:
    """CUDA graphs of them, if all can be captured: launching from the host takes as long as a small layer."""
    if device.type != "cuda":
        return ways
    from epiconv.bench.timing import CapturedCall

    for way in ways.values():
        way()
    try:
        return {name: CapturedCall(way, device) for name, way in ways.items()}
    except RuntimeError:
        return ways


def _plan(root: nn.Module, site: Site, forms: Sequence[Form]) -> Plan | None:
    """How a site runs, on tensors of the forms without values."""
    conv: Any = find(root, site.plan.conv)
    device = conv.weight.device
    input, *data = [
        torch.empty_strided(form.shape, form.strides, dtype=form.dtype, device=device) for form in forms
    ]
    with torch.no_grad():
        prepared = site.prepare(root, input, data)
        if prepared is None:
            return None  # the site runs as it was written
        conv, operands, arguments = prepared
        words = dict(zip(ARGUMENT_NAMES, arguments, strict=True))
        return explain(input, conv.weight, conv.bias, epilogue=site.plan.program(*operands), **words)


def _gain(plan: Plan | None) -> float | None:
    if plan is None or plan.predicted_ms is None:
        return None
    otherwise = dict(plan.ways).get("cudnn+epilogue")
    return None if otherwise is None else otherwise - plan.predicted_ms


def _text(rows: Sequence[Row]) -> str:
    fused = [row for row in rows if row.fused]
    lines = [f"{len(fused)} of {len(rows)} convolutions are fused with what follows them"]
    for row in fused:
        lines += [f"  {row.module}", f"    {', '.join(row.modules[1:]) or 'functions only'}: {row.program}"]
        if row.plan is not None:
            lines.append(f"    {row.plan.path}, {row.plan.kernel}")
            lines += [f"    predicted: {_prediction(row)}"] if row.plan.predicted_ms is not None else []
        if row.measured_ms is not None:
            ours, theirs = row.measured_ms
            lines.append(f"    measured: {ours:.4f} ms, as it was written {theirs:.4f} ms")
        if row.reason:
            lines.append(f"    ends there: {row.reason}")
    if len(fused) < len(rows):
        lines.append("not fused")
        lines += [f"  {row.module}: {row.reason}" for row in rows if not row.fused]
    gains = [row.gain_ms for row in fused if row.gain_ms is not None]
    if gains:
        lines.append(
            f"predicted gain over convolutions with a pass behind them: {sum(gains):.4f} ms, "
            f"of {len(gains)} sites"
        )
    elif any(row.plan for row in fused):
        lines.append("no gain is predicted: predictions are made for tensors on a card")
    elif fused:
        lines.append("no gain is predicted: fuse(model, example_inputs) was called without example inputs")
    measured = [row.measured_ms for row in fused if row.measured_ms is not None]
    if measured:
        ours, theirs = (sum(times) for times in zip(*measured, strict=True))
        lines.append(
            f"measured: {ours:.4f} ms, as they were written {theirs:.4f} ms, of {len(measured)} sites"
        )
    return "\n".join(lines)


def _prediction(row: Row) -> str:
    assert row.plan is not None
    ways = ", ".join(f"{way} {ms:.4f} ms" for way, ms in row.plan.ways)
    return f"{row.plan.predicted_ms:.4f} ms; of the ways {ways}"
