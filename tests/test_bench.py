"""The benchmark: its problems, floors, clock, errors, command line and files."""

import json
import math

import pytest
import torch

from epiconv.bench import accuracy, ceilings, report, results, timing
from epiconv.bench.__main__ import chosen_peers, chosen_problems, main, make_parser
from epiconv.bench.measurement import measure_case
from epiconv.bench.peers import PEERS, Peer, Unavailable, dtype_settings, make_case, math_name
from epiconv.bench.problems import (
    PROBLEMS,
    RECIPE_IDS,
    SMALL_IDS,
    Problem,
    parse_problem,
    torch_convolution,
    torch_epilogue,
)
from epiconv.bench.selection import find_problem, select_problems

CPU = torch.device("cpu")

# id: output, gflop, GB in float32, floor in ms on an H200, as the project's problem table has them.
TABLE = {
    "kb31": ((128, 128, 126, 126), 299.6, 1.578, 0.657),
    "kb1": ((128, 128, 126, 126), 299.6, 1.578, 0.657),
    "kb21": ((128, 32, 254, 254), 38.1, 1.325, 0.313),
    "kb2": ((128, 64, 256, 256), 154.6, 2.685, 0.633),
    "kb4": ((64, 128, 254, 254), 608.8, 3.188, 1.335),
    "kb7": ((64, 32, 30, 62, 62), 102.0, 1.213, 0.286),
    "kb20": ((16, 64, 32, 64, 64), 29.0, 0.571, 0.135),
    "kb26": ((128, 64, 32, 32, 32), 58.0, 2.215, 0.522),
    "kb48": ((128, 16, 14, 62, 62), 17.9, 0.542, 0.128),
    "kb57": ((128, 64, 126, 126), 18.7, 0.587, 0.139),
    "kb71": ((128, 64, 126, 126), 18.7, 0.587, 0.139),
    "kb87": ((128, 64, 254, 254), 76.1, 2.383, 0.562),
}

# The programs again, as their models are written.
PLAIN = {
    "kb31": lambda y, b: (torch.clamp(y, max=0.5) + b) * 2.0,
    "kb1": lambda y, b: torch.relu(y) + b,
    "kb21": lambda y, b, s, w, c: torch.nn.functional.group_norm(torch.sigmoid((y + b) * s), 8, w, c),
    "kb2": lambda y, b: torch.clamp(torch.clamp(y + b, 0, 1) * 2.0, 0, 1) / 2.0,
    "kb4": lambda y: torch.nn.functional.mish(torch.nn.functional.mish(y)),
    "kb7": lambda y, b: torch.sigmoid(torch.nn.functional.gelu(torch.relu(y))) + b,
    "kb20": lambda y, b: (y + b + y) * y + y,
    "kb26": lambda y, o: (y + o) * torch.nn.functional.hardswish(y + o),
    "kb48": lambda y, s, b: torch.sigmoid(torch.tanh(y * s) * b),
    "kb57": lambda y: torch.relu(y) * torch.clamp((torch.relu(y) + 3) / 6, 0, 1),
    "kb71": lambda y: torch.nn.functional.leaky_relu(y / 2, 0.01),
    "kb87": lambda y: torch.nn.functional.mish(y - 0.5 - 0.2),
}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_problem_extents_flops_bytes_and_floor(problem):
    output, gflop, gigabytes, floor_ms = TABLE[problem.id]
    assert problem.output == output
    assert problem.flops / 1e9 == pytest.approx(gflop, abs=0.05)
    assert problem.bytes(4) / 1e9 == pytest.approx(gigabytes, abs=0.0005)
    assert problem.bytes(2) * 2 == problem.bytes(4)
    seconds, bound_by = ceilings.H200.floor(problem, 4, "tf32")
    assert seconds * 1e3 == pytest.approx(floor_ms, abs=0.0006)
    assert bound_by == ("FLOPs" if problem.id in ("kb31", "kb1", "kb4") else "bytes")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_problem_program_is_what_its_model_computes(problem):
    case = make_case(problem.reduced(), "fp32", "nchw", CPU)
    x, *operands = case.argument_sets[0]
    y = torch_convolution(case.problem)(x, case.weight, case.bias)
    assert tuple(y.shape) == case.problem.output
    expected = PLAIN[problem.id](y, *operands)
    torch.testing.assert_close(case.epilogue(y, *operands), expected, rtol=1e-6, atol=1e-6)
    traced = case.problem.program.apply(y, operands)
    torch.testing.assert_close(traced, expected, rtol=1e-5, atol=1e-5)


def test_reduced_problem_keeps_channels_and_program():
    reduced = find_problem("kb26").reduced()
    assert reduced.input == (2, 32, 10, 10, 10)
    assert reduced.operand_shapes == (reduced.output,) == ((2, 64, 20, 20, 20),)
    assert reduced.program == find_problem("kb26").program


def test_torch_epilogue_keeps_the_tensors_dtype():
    program = parse_problem(
        "1x1x4", 1, "1", epilogue="v1 = gelu(v0, approximate=tanh); v2 = maximum(v1, -0.1)"
    ).program
    y = torch.linspace(-3, 3, 7).to(torch.bfloat16)
    expected = torch.clamp(torch.nn.functional.gelu(y, approximate="tanh"), min=-0.1)
    assert torch.equal(torch_epilogue(program)(y), expected)
    identity = parse_problem("1x1x4", 1, "1").program
    assert torch_epilogue(identity)(y) is y


def test_small_problems_are_those_with_a_floor_below_a_fifth_of_a_millisecond():
    small = {p.id for p in PROBLEMS if ceilings.H200.floor(p, 4, "tf32")[0] < timing.SMALL_PROBLEM_SECONDS}
    assert small == set(SMALL_IDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "conv4d"}, "unknown op"),
        ({"shape": "2x3x8"}, "takes an input of 4 extents"),
        ({"shape": "2,3,8,8"}, "written as 128x64"),
        ({"kernel": "9"}, "is empty"),
        ({"groups": 2}, "do not divide"),
        ({"stride": 0}, "at least 1"),
        ({"epilogue": "v1 = add(v0, b0)"}, "needs 1 operands, 0 given"),
        ({"epilogue": "v1 = nonsense(v0)"}, "nonsense"),
    ],
)
def test_impossible_problems_are_refused(changes, message):
    arguments = {"shape": "2x3x8x8", "filters": 4, "kernel": "3", "op": "conv2d"} | changes
    with pytest.raises(ValueError, match=message):
        parse_problem(**arguments)


@pytest.mark.parametrize(
    ("op", "kernel", "geometry"),
    [
        ("conv1d", "3", {"stride": 2, "padding": 1}),
        ("conv2d", "3x2", {"dilation": 2, "groups": 2}),
        ("conv3d", "2x1x3", {"padding": 1}),
        ("conv_transpose1d", "3", {"stride": 3, "output_padding": 2}),
        ("conv_transpose2d", "3x2", {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
        ("conv_transpose3d", "2", {"stride": 2, "dilation": 3}),
    ],
)
def test_output_extents_and_flops_agree_with_torch(op, kernel, geometry):
    rank = int(op[-2])
    problem = parse_problem("2x4" + "x9" * rank, 6, kernel, op=op, **geometry)
    x, weight = torch.ones(problem.input), torch.ones(problem.weight)
    y = torch_convolution(problem)(x, weight, None)
    assert tuple(y.shape) == problem.output
    pixels = x.numel() if problem.transposed else y.numel()
    assert problem.flops == 2 * pixels * math.prod(problem.weight[1:])


def test_floor_is_the_larger_of_flops_and_bytes():
    card = ceilings.Ceilings(1e9, "made up", {"tf32": 1e12})
    problem = parse_problem("1x1x1x1000", 1, "1x1", conv_bias=False)
    assert problem.bytes(4) == 4 * (1000 + 1 + 1000)
    assert card.floor(problem, 4, "tf32") == (8004e-9, "bytes")
    assert card.floor(problem, 4, "fp32") == (8004e-9, "bytes (FLOP rate unknown)")
    slow = ceilings.Ceilings(1e9, "made up", {"tf32": 1e6})
    assert slow.floor(problem, 4, "tf32") == (2000 / 1e6, "FLOPs")


def test_ceilings_of_another_device_are_measured():
    measured = ceilings.ceilings_of(CPU)
    assert measured.bytes_per_second > 1e8
    assert measured.flops_per_second == {}
    assert "no FLOP rate known" in measured.source


class FakeClock:
    """A clock that only calls advance, and a stopwatch that reads it."""

    def __init__(self):
        self.now = 0.0
        self.marks = []

    def __call__(self):
        return self.now

    def start(self):
        self.marks.append(self.now)

    def stop(self):
        self.marks.append(self.now)

    def seconds(self):
        marks, self.marks = self.marks, []
        return [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]

    def call(self, *durations):
        """A call that takes each duration in turn, then the last for ever."""
        left = list(durations)

        def run():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_interleave_reports_medians_after_the_warm_up():
    clock = FakeClock()
    slow_then_fast = clock.call(*[9.0] * 3, 2.0)  # a warm-up of 3 rounds of 10 s swallows the slow calls
    timings = timing.interleave(
        {"a": slow_then_fast, "b": clock.call(1.0)}, clock, seconds=90, warm_up=25, clock=clock
    )
    assert timings["a"].seconds == 2.0
    assert timings["b"].seconds == 1.0
    # 4 s a round: 2 + 1, and an untimed call of the last before each block, here of one round.
    assert timings["a"].rounds == timings["b"].rounds == math.ceil(90 / 4)


def test_interleave_divides_by_the_calls_of_a_run():
    clock = FakeClock()
    timings = timing.interleave({"a": clock.call(8.0)}, clock, seconds=0, runs=4, warm_up=0, clock=clock)
    assert timings["a"].seconds == 2.0
    assert timings["a"].rounds == 7


def test_interleave_takes_turns():
    clock = FakeClock()
    order = []

    def call(name):
        def run():
            order.append(name)
            clock.now += 1.0

        return run

    timing.interleave({n: call(n) for n in "abc"}, clock, seconds=0, warm_up=0, clock=clock)
    timed = "".join(order[3:])  # after one warm-up round
    rounds = [timed[i + 1 : i + 4] for i in range(0, len(timed), 4)]  # an untimed call leads each block
    assert rounds[:4] == ["abc", "bca", "cab", "abc"]
    assert len(rounds) == 7


def test_timing_statistics():
    assert timing.Timing.of([5.0, 1.0, 2.0]) == timing.Timing(2.0, 1.0, 5.0, 3)
    assert timing.Timing.of(range(1, 102), runs=2) == timing.Timing(25.5, 5.5, 45.5, 101)
    with pytest.raises(ValueError, match="no samples"):
        timing.Timing.of([])


def test_rough_seconds_takes_the_shortest():
    clock = FakeClock()
    rough = timing.rough_seconds({"a": clock.call(3.0, 1.0, 2.0), "b": clock.call(5.0)}, clock, 3)
    assert rough == {"a": 1.0, "b": 5.0}
    assert timing.graph_repeats(50e-6, 4) == 5  # a graph lasts about a millisecond
    assert timing.graph_repeats(5e-3, 1) == 1


def test_input_sets_cover_three_times_the_l2():
    counts = [timing.input_set_count(size, 60) for size in (180, 179, 60, 1, 0)]
    assert counts == [1, 2, 3, 64, 64]
    assert timing.input_set_count(100, l2_bytes=0) == 1


def test_rotation_uses_every_set_and_different_memory():
    seen = []

    def double(x):
        y = x * 2
        seen.append((float(x[0]), y.data_ptr()))
        return y

    rotation = timing.Rotation(double, [(torch.full((64,), float(n)),) for n in range(3)], repeats=2)
    rotation()
    assert [value for value, _ in seen] == [0.0, 1.0, 2.0] * 2
    assert len({address for _, address in seen[3:]}) == 3
    assert rotation.runs == 6


def test_error_is_relative_to_the_output_s_scale():
    expected = torch.tensor([0.0, -4.0, 2.0], dtype=torch.float64)
    assert accuracy.max_error(torch.tensor([0.5, -4.0, 2.0]), expected) == 0.125
    assert accuracy.max_error(torch.tensor([0.0, -4.0, math.nan]), expected) == math.inf
    assert accuracy.max_error(torch.tensor([0.0, -4.0, math.inf]), expected) == math.inf
    special = torch.tensor([math.nan, math.inf, 2.0], dtype=torch.float64)
    assert accuracy.max_error(torch.tensor([math.nan, math.inf, 1.0]), special) == 0.5
    assert accuracy.max_error(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64)) == 0.0
    with pytest.raises(ValueError, match="expected"):
        accuracy.max_error(torch.zeros(2), torch.zeros(3, dtype=torch.float64))


def test_error_bound_is_twice_eager_plus_a_rounding():
    rounding = 2.0**-9  # bfloat16 has 8 bits; half a unit in the last place at 1
    assert accuracy.output_rounding(torch.bfloat16) == 2 * rounding
    assert accuracy.is_accurate(0.02 + 2 * rounding, 0.01, torch.bfloat16)
    assert not accuracy.is_accurate(0.0201 + 2 * rounding, 0.01, torch.bfloat16)
    assert not accuracy.is_accurate(math.inf, 0.01, torch.bfloat16)


def test_differences_of_a_whole_batch_are_found(monkeypatch):
    assert [accuracy.sample_images(n) for n in (1, 2, 128)] == [(0,), (0, 1), (0, 64, 127)]
    monkeypatch.setattr(accuracy, "_CHUNK", 8)
    y = torch.ones(5, 2, 2)
    wrong = y.clone()
    wrong[3, 1, 1] = 1.25
    assert accuracy.max_difference(y, y) == 0.0
    assert accuracy.max_difference(wrong, y) == 0.25


def test_float64_result_takes_images_of_inputs_and_full_operands_only():
    case = make_case(find_problem("kb26").reduced(), "fp32", "channels_last", CPU)
    x, other = case.argument_sets[0]
    y = torch_convolution(case.problem)(x.double(), case.weight.double(), case.bias.double())
    expected = PLAIN["kb26"](y, other.double())
    torch.testing.assert_close(case.float64_result((1,)), expected[1:], rtol=1e-12, atol=1e-12)


def test_layouts_of_a_case():
    case = make_case(find_problem("kb26").reduced(), "bf16", "channels_last", CPU, input_sets=2)
    for arguments in case.argument_sets:
        assert all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in arguments)
    assert case.argument_sets[0][1].data_ptr() != case.argument_sets[1][1].data_ptr()
    flat = case.in_layout("nchw")
    assert flat.argument_sets[0][0].is_contiguous()
    assert torch.equal(flat.weight, case.weight)
    with pytest.raises(Unavailable, match="one spatial dimension"):
        make_case(parse_problem("1x2x9", 2, "3"), "fp32", "channels_last", CPU)


def test_ieee_setting_is_put_back():
    before = torch.backends.cudnn.conv.fp32_precision
    with dtype_settings("fp32_ieee"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == before
    assert math_name("fp32", CPU) == math_name("fp32_ieee", CPU) == "fp32"


def quick(problem: Problem, peers: list[str], **options) -> results.CaseResult:
    card = ceilings.Ceilings(1e10, "made up")
    return measure_case(problem, "fp32", "nchw", CPU, peers, card, seconds=0.0, warm_up=0.0, **options)


SMALL = parse_problem("2x4x9x9", 6, "3", epilogue="v1 = relu(v0); v2 = add(v1, b0)", operands=["6x1x1"])


def test_case_result_numbers_and_json_schema():
    result = quick(SMALL, ["eager", "convolution", "cudnn_graph", "epiconv"])
    assert [row.peer for row in result.rows] == ["eager", "convolution", "epiconv"]
    assert list(result.unavailable) == ["cudnn_graph"]
    assert result.ok
    eager, bare, own = result.rows
    assert eager.best_peer_ratio == 1.0
    assert bare.check is None
    assert own.best_peer_ratio == pytest.approx(eager.ms / own.ms)
    assert own.tflops == pytest.approx(SMALL.flops / own.ms / 1e9)
    assert own.gbps == pytest.approx(SMALL.bytes(4) / own.ms / 1e6)
    assert own.floor_percent == pytest.approx(100 * result.floor_ms / own.ms)
    content = report.results_as_json([result], CPU, ceilings.H200, {"seconds": 0.0})
    content = json.loads(json.dumps(content))
    assert set(content) == {"schema", "environment", "ceilings", "settings", "cases"}
    (case,) = content["cases"]
    assert set(case) == {
        "problem", "name", "op", "input", "output", "program", "network", "half", "dtype", "layout", "math",
        "flops", "bytes", "floor_ms", "floor_by", "graph_replay", "input_sets", "error_images", "plan",
        "rows", "unavailable", "control", "ok", "best_path",
    }  # fmt: skip
    assert set(case["rows"][0]) == {
        "peer", "ms", "low_ms", "high_ms", "rounds", "tflops", "gbps", "floor_percent", "best_peer_ratio",
        "check", "reused", "cold_ms", "predicted_us",
    }  # fmt: skip
    assert set(case["rows"][-1]["check"]) == {"max_error", "batch_difference", "ok"}
    assert case["plan"]["path"] == "cpu" and case["plan"]["why"] == "the tensors are on cpu"


def test_a_wrong_result_outside_the_sampled_images_is_found(monkeypatch):
    problem = parse_problem("9x4x9x9", 6, "3")

    def build(case):
        function, own_case = PEERS["eager"].build(case)

        def wrong(x):
            y = function(x)
            y[2, 1, 3, 4] += 0.5  # image 2 of 9: not among 0, 4, 8
            return y

        return wrong, own_case

    monkeypatch.setitem(PEERS, "epiconv", Peer("epiconv", "wrong", build, competes=False))
    result = quick(problem, ["eager", "epiconv"])
    check = result.row("epiconv").check
    assert check.max_error == result.row("eager").check.max_error
    assert not check.ok
    assert not result.ok


def test_a_peer_that_fails_is_listed_with_its_reason(monkeypatch):
    def build(case):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setitem(PEERS, "epiconv", Peer("epiconv", "broken", build, competes=False))
    result = quick(SMALL, ["eager", "epiconv"])
    assert result.unavailable == {"epiconv": "RuntimeError: no such kernel"}
    assert not result.ok


def test_kept_peers_are_not_timed_again_but_for_the_control(tmp_path):
    first = quick(SMALL, ["eager", "convolution", "epiconv"])
    key = results.case_key(SMALL, "fp32", "nchw")
    path = tmp_path / "kept.json"
    report.write_json(path, report.kept_times([(key, first)], CPU))
    kept = report.read_kept_times(path, CPU)
    assert kept == {key: {"eager": first.row("eager").ms, "convolution": first.row("convolution").ms}}
    kept[key]["eager"] = 1e6
    second = quick(SMALL, ["eager", "convolution", "epiconv"], kept=kept)
    assert second.row("convolution").reused
    assert second.row("convolution").ms == pytest.approx(first.row("convolution").ms)
    assert not second.row("eager").reused
    assert second.control.peer == "eager"
    assert second.control.moved
    assert "run without --reuse-peers" in report.control_warning(second)


def test_control_may_move_by_five_percent():
    moved = [results.Control("eager", 1.0, ms).moved for ms in (0.94, 0.96, 1.04, 1.06)]
    assert moved == [True, False, False, True]


def test_times_kept_elsewhere_are_refused(tmp_path):
    path = tmp_path / "kept.json"
    environment = report.environment(CPU) | {"torch": "1.0"}
    report.write_json(path, {"schema": 1, "environment": environment, "ms": {}})
    with pytest.raises(ValueError, match=r"torch 1\.0"):
        report.read_kept_times(path, CPU)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not written by --keep-peers"):
        report.read_kept_times(path, CPU)


def test_command_line_names_a_problem():
    options = make_parser().parse_args(
        ["--shape", "8x16x32x32", "--filters", "24", "--kernel", "5x3", "--stride", "2", "--padding", "1",
         "--op", "conv2d", "--epilogue", "v1 = minimum(v0, 0.5); v2 = add(v1, b0); v3 = mul(v2, b1)",
         "--operand", "24x1x1", "--operand", "output", "--no-conv-bias"]
    )  # fmt: skip
    (problem,) = chosen_problems(options, CPU)
    assert problem.operand_shapes == ((24, 1, 1), (8, 24, 15, 16))
    assert problem.bytes(1) == 8 * 16 * 32 * 32 + 24 * 16 * 15 + 24 + 2 * 8 * 24 * 15 * 16
    assert not problem.conv_bias


def test_command_line_peers():
    parser = make_parser()
    assert chosen_peers(parser.parse_args([]), CPU) == ["eager", "epiconv"]
    cuda = torch.device("cuda")
    assert chosen_peers(parser.parse_args(["--no-compile"]), cuda) == [
        "eager", "eager_channels_last", "convolution", "epiconv",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown peer 'tvm'"):
        chosen_peers(parser.parse_args(["--peers", "eager,tvm"]), CPU)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--problems", "kb999"],
        ["--dtypes", "int8"],
        ["--device", "tpu"],
        ["--shape", "2x3x8x8", "--epilogue", "v1 = add(v0, b0)"],
        ["--host", "--elementwise"],
        ["--reuse-peers", "/nonexistent"],
    ],
)
def test_command_line_refuses_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--device", "cpu"] if "--device" not in arguments else arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_command_line_runs_and_writes_files(tmp_path, capsys):
    run = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32", "--layouts", "nchw,channels_last",
           "--shape", "2x4x9x9", "--filters", "6", "--epilogue", "v1 = relu(v0)"]  # fmt: skip
    out, kept = tmp_path / "out.json", tmp_path / "kept.json"
    assert main([*run, "--json", str(out), "--keep-peers", str(kept)]) == 0
    assert main([*run, "--reuse-peers", str(kept)]) == 0
    content = json.loads(out.read_text())
    assert [case["layout"] for case in content["cases"]] == ["nchw", "channels_last"]
    assert content["settings"]["peers"] == ["eager", "epiconv"]
    printed = capsys.readouterr().out
    assert "epiconv against the best peer" in printed and "coverage" in printed


@pytest.mark.parametrize("mode", ["host", "elementwise", "training"])
def test_other_measurements_write_json(mode, tmp_path):
    path = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32", "--layouts", "nchw"]
    assert main([*arguments, f"--{mode}", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())[mode]
    if mode == "host":
        assert [(row["device"], row["with_grad"]) for row in rows] == [("cpu", False), ("cpu", True)]
        assert rows[0]["ratio"] == pytest.approx(rows[0]["epiconv_us"] / rows[0]["eager_us"])
    elif mode == "training":
        assert [row["peer"] for row in rows] == ["eager", "epiconv"] * (len(rows) // 2)
        assert {row["problem"] for row in rows} == {problem.id for problem in select_problems("recipes")}
        assert all(row["ms"] > 0 and row["peak_bytes"] is None for row in rows)
        assert all(row["difference"] == 0 for row in rows if row["peer"] == "eager")
        assert all(0 < row["difference"] < 1e-4 for row in rows if row["peer"] == "epiconv")
    else:
        assert [row["problem"] for row in rows] == list(RECIPE_IDS)
        for row in rows:
            moved = 2 * math.prod(row["shape"]) * 4
            assert row["gbps"] == pytest.approx(moved / row["ms"] / 1e6)
            assert row["percent"] == pytest.approx(100 * row["gbps"] / row["copy_gbps"])
