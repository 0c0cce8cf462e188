"""The core's `BackwardPlan` on the tensors of a `Case`, and what torch's autograd gives in float64."""

import torch
from program_strategies import empty, output_dtype, tensors_of

from epiconv import _core
from epiconv.core_tensors import dtype_name, operand_layout
from epiconv.program import Program, compute_dtype, operand_signature
from epiconv.steps import evaluate, resolve


def wanted_names(case):
    """Every tensor that can have a gradient: "y", "bias", "b0" and so on."""
    names = ["y"] if case.bias is None else ["y", "bias"]
    return (
        *names,
        *[f"b{i}" for i, spec in enumerate(case.operands) if getattr(torch, spec.dtype).is_floating_point],
    )


def needs_of(case, wanted, saved="nothing"):
    """The core's `BackwardNeeds`."""
    program = Program(case.text)
    wants = [f"b{i}" in wanted for i in range(program.num_operands)]
    return _core.backward_needs(program.core, "y" in wanted, "bias" in wanted, wants, saved)


def given_names(case, wanted, needs):
    """Those of the wanted gradients that there are."""
    given = [
        name
        for name in wanted
        if name.startswith("b") and name != "bias" and needs.gives_operand[int(name[1:])]
    ]
    if "y" in wanted and needs.gives_input:
        given.append("y")
    if "bias" in wanted and needs.gives_bias:
        given.append("bias")
    return tuple(given)


def _poison(tensor):
    """NaN in place of what must not be read."""
    return (
        None if tensor is None else torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 99)
    )


def on_device(tensor, device):
    """A copy of a tensor's memory on a device, of the same strides and the same place in it."""
    if tensor is None or device == "cpu" or tensor.dim() == 0:
        return tensor
    memory = tensor.untyped_storage().cuda()
    return torch.empty(0, dtype=tensor.dtype, device=device).set_(
        memory, tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def run_backward(
    case,
    gradient,
    wanted=None,
    saved="conv",
    threads=1,
    layout="contiguous",
    device="cpu",
    compiled_for=0,
):
    """The gradients that the core gives, by name; those wanted that there are not are missing.

    Fails where it writes beside one of them. What it says that it does not read is NaN.

    Args:
        case: its `output_layout` is that of the input's gradient.
        gradient: of the output.
        wanted: names, all by default.
        saved: what is given: "conv", "output" or "nothing".
        threads: at most.
        layout: of the gradients that are not summed.
        device: "cpu" or "cuda"; tensors are given on the CPU, and come back there.
        compiled_for: of the plan.
    """
    wanted = wanted_names(case) if wanted is None else wanted
    program = Program(case.text)
    y, operands, bias = tensors_of(case)
    dtype = output_dtype(case, operands)
    compute = compute_dtype(program, y.dtype, operand_signature(operands))
    needs = needs_of(case, wanted, saved)
    given = given_names(case, wanted, needs)
    output, mean, rstd = run_forward(case)

    targets, buffers = {}, {}
    for name in given:
        tensor = {"y": y, "bias": bias}.get(name)
        tensor = operands[int(name[1:])] if tensor is None else tensor
        is_whole = name == "y" or tensor.shape == y.shape
        like = (case.output_layout if name == "y" else layout) if is_whole else "contiguous"
        targets[name], buffers[name] = empty(tensor.shape, tensor.dtype, like, fill=123.0)

    def place(name):
        return (dtype_name(targets[name].dtype), targets[name].stride()) if name in targets else None

    names = [f"b{i}" for i in range(len(operands))]
    kept = {"conv": y, "output": output, "nothing": None}[saved]
    plan = _core.BackwardPlan(
        program.core,
        device,
        compiled_for,
        y.shape,
        dtype_name(y.dtype),
        dtype_name(dtype),
        saved,
        () if kept is None else kept.stride(),
        dtype_name(gradient.dtype),
        gradient.stride(),
        None if bias is None else operand_layout(bias),
        [operand_layout(b) for b in operands],
        place("y"),
        place("bias"),
        [place(name) for name in names],
    )
    how = "" if device == "cpu" else "_compiled" if compiled_for else "_interpreted"
    assert plan.kernel == f"backward_{device}_{'f64' if compute == torch.float64 else 'f32'}{how}"
    read = [b if reads else _poison(b) for b, reads in zip(operands, needs.reads_operand, strict=True)]
    read_bias = bias if needs.reads_bias else _poison(bias)
    moved = [on_device(t, device) for t in (kept, gradient, mean, rstd, read_bias, *read)]
    kept, gradient, mean, rstd, read_bias, *read = moved
    written = {name: on_device(target, device) for name, target in targets.items()}
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0

    def target_address(name):
        return written[name].data_ptr() if name in written else 0

    plan.run(
        0 if kept is None else kept.data_ptr(),
        gradient.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        target_address("y"),
        0 if read_bias is None else read_bias.data_ptr(),
        target_address("bias"),
        *(workspace.data_ptr(), 0, stream),
        threads,
        tuple([float(b) if b.dim() == 0 else b.data_ptr() for b in read]),
        tuple([target_address(name) for name in names]),
    )
    results = {}
    for name, target in targets.items():
        if device != "cpu":
            target.untyped_storage().copy_(written[name].untyped_storage())
        results[name] = target.clone()
        target.fill_(123.0)
        assert (buffers[name] == 123.0).all(), f"it wrote beside the gradient of {name}"
    return results


def run_forward(case):
    """Output, mean and rstd of a case through the core."""
    program = Program(case.text)
    y, operands, bias = tensors_of(case)
    dtype = output_dtype(case, operands)
    compute = compute_dtype(program, y.dtype, operand_signature(operands))
    groups = [step.arguments[1] for step in program.steps if step.name == "group_norm"]
    mean, rstd = (torch.empty(y.shape[0], *groups, dtype=compute) for _ in range(2))
    output, _ = empty(y.shape, dtype, case.output_layout)
    plan = _core.EpiloguePlan(
        program.core,
        "cpu",
        y.shape,
        dtype_name(y.dtype),
        y.stride(),
        dtype_name(dtype),
        output.stride(),
        None if bias is None else operand_layout(bias),
        [operand_layout(b) for b in operands],
    )
    plan.run_with_statistics(
        y.data_ptr(),
        output.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        *(0, 0, 0),
        case.threads,
        *[float(b) if b.dim() == 0 else b.data_ptr() for b in operands],
    )
    return output, mean, rstd


def expected_gradients(case, gradient, wanted=None, move=0.0, compute=torch.float64):
    """What torch's autograd makes of the statements, by name; None where it finds no path.

    A cast has the derivative 1 here: torch would round the gradient as well.

    Args:
        case: as for `run_backward`.
        gradient: of the output.
        wanted: names, all by default.
        move: relative change of every floating tensor first.
        compute: dtype of values and gradients.
    """
    wanted = wanted_names(case) if wanted is None else wanted
    program = Program(case.text)
    y, operands, bias = tensors_of(case)
    leaves = {}

    def leaf(name, tensor):
        if tensor.dtype == torch.bool:
            return tensor
        tensor = tensor.to(compute) * (1 + move)
        if name in wanted:
            leaves[name] = tensor.requires_grad_()
        return tensor

    values = [leaf("y", y)]
    bound = [leaf(f"b{i}", b) for i, b in enumerate(operands)]
    if bias is not None:
        values[0] = values[0] + leaf("bias", bias).view(-1, *[1] * (y.dim() - 2))
    for step in program.steps:
        values[-1] = _with_gaps(values[-1])
        if step.name == "cast":
            before = (
                values[step.arguments[0][1]] if step.arguments[0][0] == "v" else bound[step.arguments[0][1]]
            )
            after = evaluate(step, [v.detach() for v in values], [b.detach() for b in bound], compute)
            values.append(_StraightThrough.apply(before, after) if before.requires_grad else after)
        elif step.name == "hardsigmoid":  # of whose derivative torch rounds the sixth to float32
            x = values[step.arguments[0][1]]
            outside = torch.nn.functional.hardsigmoid(x.detach())
            values.append(torch.where((x > -3) & (x < 3), x / 6 + 0.5, outside))
        elif step.name == "group_norm":
            values.append(_group_norm(*resolve(step, values, bound)))
        else:
            values.append(evaluate(step, values, bound, compute))
    result = values[-1]
    if not result.requires_grad:
        return dict.fromkeys(wanted)
    found = torch.autograd.grad(result, list(leaves.values()), gradient.to(compute), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _with_gaps(value):
    """A view with gaps: torch's vector loops on the CPU differ from its others in derivatives at NaN."""
    return torch.stack((value, value.detach()), -1)[..., 0]


def _group_norm(x, groups, weight, bias, eps):
    """By its definition: torch's backward pass crashes where only some of its gradients are wanted."""
    grouped = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    result = ((grouped - mean) * (variance + eps).rsqrt()).view(x.shape)
    ones = [1] * (x.dim() - 2)
    if weight is not None:
        result = result * weight.view(-1, *ones)
    return result if bias is None else result + bias.view(-1, *ones)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, before, after):
        return after.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None
