"""The bounds of a GroupNorm (`fuzz_norms.py`) against what kernels compute, in float32 and in their order,
and against what broken ones would.
"""

import math

import fuzz_norms
import pytest
import torch
import torch.nn.functional as F

from epiconv.program import Program


def chained(terms):
    """Sums along dimension 0, one after the other."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def of_portable_tiles(v):
    """Means and sums of squared distances of every 256 positions, (tile, N, K), as the portable kernel takes
    them where eight threads share a filter; and how many values there are."""
    means, squares, counts = [], [], []
    for tile in v.split(256, dim=2):
        pivot, shares = tile[..., 0], tile.permute(2, 0, 1).split(32)
        count = float(tile.shape[2])
        mean = pivot + sum(chained(share - pivot) for share in shares) / count
        means.append(mean)
        squares.append(sum(chained((share - mean).square()) for share in shares))
        counts.append(count)
    return torch.stack(means), torch.stack(squares), torch.tensor(counts)


def of_pass(v):
    """The same of the pass: threads take distances from a value of their own, and are merged in pairs."""
    of_tiles = []
    for tile in v.split(1024, dim=2):
        values = F.pad(tile, (0, -tile.shape[2] % 32), value=math.nan).unflatten(2, (-1, 32))
        of_threads = values.permute(2, 3, 0, 1)  # (chain, thread, N, K)
        exists = ~of_threads.isnan()
        distances = torch.where(exists, of_threads - of_threads[0], 0.0)
        counts = exists.sum(0).float()
        sums, squares = chained(distances), chained(distances.square())
        offset = torch.where(counts > 0, sums / counts, 0.0)
        mean = torch.where(counts > 0, of_threads[0] + offset, 0.0)
        moments = [counts, mean, (squares - sums * offset).clamp(min=0)]
        while moments[0].shape[0] > 1:
            left, right = zip(*(of.chunk(2) for of in moments), strict=True)
            moments = merged(left, right)
        of_tiles.append([of[0] for of in moments])
    counts, means, squares = (torch.stack(of) for of in zip(*of_tiles, strict=True))
    return means, squares, counts[:, 0, 0]


def merged(left, right):
    (n, mean, squares), (m, other, more) = left, right
    weight, distance = m / (n + m).clamp(min=1), other - mean
    result = n + m, mean + distance * weight, squares + more + distance * distance * n * weight
    return [torch.where(m == 0, a, b) for a, b in zip(left, result, strict=True)]


def normalised(v, groups, eps, statistics):
    """GroupNorm of (N, K, L) in float32, of statistics that are merged in float64."""
    means, squares, counts = (of.double() for of in statistics)
    counts = counts[:, None, None].expand_as(means)

    def of_groups(tensor):
        return tensor.unflatten(2, (groups, -1)).sum((0, 3), keepdim=True)

    total = of_groups(counts)
    mean = of_groups(means * counts) / total
    apart = (means.unflatten(2, (groups, -1)) - mean).flatten(2).square()
    variance = of_groups(squares + counts * apart) / total
    shape, size = (v.shape[0], groups, 1), v.shape[1] // groups
    mean, scale = mean.view(shape), (variance + eps).rsqrt().view(shape)
    rounded = (-mean).float()
    shift = -(rounded + mean) * scale
    mean, scale, shift = (of.float().repeat_interleave(size, 1) for of in (rounded, scale, shift))
    return (v + mean) * scale + shift


# What is normalised, what is computed before it, groups, eps.
NORMS = {
    "integers": (lambda v: v, "", 4, 1e-5),
    "a mean of 1000": (lambda v: (v / 64).round() + 1000, "", 4, 1e-5),
    "no integers": (lambda v: v, "sigmoid", 4, 1e-5),
    "constants": (lambda v: torch.arange(41.0, 57.0).view(16, 1).expand_as(v), "", 16, 1e-5),
    "little beside eps": (lambda v: v, "mul", 4, 1e-5),
    "a group for each filter": (lambda v: v, "", 16, 1e-8),
    "one group": (lambda v: v + 3, "", 1, 0.5),
}
TEXTS = {
    "": "",
    "mul": f"v1 = mul(v0, {2.0**-14}); ",
    "sigmoid": "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sigmoid(v2); ",
}
PORTABLE = "fprop_sm80_tf32_f32_interpreted_chain"
WAYS = {
    f"{PORTABLE}_with_statistics, elementwise_cuda_f32_interpreted_chain": of_portable_tiles,
    f"{PORTABLE}, group_norm_cuda_f32_interpreted_chain": of_pass,
}


def within(case, kernel, statistics):
    """Whether a norm by that kernel, of those statistics, is within its bounds."""
    torch.manual_seed(0)
    make, before, groups, eps = NORMS[case]
    v = make(torch.randint(-110, 111, (2, 16, 1500)).float())
    text = TEXTS[before]
    last = text.count(";")
    program = Program(f"{text}v{last + 1} = group_norm(v{last}, {groups}, eps={eps})")
    operands = [torch.full((16, 1), value, dtype=torch.double) for value in (3.0, 2.0**-6)]
    operands = operands if before == "sigmoid" else []
    bias = torch.zeros(16, 1, dtype=torch.double)
    bounds = fuzz_norms.follow(program, v.double(), bias, operands, kernel, "tf32")
    if before:
        v = ((v + 3) * 2.0**-6).sigmoid() if operands else v * 2.0**-14
    got = normalised(v, groups, eps, statistics(v)).double()
    return bool(((got - bounds.value).abs() <= bounds.error).all())


@pytest.mark.parametrize("kernel", WAYS)
@pytest.mark.parametrize("case", NORMS)
def test_bounds_hold_for_what_kernels_compute(case, kernel):
    assert within(case, kernel, WAYS[kernel])


def a_tile_twice(v):
    means, squares, counts = of_portable_tiles(v)
    return means[[0, 0, *range(2, len(means))]], squares, counts


def a_position_left_out(v):
    return of_portable_tiles(v[..., 1:])


def squares_of_another_tile(v):
    means, squares, counts = of_portable_tiles(v)
    return means, squares[[1, *range(1, len(means))]], counts


def the_last_tile_counted_as_whole(v):
    means, squares, counts = of_portable_tiles(v)
    return means, squares, torch.full_like(counts, 256)


BROKEN = (a_tile_twice, a_position_left_out, squares_of_another_tile, the_last_tile_counted_as_whole)


@pytest.mark.parametrize("kernel", WAYS)
@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__)
def test_wrong_statistics_are_out_of_bounds(broken, kernel):
    assert not within("a group for each filter", kernel, broken)


def in_one_pass(v):
    tiles = [tile.permute(2, 0, 1) for tile in v.split(256, dim=2)]
    counts = torch.tensor([float(len(tile)) for tile in tiles])
    means = torch.stack([chained(tile) / len(tile) for tile in tiles])
    squares = torch.stack([chained(tile.square()) for tile in tiles])
    return means, squares - counts[:, None, None] * means.square(), counts


def times_a_rounded_reciprocal(v):
    means, squares, counts = [], [], []
    for tile in v.split(49, dim=2):
        values = tile.permute(2, 0, 1)
        means.append(chained(values) * (torch.ones(()) / len(values)))
        squares.append(chained((values - means[-1]).square()))
        counts.append(float(len(values)))
    return torch.stack(means), torch.stack(squares), torch.tensor(counts)


def test_statistics_that_lose_digits_are_out_of_bounds():
    kernel = next(iter(WAYS))
    assert not within("a mean of 1000", kernel, in_one_pass)
    assert not within("constants", kernel, times_a_rounded_reciprocal)
    # Where no mean is far from zero both are as good as any.
    assert within("integers", kernel, in_one_pass)
    assert within("integers", kernel, times_a_rounded_reciprocal)


def test_a_norm_in_float64_has_bounds_of_float64():
    torch.manual_seed(0)
    v, program = torch.randint(-110, 111, (2, 16, 1500)).double(), Program("v1 = group_norm(v0, 4)")
    kernel = f"{PORTABLE}, group_norm_cuda_f64_interpreted"
    bounds = fuzz_norms.follow(program, v, None, [], kernel, "tf32", in_double=True)
    assert 0 < bounds.error.max() < 1e-10
    for dtype, inside in ((torch.float64, True), (torch.float32, False)):
        got = F.group_norm(v.to(dtype), 4).double()
        assert bool(((got - bounds.value).abs() <= bounds.error).all()) == inside


def test_what_float32_cannot_keep_is_bounded():
    program = Program("v1 = mul(v0, v0); v2 = add(v1, v0)")
    exact = torch.arange(2.0**12 - 8, 2.0**12 - 1).double().view(1, 1, -1)
    assert fuzz_norms.follow(program, exact, None, [], PORTABLE, "tf32").error == 0.0
    more = exact + 7
    bounds = fuzz_norms.follow(program, more, None, [], PORTABLE, "tf32")
    off = (more.float() * more.float() + more.float()).double() - bounds.value
    assert off.abs().max() > 0 and (off.abs() <= bounds.error).all() and bounds.error.max() < 4
