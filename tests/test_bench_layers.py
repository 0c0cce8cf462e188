"""The benchmark's layers of networks, and what it says about many cases."""

import json
import math
from collections import Counter

import pytest
import torch
from made_up_results import made_up

from epiconv.bench import ceilings, report, summary
from epiconv.bench.__main__ import main
from epiconv.bench.layers import LAYERS
from epiconv.bench.measurement import measure_case
from epiconv.bench.peers import LAYOUTS, make_case
from epiconv.bench.problems import PROBLEMS, RECIPE_IDS, SMALL_IDS, torch_convolution
from epiconv.bench.results import CaseResult, Check, Row
from epiconv.bench.selection import GROUPS, NETWORKS, find_problem, select_problems

CPU = torch.device("cpu")

# id: output, GFLOP.
KNOWN = {
    "resnet50-stem-b1": ((1, 64, 112, 112), 0.236),
    "resnet50-3x3-256-s2-b32": ((32, 256, 14, 14), 7.399),
    "resnet50-down-512-1024-b256": ((256, 1024, 14, 14), 52.613),
    "yolo-3x3-32-64-s2": ((8, 64, 160, 160), 7.550),
    "diffusion-3x3-320-b8": ((8, 320, 64, 64), 60.398),
    "vae-3x3-128-3": ((1, 3, 512, 512), 1.812),
    "deeplab-aspp-d12": ((8, 256, 33, 33), 82.217),
    "dcgan-up-512-256": ((128, 256, 16, 16), 34.360),
    "unet-up-128-64": ((8, 64, 256, 256), 8.590),
    "audio-k3-d9": ((16, 256, 8192), 51.540),
    "audio-up-256-128": ((16, 128, 8192), 17.180),
    "unet3d-down-64-128": ((2, 128, 16, 24, 24), 8.154),
    "unet3d-up-64-32": ((2, 32, 64, 96, 96), 4.832),
    "videovae-3x3x3-256": ((1, 256, 5, 32, 32), 18.119),
}


def test_ids_are_unique_and_begin_with_their_network():
    ids = [problem.id for problem in (*PROBLEMS, *LAYERS)]
    assert len(set(ids)) == len(ids)
    assert all(layer.id.startswith(f"{layer.network}-") for layer in LAYERS)
    assert all(problem.network == problem.half == "" for problem in PROBLEMS)


def test_halves_are_equal_and_hold_each_network():
    assert len(LAYERS) == 50
    assert Counter(layer.half for layer in LAYERS) == {"tuning": 25, "measured": 25}
    for network in NETWORKS:
        halves = Counter(layer.half for layer in LAYERS if layer.network == network)
        assert abs(halves["tuning"] - halves["measured"]) <= 2 and len(halves) == 2, network


def test_halves_are_of_like_size():
    floors = {"tuning": 0.0, "measured": 0.0}
    for layer in LAYERS:
        floors[layer.half] += ceilings.H200.floor(layer, 4, "tf32")[0]
    assert 0.75 < floors["measured"] / floors["tuning"] < 1.33


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.id)
def test_layer_has_the_output_that_torch_gives_it_and_fits(layer):
    x, weight = (torch.empty(shape, device="meta") for shape in (layer.input, layer.weight))
    y = torch_convolution(layer)(x, weight, None)
    assert tuple(y.shape) == layer.output
    for shape in layer.operand_shapes:
        assert torch.broadcast_shapes(shape, layer.output) == layer.output
    assert layer.bytes(4) < 3e9


@pytest.mark.parametrize("layer_id", KNOWN)
def test_known_layers(layer_id):
    layer = find_problem(layer_id)
    output, gflop = KNOWN[layer_id]
    assert layer.output == output
    assert layer.flops / 1e9 == pytest.approx(gflop, abs=0.0006)


def test_select_problems():
    def ids(words):
        return tuple(problem.id for problem in select_problems(words))

    assert ids("kb4,kb31") == ("kb4", "kb31")
    assert ids("recipes") == RECIPE_IDS
    assert ids("small kb20") == SMALL_IDS
    assert ids("all") == tuple(problem.id for problem in PROBLEMS)
    assert ids("layers") == tuple(layer.id for layer in LAYERS)
    assert set(ids("tuning")).isdisjoint(ids("measured"))
    assert sorted(ids("tuning,measured")) == sorted(ids("layers"))
    assert ids("deeplab kb4 deeplab-aspp-d12") == ("deeplab-3x3-512-d2", "deeplab-aspp-d12", "kb4")
    assert sum(len(GROUPS[network]) for network in NETWORKS) == 50
    assert len(GROUPS["resnet50"]) == 10
    with pytest.raises(ValueError, match=r"unknown problem 'vgg'.*kb31.*layers, tuning, measured, resnet50"):
        select_problems("vgg")
    with pytest.raises(ValueError, match="no problem is named"):
        select_problems(" ,")


def test_reduced_layer_keeps_one_operand_value_for_each_image():
    layer = find_problem("diffusion-3x3-320-b8")
    assert layer.operands == ((8, 320, 1, 1),)
    reduced = layer.reduced()
    assert (reduced.input, reduced.operands) == ((2, 320, 32, 32), ((2, 320, 1, 1),))
    assert (reduced.network, reduced.half) == ("diffusion", "tuning")
    assert find_problem("dcgan-up-512-256").reduced().operands == ((256, 1, 1), (256, 1, 1))


def test_float64_result_takes_the_images_of_operands_that_have_them():
    layer = find_problem("diffusion-3x3-320-b2").reduced()
    case = make_case(layer, "fp32", "nchw", CPU)
    x, embedding = case.argument_sets[0]
    y = torch.nn.functional.conv2d(x.double(), case.weight.double(), case.bias.double(), padding=1)
    expected = y[1:] + embedding.double()[1:]
    torch.testing.assert_close(case.float64_result((1,)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer_id",
    [
        "efficientnet-stem",
        "efficientnet-project-144-24",
        "dcgan-up-128-3",
        "unet-up-128-64",
        "audio-k3-d4",
        "audio-up-256-128",
        "unet3d-up-64-32",
        "diffusion-3x3-320-b8",
    ],
)
def test_reduced_layers_are_computed_as_by_eager(layer_id):
    layer = find_problem(layer_id).reduced()
    card = ceilings.Ceilings(1e10, "made up")
    for layout in LAYOUTS[: 1 if layer.spatial_rank == 1 else 2]:
        result = measure_case(
            layer, "fp32", layout, CPU, ["eager", "epiconv"], card, seconds=0.0, warm_up=0.0
        )
        check = result.epiconv.check
        assert result.ok and check.ok
        assert check.max_error < 1e-5 and check.batch_difference < 1e-5
        assert (result.network, result.half) == (layer.network, layer.half)


def test_geometric_mean():
    assert summary.geometric_mean([1.0, 4.0, None]) == pytest.approx(2.0)
    assert summary.geometric_mean([0.5, 1.0, 16.0]) == pytest.approx(2.0)
    assert summary.geometric_mean([None]) is None


def test_means_of_layers():
    results = [
        made_up("a", {"eager": 3.0, "compile": 2.0, "convolution": 1.0, "epiconv": 1.0}),
        made_up("b", {"eager": 4.0, "compile": 9.0, "convolution": 4.0, "epiconv": 0.5}),
        made_up("c", {"eager": 1.0, "convolution": 0.9}),  # epiconv did not run
        made_up("d", {"eager": 3.0, "epiconv": 2.0}, half="measured"),
        made_up("e", {"epiconv": 2.0}, half="measured", layout="channels_last"),
        made_up("kb1", {"eager": 100.0, "epiconv": 1.0}, half=""),
    ]
    last, measured, tuning = summary.layer_means(results)
    assert last == summary.LayerMeans("channels_last", "fp32", "measured", 1, None, None, 0, None, None, None)
    assert measured == summary.LayerMeans(
        "nchw", "fp32", "measured", 1, None, pytest.approx(1.5), 0, None, None, None
    )
    assert tuning == summary.LayerMeans(
        *("nchw", "fp32", "tuning", 2, pytest.approx(math.sqrt(1 * 8)), pytest.approx(math.sqrt(2 * 8))),
        *(0, None, None, None),
    )
    assert summary.layer_means(results[-1:]) == ()


def test_means_of_all_dtypes_where_there_are_several():
    ms = {"eager": 2.0, "convolution": 1.0, "epiconv": 1.0}
    results = [
        made_up("a", ms),
        made_up("a", {"eager": 0.5, "convolution": 4.0, "epiconv": 1.0}, dtype="bf16"),
        made_up("b", ms, half="measured"),
    ]
    means = {(mean.dtype, mean.half): mean for mean in summary.layer_means(results)}
    assert set(means) == {("fp32", "tuning"), ("bf16", "tuning"), ("all", "tuning"), ("fp32", "measured")}
    both = means["all", "tuning"]
    assert (both.layers, both.slow) == (2, 1)
    assert (both.bare, both.peer) == pytest.approx((2.0, 1.0))


def test_means_of_cold_caches_and_repacking():
    ms = {"eager": 1.0, "convolution": 1.0, "epiconv_repacking": 2.0, "epiconv": 1.0}
    cold = {"eager": 2.0, "convolution": 1.0, "epiconv": 1.0}
    results = [made_up("a", ms, cold_ms=cold), made_up("b", {**ms, "epiconv_repacking": 8.0})]
    (mean,) = summary.layer_means(results)
    assert (mean.cold_bare, mean.cold_peer, mean.repacking) == pytest.approx((1.0, 2.0, 4.0))
    text = printed(report.summaries(results, in_lines=True))
    assert lines_with(text, "tuning") == [["nchw", "fp32", "tuning", "2", "1.00", "1.00", "1.00", "2.00"]]


def test_layers_slower_than_the_best_peer():
    results = [
        made_up("just", {"eager": 1.0, "compile": 2.0, "epiconv": 1.049}),
        made_up("over", {"eager": 2.0, "compile": 1.0, "epiconv": 1.06}),
        made_up("bare", {"eager": 2.0, "convolution": 1.0, "epiconv": 1.5}),  # does not compete
        made_up("far", {"eager": 1.0, "epiconv": 2.0}, half="measured"),
        made_up("kb1", {"eager": 1.0, "epiconv": 2.0}, half=""),
        made_up("gone", {"eager": 1.0}),
    ]
    slow = summary.slow_layers(results)
    assert [result.problem for result in slow] == ["far", "over"]
    assert [result.peer_ratio for result in slow] == pytest.approx([0.5, 1 / 1.06])


def test_choices_slower_than_the_best_path():
    wrong = Row("epiconv_sm80", 0.1, 0.1, 0.1, 7, 1.0, 1.0, 50.0, None, Check(0.5, None, False), False)
    first = made_up("over", {"epiconv_cudnn": 1.0, "epiconv_sm90": 3.0, "epiconv": 1.11}, half="")
    results = [
        CaseResult(**{**vars(first), "rows": (*first.rows, wrong)}),
        made_up("just", {"epiconv_cudnn": 1.0, "epiconv_sm90": 3.0, "epiconv": 1.09}),
        made_up("far", {"epiconv_cudnn": 3.0, "epiconv_sm80": 1.0, "epiconv": 3.0}),
        made_up("none", {"eager": 1.0, "implicit_gemm": 1.0, "epiconv": 5.0}),
    ]
    assert [result.problem for result in summary.slow_choices(results)] == ["far", "over"]
    assert [getattr(r.best_path, "peer", None) for r in results] == [
        "epiconv_cudnn", "epiconv_cudnn", "epiconv_sm80", None,
    ]  # fmt: skip
    best = [result.as_json()["best_path"] for result in results]
    assert best[0] == {"peer": "epiconv_cudnn", "ms": 1.0, "ratio": pytest.approx(1 / 1.11)}
    assert best[3] is None


def printed(parts) -> str:
    """What the parts look like on a wide console."""
    console = report.Console(width=200)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False)
    return capture.get()


def lines_with(text: str, word: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if word in line]


def test_summaries_print_means_and_lists():
    results = [
        made_up("a", {"eager": 3.0, "convolution": 2.0, "epiconv_cudnn": 0.8, "epiconv": 1.0}),
        made_up("b", {"eager": 0.75, "convolution": 0.5, "epiconv_cudnn": 1.0, "epiconv": 1.0}),
    ]
    text = printed(report.summaries(results, in_lines=False))
    assert lines_with(text, "tuning") == [["nchw", "fp32", "tuning", "2", "1.00", "1.50"]]
    peers, paths = text.split("layers over 5% slower than the best peer")[1].split("choices over 10% slower")
    assert lines_with(peers, "fprop") == [
        ["b", "fp32", "nchw", "fprop_made_up", "eager", "1.000", "0.750", "0.75"]
    ]
    assert lines_with(paths, "fprop") == [
        ["a", "fp32", "nchw", "fprop_made_up", "epiconv_cudnn", "1.000", "0.800", "0.80"]
    ]
    assert "epiconv against the best peer" in text and "coverage" in text


def test_summaries_say_that_nothing_is_slow():
    fast = {"eager": 3.0, "epiconv_cudnn": 1.0, "epiconv": 1.0}
    text = printed(report.summaries([made_up("a", fast)], in_lines=False))
    assert "layers over 5% slower than the best peer: none" in text
    assert "choices over 10% slower than the best path: none" in text
    assert "coverage" not in text  # of one case there is a table already
    other = made_up("kb1", {"eager": 3.0, "epiconv": 1.0}, half="")
    text = printed(report.summaries([other], in_lines=False))
    assert text == ""


def test_cases_in_lines_have_no_tables_of_their_own():
    ms = {"eager": 3.0, "epiconv": 1.0}
    cases = [made_up(f"c{n}", ms, unavailable={"compile": f"no {n}"}) for n in range(17)]
    text = printed(report.summaries(cases, in_lines=True))
    assert "coverage" not in text and "epiconv against" not in text
    assert "compile not available in 17 of the cases, the first c0 fp32 nchw: no 0" in text
    assert lines_with(text, "tuning") == [["nchw", "fp32", "tuning", "17", "3.00"]]


def test_overview_line():
    result = made_up("a", {"eager": 3.0, "compile": 1.2, "convolution": 0.9, "epiconv": 1.0})
    assert report.overview_line(result, 9).split() == [
        "a", "fp32", "nchw", "0.900", "compile", "1.200", "1.000", "0.90", "1.20", "50.0", "yes",
        "fprop_made_up",
    ]  # fmt: skip
    failed = made_up("a", {"eager": 3.0}, unavailable={"epiconv": "out of luck"})
    assert report.overview_line(failed, 9).split() == [
        "a", "fp32", "nchw", "eager", "3.000", "NO", "out", "of", "luck",
    ]  # fmt: skip
    heading, line = report.overview_heading(9), report.overview_line(result, 9)
    assert heading.index("kernel") == line.index("fprop")


def test_command_line_of_many_layers(tmp_path, capsys):
    out = tmp_path / "out.json"
    run = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32,bf16", "--json", str(out)]
    words = [
        "--problems",
        "efficientnet,audio-up-256-128",
        "--peers",
        "eager,convolution,epiconv,epiconv_sm80",
    ]
    assert main([*run, *words]) == 0
    text = capsys.readouterr().out
    assert "audio-up-256-128 bf16 channels_last: left out, torch has no channels_last" in text
    cases = json.loads(out.read_text())["cases"]
    assert len(cases) == 18 and all(case["half"] and case["network"] for case in cases)
    assert len(lines_with(text, "elementwise_cpu")) >= 18 and "max error" not in text
    assert "epiconv_sm80 not available in 18 of the cases, the first efficientnet-stem fp32 nchw" in text
    assert ["nchw", "bf16", "tuning", "2"] in [words[:4] for words in lines_with(text, "tuning")]
