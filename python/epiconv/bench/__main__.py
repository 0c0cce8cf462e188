"""`python -m epiconv.bench`: problems × dtypes × layouts × peers, timed in turns."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from epiconv.bench.ceilings import Ceilings, ceilings_of
from epiconv.bench.markdown import BEGIN, END
from epiconv.bench.measurement import measure_case
from epiconv.bench.networks import NETWORKS
from epiconv.bench.peers import (
    DEFAULT_CPU_PEERS,
    DEFAULT_CUDA_PEERS,
    DTYPES,
    LAYOUTS,
    PEERS,
    REPACKING,
    Unavailable,
)
from epiconv.bench.problems import Problem, parse_problem
from epiconv.bench.results import CaseResult, case_key
from epiconv.bench.selection import GROUPS, select_problems
from epiconv.bench.training import TRAINING_PEERS

try:
    from rich.console import Console

    from epiconv.bench import report
    from epiconv.bench.other_runs import run_elementwise, run_host, run_networks, run_training, split_words
    from epiconv.bench.publish import PICTURE_FILE, TABLE_FILE, check_report, write_report
    from epiconv.bench.saved import Measured, read_results
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "rich":
        raise
    sys.exit('python -m epiconv.bench prints with rich, which is missing: pip install "epiconv[cli]"')

_FORMATTER = argparse.RawDescriptionHelpFormatter
_EPILOG = """examples:
  python -m epiconv.bench --problems recipes
  python -m epiconv.bench --problems kb31,kb4 --dtypes bf16 --layouts channels_last --peers eager,epiconv
  python -m epiconv.bench --shape 128x64x128x128 --filters 128 --kernel 3x3 \\
      --epilogue "v1 = minimum(v0, 0.5); v2 = add(v1, b0)" --operand 128x1x1
  python -m epiconv.bench --problems tuning --json tuning.json \\
      --peers eager,compile,convolution,epiconv_cudnn,epiconv_sm90,epiconv_sm80,epiconv
  python -m epiconv.bench --problems layers --peers eager,compile,convolution,epiconv --cold --repacking \\
      --json layers.json --report docs --readme README.md
  python -m epiconv.bench --load layers.json more.json --report docs
  python -m epiconv.bench --training --problems recipes
  python -m epiconv.bench --networks resnet50,unet
  python -m epiconv.bench --host
  python -m epiconv.bench --elementwise

Times are medians of rounds in which every peer has its turn, after half a second of load. % of floor: the
least time in which FLOPs and bytes could pass / time. × best peer: above 1 is faster than every peer.
max error: against float64, relative to the output's scale; ok: at most twice eager's, or TF32's own in
float32, plus one rounding of the output. The layers of networks are in two halves: kernels are chosen by
measurements of "tuning", and "measured" says what that is worth elsewhere. Peers of a path (epiconv_cudnn,
epiconv_sm90, epiconv_sm80) show where epiconv should have chosen another. Many cases take a line each.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line.

    Example:
        >>> make_parser().parse_args(["--problems", "small"]).problems
        'small'
    """
    parser = argparse.ArgumentParser(
        "python -m epiconv.bench", description=__doc__, epilog=_EPILOG, formatter_class=_FORMATTER
    )
    what = parser.add_argument_group("what to compute")
    what.add_argument(
        "--problems",
        default="recipes",
        metavar="WORDS",
        help=f"ids (kb31,kb1,…, resnet50-3x3-128-b32,…) and groups: {', '.join(GROUPS)} (default recipes)",
    )
    what.add_argument("--dtypes", help=f"of {', '.join(DTYPES)} (default fp32,bf16)", default="fp32,bf16")
    what.add_argument("--layouts", help=f"of {', '.join(LAYOUTS)} (default both)", default=",".join(LAYOUTS))
    what.add_argument(
        "--peers",
        help=f"of {', '.join(PEERS)} (default on CUDA {', '.join(DEFAULT_CUDA_PEERS)}; "
        f"on a CPU {', '.join(DEFAULT_CPU_PEERS)})",
    )
    what.add_argument("--no-compile", action="store_true", help="leave the torch.compile peers out")
    what.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda if there is one)")
    what.add_argument("--full-size", action="store_true", help="do not reduce the built-in problems on a CPU")
    own = parser.add_argument_group("a problem of your own, instead of --problems")
    own.add_argument("--shape", metavar="NxCxHxW", help="of the input; 1-D and 3-D too")
    own.add_argument(
        "--filters", type=int, metavar="K", help="output channels (default: as many as input channels)"
    )
    own.add_argument(
        "--kernel", default="3", metavar="RxS", help="filter extents (default 3 along all dimensions)"
    )
    own.add_argument(
        "--op", help="conv1d … conv3d, conv_transpose1d … conv_transpose3d (default: by the shape)"
    )
    own.add_argument(
        "--epilogue", default="", metavar="TEXT", help="program: v0 the output, b0, b1, … operands"
    )
    own.add_argument(
        "--operand",
        action="append",
        default=[],
        metavar="SHAPE",
        help="of b0, b1, … in turn: 128x1x1, scalar, or output (repeat the option)",
    )
    for name, default in (
        ("stride", 1),
        ("padding", 0),
        ("output-padding", 0),
        ("dilation", 1),
        ("groups", 1),
    ):
        own.add_argument(f"--{name}", type=int, default=default, metavar="INT", help=f"default {default}")
    own.add_argument("--no-conv-bias", action="store_true", help="a convolution without a bias of its own")
    how = parser.add_argument_group("how to measure")
    how.add_argument("--seconds", type=float, default=2.0, help="measuring time per case (default 2)")
    how.add_argument("--cold", action="store_true", help="on CUDA, with a cold L2 cache too")
    how.add_argument("--repacking", action="store_true", help=f"adds the peer {REPACKING}")
    how.add_argument("--json", type=Path, metavar="FILE", help="write all results there, after every case")
    how.add_argument("--keep-peers", type=Path, metavar="FILE", help="write the peers' times there")
    how.add_argument(
        "--reuse-peers",
        type=Path,
        metavar="FILE",
        help="take the peers' times from there, with one measured again as a control",
    )
    shown = parser.add_argument_group("a report of layers")
    shown.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help=f"write {TABLE_FILE}, of every layer, and {PICTURE_FILE} there; needs matplotlib",
    )
    shown.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help=f"with --report, put its means and picture between {BEGIN} and {END} of that file",
    )
    shown.add_argument(
        "--load", type=Path, nargs="+", metavar="FILE", help="measure nothing, but take what --json wrote"
    )
    other = parser.add_argument_group("other measurements").add_mutually_exclusive_group()
    other.add_argument("--host", action="store_true", help="host time per call, on the CPU and on CUDA")
    other.add_argument(
        "--training",
        action="store_true",
        help=f"training steps of the problems, by the peers {', '.join(TRAINING_PEERS)}",
    )
    other.add_argument(
        "--networks",
        metavar="NAMES",
        help=f"whole networks, fused and as they come: all, or some of {', '.join(NETWORKS)}",
    )
    other.add_argument(
        "--elementwise",
        action="store_true",
        help="bandwidth of the one-pass epilogue over the recipes' outputs",
    )
    return parser


def chosen_device(word: str | None) -> torch.device:
    """The device that `--device` names; without it CUDA if there is a card, else the CPU.

    Raises:
        ValueError: it is not there, or is neither CUDA nor the CPU.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    if word is None:
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise ValueError(f"--device {word}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {word}: only cpu and cuda are supported")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device {word}: torch sees no CUDA device")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"--device {word}: there are {torch.cuda.device_count()} CUDA devices")
        device = torch.device("cuda", index)
    return device


def chosen_problems(options: argparse.Namespace, device: torch.device) -> tuple[Problem, ...]:
    """The problems that the options name; built-in ones reduced on a CPU.

    Raises:
        ValueError: an option cannot be read, or the problem it describes does not exist.
    """
    if options.shape is None:
        problems = select_problems(options.problems)
        return (
            problems if device.type == "cuda" or options.full_size else tuple(p.reduced() for p in problems)
        )
    filters = options.filters
    if filters is None:
        parts = options.shape.split("x")
        filters = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 1
    return (
        parse_problem(
            options.shape,
            filters,
            options.kernel,
            op=options.op,
            epilogue=options.epilogue,
            operands=options.operand,
            stride=options.stride,
            padding=options.padding,
            output_padding=options.output_padding,
            dilation=options.dilation,
            groups=options.groups,
            conv_bias=not options.no_conv_bias,
        ),
    )


def chosen_peers(options: argparse.Namespace, device: torch.device) -> list[str]:
    """The peers that the options name, or the device's default ones.

    Raises:
        ValueError: one is unknown, or none is left.
    """
    default = DEFAULT_CUDA_PEERS if device.type == "cuda" else DEFAULT_CPU_PEERS
    peers = split_words(options.peers or ",".join(default), list(PEERS), "peer")
    if options.repacking and REPACKING not in peers:
        peers.append(REPACKING)
    if options.no_compile:
        peers = [peer for peer in peers if not peer.startswith("compile")]
    if not peers:
        raise ValueError("no peer is left")
    return peers


def run_cases(
    options: argparse.Namespace,
    device: torch.device,
    ceilings: Ceilings,
    cases: Sequence[tuple[Problem, str, str]],
    peers: Sequence[str],
    console: Console,
    save: Callable[[Sequence[CaseResult]], None],
) -> list[tuple[str, CaseResult]]:
    """Measures and prints the cases one after another, with a progress bar; many of them in a line each.

    Args:
        options: of `make_parser`.
        device: where.
        ceilings: of the device.
        cases: (problem, dtype word, layout).
        peers: names of `PEERS`.
        console: where tables go.
        save: called with all results so far after each case, so that what is interrupted is not lost.

    Returns:
        (case key, result) of the cases that could run.
    """
    kept = report.read_kept_times(options.reuse_peers, device) if options.reuse_peers else None
    results: list[tuple[str, CaseResult]] = []
    in_lines = _in_lines(cases)
    width = max(len(problem.id) for problem, _, _ in cases)
    if in_lines:
        _print_line(console, report.overview_heading(width))
    with report.progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))
        for number, (problem, dtype_word, layout) in enumerate(cases):

            def show(stage: str, fraction: float, number: int = number, problem: Problem = problem) -> None:
                done = f" {fraction:.0%}" if fraction else ""
                bar.update(task, completed=number, description=f"{problem.id}: {stage}{done}")

            try:
                result = measure_case(
                    problem,
                    dtype_word,
                    layout,
                    device,
                    peers,
                    ceilings,
                    seconds=options.seconds,
                    with_cold=options.cold,
                    kept=kept,
                    progress=show,
                )
            except (Unavailable, torch.OutOfMemoryError) as error:
                console.print(f"{problem.id} {dtype_word} {layout}: left out, {error}", markup=False)
                continue
            results.append((case_key(problem, dtype_word, layout), result))
            save([result for _, result in results])
            if in_lines:
                _print_line(console, report.overview_line(result, width))
            else:
                console.print(report.case_table(result))
            warning = report.control_warning(result)
            if warning:
                console.print(f"warning: {warning}", style="yellow")
        bar.update(task, completed=len(cases))
    return results


def _in_lines(cases: Sequence[object]) -> bool:
    """Whether each case is printed in a line, not as a table."""
    return len(cases) > report.MOST_TABLES


def _print_line(console: Console, line: str) -> None:
    """A line as it is, however wide the terminal."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _run_problems(options: argparse.Namespace, device: torch.device, console: Console) -> int:
    problems = chosen_problems(options, device)
    dtypes = split_words(options.dtypes, list(DTYPES), "dtype")
    layouts = split_words(options.layouts, LAYOUTS, "layout")
    peers = chosen_peers(options, device)
    if options.report and not any(problem.half for problem in problems):
        raise ValueError("--report is about layers of networks, and none is among the problems")
    cases = [(problem, dtype, layout) for problem in problems for dtype in dtypes for layout in layouts]
    ceilings = ceilings_of(device)
    environment = report.environment(device)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items() if value is not None))
    console.print(f"floor: {ceilings.source}")
    if device.type == "cpu" and options.shape is None and not options.full_size:
        console.print("no CUDA device: the built-in problems run at reduced sizes; their times say little")
    settings = {
        "seconds": options.seconds,
        "peers": peers,
        "dtypes": dtypes,
        "layouts": layouts,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }

    def save(results: Sequence[CaseResult]) -> None:
        if options.json:
            report.write_json(options.json, report.results_as_json(results, device, ceilings, settings))

    save([])  # no case of an earlier run is mistaken for one of this
    keyed = run_cases(options, device, ceilings, cases, peers, console, save)
    results = [result for _, result in keyed]
    _show(options, console, Measured(environment, ceilings, tuple(results)), _in_lines(cases))
    if options.keep_peers:
        report.write_json(options.keep_peers, report.kept_times(keyed, device))
    return 0 if results and all(result.ok for result in results) else 1


def _run_loaded(options: argparse.Namespace, console: Console) -> int:
    measured = read_results(options.load)
    console.print(measured.where)
    _show(options, console, measured, _in_lines(measured.results))
    return 0


def _show(options: argparse.Namespace, console: Console, measured: Measured, in_lines: bool) -> None:
    """Prints what is printed behind the cases, and writes the report."""
    for part in report.summaries(measured.results, in_lines):
        console.print(part, markup=False)
    if options.report:
        for path in write_report(measured, options.report, options.readme):
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _check_combination(options: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
        ValueError, OSError: they do not, or a report could not be written.
    """
    if options.readme and not options.report:
        raise ValueError("--readme goes with --report, which makes what is put there")
    if options.report:
        check_report(options.report, options.readme)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`'s.

    Returns:
        0, or 1 when epiconv was wrong or could not run in a case.

    Raises:
        SystemExit: the options cannot be read.

    Example:
        >>> main(["--problems", "kb57", "--device", "cpu"])
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    console = report.make_console()
    before = torch.backends.cudnn.benchmark
    try:
        _check_combination(options)
        if options.load:
            return _run_loaded(options, console)
        device = chosen_device(options.device)
        if options.cold and device.type != "cuda":
            raise ValueError("--cold flushes the cache of a CUDA device, and this is none")
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms: what a peer at its best does
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if options.host:
            return run_host(options, device, console)
        if options.training:
            return run_training(options, chosen_problems(options, device), device, console)
        if options.networks:
            return run_networks(options, device, console)
        if options.elementwise:
            return run_elementwise(options, device, console)
        return _run_problems(options, device, console)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    finally:
        torch.backends.cudnn.benchmark = before


if __name__ == "__main__":
    sys.exit(main())
