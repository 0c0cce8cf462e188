"""Blocks of well-known networks, written as their authors write them, and the programs that fuse finds."""

from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F

BN = "v1 = mul(v0, b0); v2 = add(v1, b1)"


class BasicBlock(nn.Module):
    def __init__(self, inputs=6, outputs=6, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, channels=8, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return torch.relu(x + self.bn3(self.conv3(out)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(scale))))


class MBConv(nn.Module):
    def __init__(self, channels=4, wide=8):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.se = SqueezeExcite(wide, 2)
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.dropout(self.project(self.se(self.depthwise(self.expand(x)))))


class ConvNextLike(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)
        self.up = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.GELU()
        self.down = nn.Conv2d(4 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        y = self.down(self.act(self.up(self.norm(self.mix(x)))))
        return x + self.gamma * y


class UNet(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.SiLU())
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.GroupNorm(4, 2 * channels), nn.SiLU()
        )
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.norm = nn.GroupNorm(2, channels)
        self.last = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, x):
        skip = self.inner(x)
        y = F.silu(self.norm(self.up(self.deep(self.pool(skip)))))
        return self.last(torch.cat([skip, y], dim=1))


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(5, 8, 4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(4, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class VaeBlock(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.norm1 = nn.GroupNorm(2, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h)
        h = h * torch.sigmoid(h)
        h = self.conv2(h)
        h = (x + h) / 2**0.5
        return h.clamp(-3, 3)


class R3dBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(nn.Conv3d(4, 3, 3, padding=1, bias=False), nn.BatchNorm3d(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.conv2(self.conv1(x))
        out += x
        return self.relu(out)


class Branching(nn.Module):
    """What torch.fx cannot trace, around what it can."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.block = BasicBlock()
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        if x.sum() > 0:
            x = self.block(x)
        return F.relu(self.head(x))


Block = namedtuple("Block", "make input programs left")

BLOCKS = {
    "basic": Block(
        lambda: nn.Sequential(BasicBlock(), BasicBlock(6, 8, 2)),
        (2, 6, 8, 8),
        {
            "0.conv1": f"{BN}; v3 = relu_(v2)",
            "0.conv2": f"{BN}; v3 = add_(v2, b2); v4 = relu_(v3)",
            "1.conv1": f"{BN}; v3 = relu_(v2)",
            "1.conv2": f"{BN}; v3 = add_(v2, b2); v4 = relu_(v3)",
            "1.downsample.0": BN,
        },
        (),
    ),
    "bottleneck": Block(
        Bottleneck,
        (2, 8, 6, 6),
        {
            "conv1": f"{BN}; v3 = relu(v2)",
            "conv2": f"{BN}; v3 = relu(v2)",
            "conv3": f"{BN}; v3 = add(b2, v2); v4 = relu(v3)",
        },
        (),
    ),
    "mbconv": Block(
        MBConv,
        (2, 4, 7, 6),
        {
            "expand.0": f"{BN}; v3 = silu(v2)",
            "depthwise.0": f"{BN}; v3 = silu(v2)",
            "se.fc1": "v1 = silu(v0)",
            "se.fc2": "v1 = sigmoid(v0)",
            "project.0": f"{BN}; v3 = add(b2, v2)",
        },
        (),
    ),
    "convnext": Block(
        ConvNextLike,
        (2, 4, 8, 8),
        {
            "mix": "v1 = group_norm(v0, 1, weight=b0, bias=b1, eps=1e-06)",
            "up": "v1 = gelu(v0)",
            "down": "v1 = mul(b0, v0); v2 = add(b1, v1)",
        },
        (),
    ),
    "unet": Block(
        UNet,
        (2, 3, 8, 8),
        {
            "inner.0": "v1 = group_norm(v0, 2, weight=b0, bias=b1); v2 = silu(v1)",
            "deep.0": "v1 = group_norm(v0, 4, weight=b0, bias=b1); v2 = silu(v1)",
            "up": "v1 = group_norm(v0, 2, weight=b0, bias=b1); v2 = silu(v1)",
        },
        ("last",),
    ),
    "gan": Block(
        Generator,
        (2, 5, 1, 1),
        {
            "main.0": f"{BN}; v3 = relu_(v2)",
            "main.3": f"{BN}; v3 = leaky_relu_(v2, negative_slope=0.2)",
            "main.6": "v1 = tanh(v0)",
        },
        (),
    ),
    "vae": Block(
        VaeBlock,
        (2, 4, 6, 6),
        {
            "conv1": "v1 = group_norm(v0, 4, weight=b0, bias=b1); v2 = sigmoid(v1); v3 = mul(v1, v2)",
            "conv2": "v1 = add(b0, v0); v2 = div(v1, 1.4142135623730951); v3 = clamp(v2, min=-3, max=3)",
        },
        (),
    ),
    "r3d": Block(
        R3dBlock,
        (1, 3, 3, 5, 4),
        {
            "conv1.0": f"{BN}; v3 = relu_(v2)",
            "conv2.0": f"{BN}; v3 = add_(v2, b2); v4 = relu_(v3)",
        },
        (),
    ),
    "branching": Block(
        Branching,
        (2, 3, 6, 6),
        {
            "stem.0": "v1 = relu(v0)",
            "block.conv1": f"{BN}; v3 = relu_(v2)",
            "block.conv2": f"{BN}; v3 = add_(v2, b2); v4 = relu_(v3)",
        },
        ("head",),
    ),
}


def make(name):
    """A block in eval mode whose BatchNorms do something, and an input for it."""
    torch.manual_seed(0)
    block = BLOCKS[name]
    model = block.make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model, torch.randn(block.input)


def programs(report):
    """The programs of a report by the names of their convolutions."""
    return {row.module: row.program for row in report.rows if row.fused}
