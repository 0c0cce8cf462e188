"""Training in several processes: the losses and parameters of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_training import train
from torch import distributed as dist

SCRIPT = Path(__file__).parent / "distributed_training.py"


def run_processes(kind, device_type, world=2):
    """What each process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, device_type],
            env=os.environ | shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        done = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, done, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in done]


def compare(kind, device):
    alone = train("single", device)
    assert alone["losses"][-1] < alone["losses"][0]
    for of_process in run_processes(kind, device.type):
        # Sums of a batch in another order, over a few steps.
        assert of_process["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert of_process["sums"] == pytest.approx(alone["sums"], rel=1e-3, abs=1e-3)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_losses_are_those_of_one_process(kind):
    compare(kind, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_losses_on_two_cards(kind, two_cards, setting):
    setting("ieee")
    compare(kind, two_cards[0])
