"""Every row of the operation table against torch's operation of that name: results and derivatives."""

import inspect
import itertools
import math

import pytest
import torch

from epiconv import _core

OPERATIONS = {info.name: info for info in _core.operations() if not info.is_terminal}
DTYPES = [torch.float32, torch.float64]
DTYPE_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
VALUE_KINDS = ("tensor", "any", "optional", "channel")

# Written parameters, each combination in turn. An operation with such parameters must be listed.
PARAMETERS = {
    "add": [{"alpha": value} for value in (1.0, -1.0, 0.5, 3.25)],
    "sub": [{"alpha": value} for value in (1.0, -1.0, 0.5, 3.25)],
    # Exact in float32 together with their predecessor, the exponent of the derivative.
    "pow": [{"exponent": value} for value in (0, 1, 2, 3, 4, 5, 0.5, -0.5, -1, -2, -3, 1.5, 2.5, -1.5, 0.25)],
    "leaky_relu": [{"negative_slope": value} for value in (0.01, 0.0, -0.5, 2.0)],
    "elu": [{"alpha": value} for value in (1.0, 0.5, 0.0, -2.0)],
    "celu": [{"alpha": value} for value in (1.0, 0.75, 3.0, -2.0)],
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "softplus": [
        {"beta": 1.0, "threshold": 20.0},
        {"beta": 0.5, "threshold": 3.0},
        {"beta": 3.0, "threshold": 1000.0},
        {"beta": -1.0, "threshold": 20.0},
    ],
    "hardtanh": [{"min_val": -1.0, "max_val": 1.0}, {"min_val": 0.25, "max_val": 3.0}],
    "hardshrink": [{"lambd": value} for value in (0.5, 0.0, 2.0)],
    "softshrink": [{"lambd": value} for value in (0.5, 0.0, 2.0)],
    "threshold": [{"threshold": 0.5, "value": -2.0}, {"threshold": 0.0, "value": 0.0}],
    "cast": [{"dtype": dtype} for dtype in DTYPE_NUMBERS],
}

# Where an operation changes its branch, for the numbers above.
BREAKPOINTS = {
    "relu6": [6.0],
    "hardswish": [3.0],
    "hardsigmoid": [3.0],
    "hardtanh": [0.25, 1.0, 3.0],
    "hardshrink": [0.5, 2.0],
    "softshrink": [0.5, 2.0],
    "threshold": [0.5],
    "softplus": [20.0, 6.0, 1000.0 / 3.0],
    # Largest finite, first infinite, smallest normal and half the smallest denormal of the 16-bit types.
    "cast": [65504.0, 65520.0, 2.0**-14, 2.0**-25, 3 * 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8,
             1 + 3 * 2.0**-8, 3.3961775e38, 2.0**-134, 3 * 2.0**-134],
}  # fmt: skip

# torch's backends and versions disagree about which of two equal zeros they return, and about the branch
# that 0 takes in elu, which shows where alpha is negative.
ZERO_SIGN_VARIES = {"minimum", "maximum", "clamp", "relu", "relu6", "hardtanh", "elu", "softshrink"}

# Derivatives in which terms of order 1 cancel; their error is counted in ulps of 1.
CANCELLING_DERIVATIVE = {"gelu", "silu", "mish", "sigmoid", "tanh", "logsigmoid", "softsign"}
DERIVATIVE_ULP = 8
# 1 - tanh ** 2 is multiplied by a factor that is about 20 where the last ulp of tanh still counts.
STEEP_DERIVATIVE_ULP = {"gelu": 32, "mish": 32}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def cases():
    for info in OPERATIONS.values():
        written = [argument for argument in info.arguments if argument.kind not in VALUE_KINDS]
        for parameters in PARAMETERS[info.name] if written else [{}]:
            words = ",".join(f"{key}={value}" for key, value in parameters.items())
            yield pytest.param(info, parameters, id=f"{info.name}({words})")


def value_arguments(info):
    return [argument.name for argument in info.arguments if argument.kind in VALUE_KINDS]


def resolve(info):
    function = torch
    for part in info.torch_path.split("."):
        function = getattr(function, part)
    return function


def evaluate(info, values, parameters):
    """Forward and the derivatives for the value arguments given; missing ones count as absent."""
    dtype, place, count = values[0].dtype, values[0].device, values[0].numel()
    inputs = [value.contiguous() for value in values]
    inputs += [torch.full((count,), math.nan, dtype=dtype, device=place) for _ in range(3 - len(values))]
    results = [torch.full((count,), -123.0, dtype=dtype, device=place) for _ in range(4)]
    numbers = []
    for argument in info.arguments:
        if argument.kind == "choice":
            numbers.append(float(argument.choices.index(parameters[argument.name])))
        elif argument.kind == "dtype":
            numbers.append(float(DTYPE_NUMBERS[parameters[argument.name]]))
        elif argument.kind == "number":
            numbers.append(float(parameters[argument.name]))
    numbers += [math.nan] * (2 - len(numbers))
    cuda = place.type == "cuda"
    _core.evaluate_operation(
        name=info.name,
        dtype=str(dtype).removeprefix("torch."),
        count=count,
        inputs=tuple(value.data_ptr() for value in inputs),
        parameters=tuple(numbers),
        results=tuple(result.data_ptr() for result in results),
        device=place.index or 0 if cuda else -1,
        stream=torch.cuda.current_stream(place).cuda_stream if cuda else 0,
    )
    return results[0], results[1 : 1 + len(values)]


def spread(values):
    """A view with gaps. On the CPU torch's vector loops treat NaN, in derivatives, and the sign of zero
    differently from its scalar ones; the scalar ones, taken for such views, agree with CUDA."""
    buffer = torch.zeros(2 * values.numel(), dtype=values.dtype, device=values.device)
    buffer[::2] = values
    return buffer[::2]


def call_torch(info, arguments, parameters):
    function = resolve(info)
    if info.name == "cast":
        return arguments["input"].to(parameters["dtype"]).to(arguments["input"].dtype)
    if info.name == "where":
        arguments = {**arguments, "condition": arguments["condition"] != 0}
    if info.name == "prelu":
        return function(input=arguments["input"][None], weight=arguments["weight"])[0]
    return function(**arguments, **parameters)


def reference(info, arguments, parameters, with_gaps=True):
    """torch's result, and its derivative for every tensor argument."""
    leaves = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            value = (spread(value) if with_gaps else value.clone()).requires_grad_()
        leaves[name] = value
    tensors = [value for value in leaves.values() if isinstance(value, torch.Tensor)]
    result = call_torch(info, leaves, parameters)
    if info.is_predicate:
        return result.to(tensors[0].dtype), [torch.zeros_like(value) for value in tensors]
    ones = torch.ones_like(result)
    gradients = torch.autograd.grad(result, tensors, spread(ones) if with_gaps else ones, allow_unused=True)
    # where's condition takes no part in the graph.
    gradients = [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(tensors, gradients, strict=True)
    ]
    return result.detach(), gradients


def special_values(info, dtype, device):
    finfo = torch.finfo(dtype)
    denormal = finfo.smallest_normal * finfo.eps
    magnitudes = [
        denormal,
        3 * denormal,
        finfo.smallest_normal,
        1e-30,
        1e-10,
        1e-4,
        0.1,
        0.3,
        0.5,
        1.0,
        1.5,
        2.0,
    ]
    magnitudes += [
        2.5,
        3.0,
        4.0,
        5.5,
        7.0,
        12.0,
        17.0,
        25.0,
        60.0,
        87.0,
        89.0,
        103.0,
        700.0,
        720.0,
        745.0,
        1e4,
    ]
    magnitudes += [1e10, 1e20, 1e30, finfo.max]
    near = [0.0, *BREAKPOINTS.get(info.name, [])]
    if len(value_arguments(info)) > 1:
        # The product of three such lists must stay small.
        magnitudes = [denormal, finfo.smallest_normal, 0.3, 1.0, 3.0, 1e20, finfo.max]
        near += [1.0]
    centre = torch.tensor(near, dtype=dtype)
    away = torch.full_like(centre, math.inf)
    positive = [
        torch.tensor(magnitudes, dtype=dtype),
        centre,
        centre.nextafter(away),
        centre.nextafter(-away),
    ]
    positive = torch.cat([*positive, torch.tensor([math.inf, math.nan], dtype=dtype)])
    return torch.cat([positive, -positive]).to(device)


def ordinals(values):
    """Integers in the order of the values, neighbours differing by 1; both zeros are 0."""
    bits = values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    lowest = torch.iinfo(bits.dtype).min
    bits = bits.to(torch.int64)
    return torch.where(bits < 0, lowest - bits, bits)


def ulps(values):
    magnitude = values.abs().clamp(max=torch.finfo(values.dtype).max / 2)
    return magnitude.nextafter(torch.full_like(magnitude, math.inf)) - magnitude


def assert_close(actual, expected, bound, inputs, what, unit=None, zero_signs=True):
    """Within `bound` ulps, or units where those are given; NaN, infinities and signs of zero exactly."""
    actual, expected = actual.detach(), expected.detach()
    finite = actual.isfinite() & expected.isfinite()
    wrong = (actual.isnan() != expected.isnan()) | (~finite & ~expected.isnan() & (actual != expected))
    apart = (ordinals(actual) - ordinals(expected)).abs()
    too_far = apart > bound
    if unit is not None:
        too_far &= (actual - expected).abs() > bound * unit
    wrong |= finite & too_far
    if zero_signs:
        wrong |= (actual == 0) & (expected == 0) & (actual.signbit() != expected.signbit())
    if wrong.any():
        shown = wrong.nonzero().flatten()[:12].tolist()
        lines = [
            f"  {[value[i].item() for value in inputs]}: {actual[i].item()!r}, torch {expected[i].item()!r}"
            for i in shown
        ]
        raise AssertionError("\n".join([f"{what}: {int(wrong.sum())} of {wrong.numel()} differ", *lines]))


def forward_bound(info, dtype, device):
    # torch on CUDA multiplies doubles by 1 / 6 rounded to float here.
    if device == "cuda" and dtype == torch.float64 and info.name in ("hardswish", "hardsigmoid"):
        return info.max_ulp + 2**29
    return info.max_ulp


def forward_unit(info, values):
    """What counts as an ulp where an ulp of an intermediate is many of the result."""
    finite = values[0].nan_to_num(posinf=1.0, neginf=1.0)
    if info.name == "gelu":
        # A factor is 1 + f with f near -1.
        return ulps(finite)
    if info.name == "mish":
        # exp(input) is denormal before the result is.
        return finite.abs() * ulps(torch.zeros_like(finite))
    return None


def derivative_bound(info, dtype):
    # On both of torch's backends.
    if dtype == torch.float64 and info.name == "hardsigmoid":
        return DERIVATIVE_ULP + 2**29
    return STEEP_DERIVATIVE_ULP.get(info.name, DERIVATIVE_ULP)


def compare(info, arguments, parameters, device, with_gaps=True, derivatives=True):
    """`arguments` are tensors, numbers or None by name, in signature order."""
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    count, dtype = tensors[0].numel(), tensors[0].dtype
    none_is = {"min": -math.inf, "max": math.inf}
    values = []
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            number = none_is[name] if value is None else value
            value = torch.full((count,), number, dtype=dtype, device=device)
        values.append(value)
    forward, gradients = evaluate(info, values, parameters)
    expected, expected_gradients = reference(info, arguments, parameters, with_gaps)
    assert_close(
        forward,
        expected,
        forward_bound(info, dtype, device),
        values,
        f"{info.name} {parameters}",
        forward_unit(info, values),
        with_gaps and info.name not in ZERO_SIGN_VARIES,
    )
    if not derivatives:
        return
    unit = torch.full_like(forward, torch.finfo(dtype).eps) if info.name in CANCELLING_DERIVATIVE else None
    ours = [
        (name, gradient)
        for (name, value), gradient in zip(arguments.items(), gradients, strict=True)
        if isinstance(value, torch.Tensor)
    ]
    for (name, gradient), wanted in zip(ours, expected_gradients, strict=True):
        assert_close(
            gradient,
            wanted,
            derivative_bound(info, dtype),
            values,
            f"d {info.name} / d {name} {parameters}",
            unit,
            with_gaps,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("info", "parameters"), list(cases()))
def test_special_values(info, parameters, dtype, device):
    special = special_values(info, dtype, device)
    names = value_arguments(info)
    grid = torch.cartesian_prod(*[special] * len(names)).reshape(-1, len(names))
    arguments = {name: grid[:, i].contiguous() for i, name in enumerate(names)}
    if info.name == "clamp":
        # Not min = max = inf: a max of None arrives as inf too, and has other derivatives.
        keep = ~((arguments["min"] == math.inf) & (arguments["max"] == math.inf))
        arguments = {name: value[keep] for name, value in arguments.items()}
    compare(info, arguments, parameters, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "bounds",
    [
        pair
        for pair in itertools.product([None, -1.0, 0.3, 3.0, -math.inf, math.inf, math.nan], repeat=2)
        if any(pair)
    ],
)
def test_clamp_to_numbers(bounds, dtype, device):
    info = OPERATIONS["clamp"]
    values = special_values(info, dtype, device)
    if device == "cuda" and None in bounds and any(bound != bound for bound in bounds):
        # torch on CUDA ignores a single bound that is NaN; its CPU kernels, and its own with two bounds,
        # return NaN everywhere, and so does this library on every device.
        both = [math.inf if bound is None else bound for bound in bounds]
        rest = [torch.full_like(values, bound) for bound in both]
        assert evaluate(info, [values, *rest], {})[0].isnan().all()
        return
    compare(info, {"input": values, "min": bounds[0], "max": bounds[1]}, {}, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", ["min", "max"])
def test_clamp_to_one_tensor(bound, dtype, device):
    info = OPERATIONS["clamp"]
    special = special_values(info, dtype, device)
    grid = torch.cartesian_prod(special, special)
    arguments = {"input": grid[:, 0].contiguous(), "min": None, "max": None}
    arguments[bound] = grid[:, 1].contiguous()
    compare(info, arguments, {}, device)


def sweep(dtype, device, count, seed):
    """Moderate values, every magnitude, and every bit pattern alike; none infinite or NaN."""
    generator = torch.Generator().manual_seed(seed)
    moderate = torch.randn(count, generator=generator, dtype=dtype) * 4
    even = torch.rand(count, generator=generator, dtype=dtype) * 60 - 30
    words = torch.int32 if dtype == torch.float32 else torch.int64
    bounds = torch.iinfo(words)
    bits = torch.randint(bounds.min, bounds.max, (count,), generator=generator, dtype=words).view(dtype)
    values = torch.cat([moderate, even, bits[bits.isfinite()]])
    return values[torch.randperm(values.numel(), generator=generator)].to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("info", "parameters"), list(cases()))
def test_sweep(info, parameters, dtype, device):
    columns = [sweep(dtype, device, 60_000, seed) for seed in range(len(value_arguments(info)))]
    count = min(column.numel() for column in columns)
    arguments = {name: column[:count] for name, column in zip(value_arguments(info), columns, strict=True)}
    if info.name == "gelu" and device == "cpu":
        # On some CPUs torch's kernel for vectors overflows where its input is more than half of the largest.
        values = arguments["input"]
        is_large = values.isfinite() & (values.abs() > torch.finfo(dtype).max / 4)
        large, arguments = values[is_large], {"input": values[~is_large]}
        assert torch.equal(evaluate(info, [large], parameters)[0], large.clamp(min=0))
    compare(info, arguments, parameters, device, with_gaps=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sign_of_zero_in_ties(dtype, device):
    """The larger zero is +0.0, the smaller -0.0, in whichever order they come."""
    zero = torch.zeros(1, dtype=dtype, device=device)
    bound = {"clamp": [zero, zero + 1], "hardtanh": [], "relu": [], "relu6": []}
    for name, rest in bound.items():
        parameters = {"min_val": 0.0, "max_val": 1.0} if name == "hardtanh" else {}
        result, _ = evaluate(OPERATIONS[name], [-zero, *rest], parameters)
        assert result.item() == 0 and not result.signbit().item(), name
    for name, negative in (("maximum", False), ("minimum", True)):
        for pair in ([zero, -zero], [-zero, zero]):
            result, _ = evaluate(OPERATIONS[name], pair, {})
            assert result.item() == 0 and result.signbit().item() is negative, name


def test_ties_split_or_choose():
    """Derivatives at ties, spelt out: these hold whatever torch is installed."""
    for name, values, parameters, expected in (
        ("minimum", [2.0, 2.0], {}, [0.5, 0.5]),
        ("maximum", [2.0, 2.0], {}, [0.5, 0.5]),
        ("clamp", [1.0, 1.0, 2.0], {}, [1.0, 0.0, 0.0]),
        ("clamp", [2.0, 1.0, 2.0], {}, [1.0, 0.0, 0.0]),
        ("relu", [0.0], {}, [0.0]),
        ("relu6", [6.0], {}, [0.0]),
        ("hardtanh", [1.0], {"min_val": -1.0, "max_val": 1.0}, [0.0]),
        ("hardsigmoid", [3.0], {}, [0.0]),
        ("hardswish", [3.0], {}, [1.0]),
        ("abs", [0.0], {}, [0.0]),
    ):
        tensors = [torch.tensor([value]) for value in values]
        _, gradients = evaluate(OPERATIONS[name], tensors, parameters)
        assert [gradient.item() for gradient in gradients] == expected, name


def test_names_are_unique():
    names = [info.name for info in _core.operations()]
    assert len(names) == len(set(names)) >= 44


@pytest.mark.parametrize("info", _core.operations(), ids=lambda info: info.name)
def test_row_is_described(info):
    assert callable(resolve(info))
    assert info.summary and not info.summary.endswith(".")
    assert 0 <= info.max_ulp <= 16
    assert info.arguments[0].kind in ("tensor", "any")
    names = [argument.name for argument in info.arguments]
    assert len(names) == len(set(names))
    optional = [argument.has_default for argument in info.arguments]
    assert optional == sorted(optional), "an argument without default after one that has it"


@pytest.mark.parametrize("info", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_signature_is_torchs(info):
    """torch takes the arguments by these names, in this order, with these defaults."""
    if info.name == "cast":
        pytest.skip("Tensor.to has no signature to compare with")
    values = torch.linspace(-3, 3, 50)
    tensors = {name: values + 0.25 * i for i, name in enumerate(value_arguments(info))}
    every, required = {}, {}
    for argument in info.arguments:
        if argument.kind in VALUE_KINDS:
            continue
        default = argument.default
        every[argument.name] = argument.choices[int(default)] if argument.kind == "choice" else default
        if not argument.has_default:
            every[argument.name] = required[argument.name] = PARAMETERS[info.name][0][argument.name]
    expected = call_torch(info, tensors, every)
    assert torch.equal(call_torch(info, tensors, required).nan_to_num(), expected.nan_to_num())

    function = resolve(info)
    words = [argument.name for argument in info.arguments]
    try:
        signature = list(inspect.signature(function).parameters.values())
    except ValueError:
        signature = None
    if signature and signature[0].name == "input":
        assert words == [parameter.name for parameter in signature[: len(words)]]
    elif info.name not in ("where", "prelu"):
        # A builtin: its order shows in a positional call; alpha and approximate are keyword-only.
        written = [value for word, value in every.items() if word not in ("alpha", "approximate")]
        positional = [*tensors.values(), *written]
        assert torch.equal(function(*positional).nan_to_num(), expected.nan_to_num())
