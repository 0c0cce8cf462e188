"""The benchmark's times with a cold cache, and those of calls that pack their weight."""

import pytest
import torch

from epiconv._torch_private import keep_busy
from epiconv.bench import ceilings, cold, timing
from epiconv.bench.measurement import measure_case
from epiconv.bench.peers import PEERS, make_case
from epiconv.bench.problems import parse_problem
from epiconv.bench.report import case_table
from epiconv.bench.selection import find_problem

CPU = torch.device("cpu")
CARD = ceilings.Ceilings(1e10, "made up")
_LAUNCH_CYCLES = 100_000  # in which the host launches a graph and records events
PROBLEM = parse_problem("2x8x9x9", 8, "3", epilogue="v1 = relu(v0); v2 = add(v1, b0)", operands=["output"])


class Clock:
    """A stopwatch whose time passes in calls alone; it notes what was called."""

    def __init__(self):
        self.now, self.marks, self.calls = 0.0, [], []

    def start(self):
        self.marks.append(self.now)

    stop = start

    def seconds(self):
        marks, self.marks = self.marks, []
        return [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]

    def call(self, name, *durations):
        """A call that takes each duration in turn, then the last for ever."""
        left = list(durations)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_every_call_is_timed_alone_behind_a_flush():
    clock = Clock()
    flush = clock.call("flush", 100.0)
    # Two rounds that do not count, then three.
    calls = {"a": clock.call("a", 9.0, 9.0, 1.0, 5.0, 3.0), "b": clock.call("b", 2.0)}
    found = cold.cold_times(calls, clock, flush, rounds=3)
    assert found == {"a": timing.Timing(3.0, 1.0, 5.0, 3), "b": timing.Timing(2.0, 2.0, 2.0, 3)}
    assert clock.calls == ["flush", "a", "flush", "b"] * 5
    assert cold.cold_times({}, clock, flush) == {}


@pytest.fixture
def graphs(monkeypatch):
    """What was captured as a CUDA graph, where there are none."""
    captured = []

    class Graph:
        def __init__(self, call, device):
            if call.function.__name__ == "bare":
                raise RuntimeError("it waits")
            captured.append(call)
            self.call = call

        def __call__(self):
            self.call()

    monkeypatch.setattr(timing, "CapturedCall", Graph)
    monkeypatch.setattr(cold, "l2_flush", lambda device: lambda: None)
    return captured


def test_cold_times_of_a_case(graphs):
    peers = ["eager", "convolution", "epiconv"]
    given = {"seconds": 0.0, "warm_up": 0.0}
    result = measure_case(PROBLEM, "fp32", "nchw", CPU, peers, CARD, with_cold=True, **given)
    times = {row.peer: row.cold_ms for row in result.rows}
    assert times["eager"] > 0 and times["epiconv"] > 0 and times["convolution"] is None
    assert result.unavailable == {
        "convolution, cold": "cannot be captured as a CUDA graph: RuntimeError: it waits"
    }
    assert [call.runs for call in graphs] == [1, 1]
    assert result.ok and result.row("convolution").ms > 0
    assert [column.header for column in case_table(result).columns][-1] == "cold ms"
    warm = measure_case(PROBLEM, "fp32", "nchw", CPU, peers, CARD, **given)
    assert all(row.cold_ms is None for row in warm.rows) and not warm.unavailable
    assert [column.header for column in case_table(warm).columns][-1] == "ok"


def test_cold_calls_take_one_set_of_inputs(graphs, monkeypatch):
    monkeypatch.setattr(timing, "input_set_count", lambda set_bytes, l2: 3)
    result = measure_case(
        PROBLEM, "fp32", "nchw", CPU, ["epiconv"], CARD, seconds=0.0, warm_up=0.0, with_cold=True
    )
    assert result.input_sets == 3
    assert [call.runs for call in graphs] == [1]


def test_inputs_of_layers_are_in_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "input_set_count", lambda set_bytes, l2: 3)
    layer = find_problem("resnet50-stem-b1").reduced()
    result = measure_case(layer, "fp32", "nchw", CPU, ["epiconv"], CARD, seconds=0.0, warm_up=0.0)
    assert result.input_sets == 1


def test_repacking_packs_in_every_call_and_a_module_once(core, setting):
    setting("ieee")
    case = make_case(PROBLEM, "fp32", "nchw", CPU)
    with torch.no_grad():
        expected = PEERS["eager"].build(case)[0](*case.argument_sets[0])
        packs = {}
        for name in ("epiconv", "epiconv_repacking"):
            function, own_case = PEERS[name].build(case)
            before = len(core.packs)
            results = [function(*own_case.argument_sets[0]) for _ in range(3)]
            packs[name] = len(core.packs) - before
            for result in results:
                torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert packs == {"epiconv": 1, "epiconv_repacking": 3}
    assert not PEERS["epiconv_repacking"].competes and PEERS["epiconv_repacking"].own


def test_repacking_packs_while_a_graph_is_captured(core, setting):
    setting("ieee")
    case = make_case(PROBLEM, "fp32", "nchw", CPU)
    with torch.no_grad():
        function, _ = PEERS["epiconv_repacking"].build(case)
        function(*case.argument_sets[0])
        core.capturing = True
        before = len(core.packs)
        for _ in range(3):
            function(*case.argument_sets[0])
    assert len(core.packs) - before == 3


@pytest.mark.gpu
def test_flush_writes_more_than_the_cache(cuda):
    before = torch.cuda.memory_allocated(cuda)
    flush = cold.l2_flush(cuda)
    assert torch.cuda.memory_allocated(cuda) - before >= 4 * timing.l2_bytes(cuda) > 0
    assert flush().eq(1.0).all()


@pytest.mark.gpu
def test_what_was_in_the_cache_takes_longer_behind_a_flush(cuda):
    values = torch.ones(timing.l2_bytes(cuda) // 16, device=cuda)  # a quarter of the cache
    graph = timing.CapturedCall(lambda: values.sum(), cuda)
    stopwatch = timing.stopwatch_for(cuda)

    def fill():
        keep_busy(_LAUNCH_CYCLES)
        values.sum()

    warm = cold.cold_times({"sum": graph}, stopwatch, fill)["sum"]
    flushed = cold.cold_times({"sum": graph}, stopwatch, cold.l2_flush(cuda))["sum"]
    assert flushed.seconds > warm.seconds


@pytest.mark.gpu
def test_cold_and_repacking_on_a_card(card):
    problem = parse_problem("8x64x56x56", 64, "3", padding=1, epilogue="v1 = relu(v0)")
    peers = ["eager", "convolution", "epiconv_repacking", "epiconv"]
    result = measure_case(
        problem, "bf16", "channels_last", card, peers, CARD, seconds=0.1, warm_up=0.1, with_cold=True
    )
    assert result.ok and not result.unavailable
    assert [row.peer for row in result.rows] == peers
    assert all(row.cold_ms > 0 for row in result.rows)
    assert result.row("epiconv_repacking").check.ok
