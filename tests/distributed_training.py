"""A training run of a small network of fused convolutions, alone or as one of several processes.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/distributed_training.py ddp cpu
"""

import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch import nn

import epiconv
from epiconv import ops

STEPS, BATCH = 4, 8


class Block(nn.Module):
    """Down and up again, with a residual, a GroupNorm and a parameter among the operands."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.mix = nn.Parameter(torch.randn(channels, channels, 1, 1) / channels**0.5)
        self.down = epiconv.nn.FusedConv2d.from_module(
            nn.Conv2d(channels, 2 * channels, 2, stride=2),
            nn.GroupNorm(4, 2 * channels),
            nn.SiLU(),
        )
        self.up = epiconv.nn.FusedConvTranspose2d(2 * channels, channels, 2, stride=2)

    def forward(self, x):
        x = x + self.up(self.down(x))
        return epiconv.fused_conv_epilogue(x, self.mix, epilogue=[ops.mul(self.scale), ops.relu()])


def make_model(device):
    torch.manual_seed(0)
    return nn.Sequential(
        epiconv.nn.FusedConv2d(3, 8, 3, padding=1, epilogue=[ops.leaky_relu(0.1)]),
        Block(8),
        Block(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).to(device)


def make_batches(device):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 3, 12, 12, generator=generator)
        yield x.to(device), torch.randint(5, (BATCH,), generator=generator).to(device)


def train(kind, device):
    """The mean loss over the whole batch before each step, and after the last the sum of each parameter.

    Args:
        kind: "single", "ddp" or "fsdp"; the latter two have a part of the batch in each process.
    """
    model = make_model(device)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model:
            if any(True for _ in layer.parameters()):
                fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    rank, world = (0, 1) if kind == "single" else (dist.get_rank(), dist.get_world_size())
    losses = []
    for x, labels in make_batches(device):
        part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        loss = F.cross_entropy(model(x[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        if kind != "single":
            dist.all_reduce(whole)
        losses.append(whole.item() / world)
    sums = [
        (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).double().sum().item()
        for parameter in model.parameters()
    ]
    return {"losses": losses, "sums": sums}


def main():
    kind, device_type = sys.argv[1:]
    device = torch.device(device_type, int(os.environ["RANK"]) if device_type == "cuda" else None)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        result = train(kind, device)
    finally:
        dist.destroy_process_group()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
