"""What `python -m epiconv.bench` measures besides problems beside their peers. Needs rich."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from epiconv.bench import report
from epiconv.bench.elementwise import pass_bandwidth, recipe_problems
from epiconv.bench.host import host_times
from epiconv.bench.networks import NETWORK_PEERS, NETWORKS, NetworkTime, network_times
from epiconv.bench.peers import DTYPES, LAYOUTS, Unavailable
from epiconv.bench.problems import Problem
from epiconv.bench.training import TRAINING_PEERS, training_steps


def split_words(text: str, known: Sequence[str], what: str) -> list[str]:
    """Splits `a,b` and checks each word.

    Args:
        text: of an option.
        known: words that there are.
        what: of what they are, for messages.

    Raises:
        ValueError: a word is unknown, or there is none.

    Example:
        >>> split_words("a,b", ["a", "b", "c"], "letter")
        ['a', 'b']
    """
    words = [word for word in text.replace(",", " ").split() if word]
    for word in words:
        if word not in known:
            raise ValueError(f"unknown {what} {word!r}; there are {', '.join(known)}")
    if not words:
        raise ValueError(f"no {what} is named")
    return list(dict.fromkeys(words))


def run_host(options: argparse.Namespace, device: torch.device, console: Console) -> int:
    """Host times, on the CPU and on the device.

    Args:
        options: of the command line.
        device: where.
        console: where the table goes.
    """
    devices = [torch.device("cpu")]
    if device.type == "cuda":
        devices.append(device)
    with report.progress_bar(console) as bar:
        task = bar.add_task("host time", total=2 * len(devices))
        rows = []
        for each in devices:
            for with_grad in (False, True):
                rows.append(host_times(each, options.seconds, with_grad))
                bar.advance(task)
    console.print(report.host_table(rows))
    write_rows(options, device, "host", [{**asdict(row), "ratio": row.ratio} for row in rows])
    return 0


def write_rows(options: argparse.Namespace, device: torch.device, name: str, rows: Sequence[object]) -> None:
    """Writes what was measured to the file of `--json`, if one is named.

    Args:
        options: of the command line.
        device: where it was measured.
        name: of the rows in the file.
        rows: as JSON takes them.
    """
    if options.json:
        content = {"schema": report.SCHEMA, "environment": report.environment(device), name: list(rows)}
        report.write_json(options.json, content)


def run_training(
    options: argparse.Namespace, problems: Sequence[Problem], device: torch.device, console: Console
) -> int:
    """Times training steps.

    Args:
        options: of the command line.
        problems: whose.
        device: where.
        console: where the table goes.
    """
    dtypes = split_words(options.dtypes, list(DTYPES), "dtype")
    layouts = split_words(options.layouts, LAYOUTS, "layout")
    default = TRAINING_PEERS if device.type == "cuda" else ("eager", "epiconv")
    peers = split_words(options.peers or ",".join(default), TRAINING_PEERS, "peer of --training")
    cases = [(problem, dtype, layout) for problem in problems for dtype in dtypes for layout in layouts]
    rows = []
    with report.progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))
        for problem, dtype, layout in cases:
            bar.update(task, description=f"{problem.id} {dtype} {layout}")
            try:
                rows += training_steps(problem, dtype, layout, device, peers, options.seconds)
            except (Unavailable, torch.OutOfMemoryError) as error:
                console.print(f"{problem.id} {dtype} {layout}: left out, {error}", markup=False)
            bar.advance(task)
    console.print(report.training_table(rows))
    write_rows(options, device, "training", [asdict(row) for row in rows])
    return 0


def run_elementwise(options: argparse.Namespace, device: torch.device, console: Console) -> int:
    """Times the pass alone beside a copy.

    Args:
        options: of the command line.
        device: where.
        console: where the table goes.
    """
    dtypes = [word for word in split_words(options.dtypes, list(DTYPES), "dtype") if word != "fp32_ieee"]
    layouts = split_words(options.layouts, LAYOUTS, "layout")
    cases = [(p, dtype, layout) for p in recipe_problems(device) for dtype in dtypes for layout in layouts]
    with report.progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))
        rows = []
        for problem, dtype, layout in cases:
            bar.update(task, description=f"{problem.id} {dtype} {layout}")
            rows.append(pass_bandwidth(problem, dtype, layout, device, options.seconds))
            bar.advance(task)
    console.print(report.bandwidth_table(rows))
    write_rows(options, device, "elementwise", [{**asdict(row), "percent": row.percent} for row in rows])
    return 0


def run_networks(options: argparse.Namespace, device: torch.device, console: Console) -> int:
    """Times whole networks, as they come and fused.

    Args:
        options: of the command line.
        device: where.
        console: where the table goes.
    """
    names = (
        list(NETWORKS)
        if options.networks == "all"
        else split_words(options.networks, list(NETWORKS), "network")
    )
    dtypes = split_words(options.dtypes, list(DTYPES), "dtype")
    default = [peer for peer in NETWORK_PEERS if device.type == "cuda" or not peer.startswith("compile")]
    peers = split_words(options.peers or ",".join(default), NETWORK_PEERS, "peer of --networks")
    rows: list[NetworkTime] = []
    with report.progress_bar(console) as bar:
        task = bar.add_task("", total=len(names) * len(dtypes))
        for name in names:
            for dtype in dtypes:
                bar.update(task, description=f"{name} {dtype}")
                try:
                    rows += network_times(name, dtype, device, peers, options.seconds)
                except (Unavailable, torch.OutOfMemoryError) as error:
                    console.print(f"{name} {dtype}: left out, {error}", markup=False)
                bar.advance(task)
    console.print(report.network_table(rows))
    write_rows(options, device, "networks", [asdict(row) for row in rows])
    return 0 if rows else 1
