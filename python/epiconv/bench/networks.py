"""Whole networks, fused and as they come, `python -m epiconv.bench --networks all`."""

import gc
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from epiconv.bench.peers import DTYPES, Unavailable, dtype_settings
from epiconv.bench.timing import WARM_UP_SECONDS, interleave, stopwatch_for
from epiconv.fusion import fuse


def _with_norm(inputs: int, outputs: int, groups: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU())


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox, 2015, with GroupNorm and padding: four levels of two convolutions.

    Args:
        channels: of the first level; each lower one has twice as many.

    Example:
        >>> UNet(64)(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(4)]
        self.down = nn.ModuleList()
        before = 3
        for width in widths:
            self.down.append(nn.Sequential(_with_norm(before, width), _with_norm(width, width)))
            before = width
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            self.join.append(nn.Sequential(_with_norm(2 * width, width), _with_norm(width, width)))
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for level, down in enumerate(self.down):
            if level:
                x = F.max_pool2d(x, 2)
            x = down(x)
            skips.append(x)
        for level, (up, join) in enumerate(zip(self.up, self.join, strict=True)):
            x = join(torch.cat([skips[-2 - level], F.relu(up(x))], dim=1))
        result: torch.Tensor = self.last(x)
        return result


def generator(channels: int = 64) -> nn.Sequential:
    """The generator of DCGAN (Radford, Metz and Chintala, 2015), for images of 64 x 64.

    Args:
        channels: of the last hidden layer; those before have twice as many each.

    Example:
        >>> generator()(torch.randn(2, 100, 1, 1)).shape
        torch.Size([2, 3, 64, 64])
    """
    layers: list[nn.Module] = [nn.ConvTranspose2d(100, 8 * channels, 4, bias=False)]
    for factor in (8, 4, 2):
        width = factor * channels
        layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
        layers.append(nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False))
    layers += [nn.BatchNorm2d(channels), nn.ReLU(True), nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(*layers)


class _DecoderBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, eps=1e-6), nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        result: torch.Tensor = self.shortcut(x) + h
        return result


class VaeDecoder(nn.Module):
    """The convolutions of the decoder of a latent diffusion model (Rombach et al., 2022), without attention.

    Args:
        widths: channels of the levels, from the latent image to the result.

    Example:
        >>> VaeDecoder()(torch.randn(1, 4, 32, 32)).shape
        torch.Size([1, 3, 256, 256])
    """

    def __init__(self, widths: Sequence[int] = (512, 512, 256, 128)) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, widths[0], 3, padding=1)
        levels: list[nn.Module] = []
        before = widths[0]
        for level, width in enumerate(widths):
            levels += [_DecoderBlock(before, width), _DecoderBlock(width, width)]
            if level + 1 < len(widths):
                levels += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
            before = width
        self.levels = nn.Sequential(*levels)
        self.norm = nn.GroupNorm(32, before, eps=1e-6)
        self.last = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.levels(self.first(z))
        result: torch.Tensor = self.last(F.silu(self.norm(h)))
        return result


def _of_torchvision(family: str, name: str) -> nn.Module:
    try:
        models: Any = import_module(f"torchvision.models.{family}".rstrip("."))
    except Exception as error:  # one of another torch fails in many ways
        raise Unavailable(f"torchvision cannot be imported: {error}") from None
    words: dict[str, Any] = {"weights_backbone": None} if family == "segmentation" else {}
    model: nn.Module = getattr(models, name)(weights=None, **words)
    return model


@dataclass(frozen=True)
class Network:
    """One network of the benchmark.

    Attributes:
        make: with random weights.
        shape: of its input.
        small: of an input on a CPU.
        make_small: of the network there; None for the same.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    small: tuple[int, ...]
    make_small: Callable[[], nn.Module] | None = None


_IMAGES: Final = ((32, 3, 224, 224), (1, 3, 64, 64))

NETWORKS: Final[Mapping[str, Network]] = {
    "resnet50": Network(partial(_of_torchvision, "", "resnet50"), *_IMAGES),
    "regnet_y_3_2gf": Network(partial(_of_torchvision, "", "regnet_y_3_2gf"), *_IMAGES),
    "mobilenet_v3_large": Network(partial(_of_torchvision, "", "mobilenet_v3_large"), *_IMAGES),
    "efficientnet_b0": Network(partial(_of_torchvision, "", "efficientnet_b0"), *_IMAGES),
    "convnext_tiny": Network(partial(_of_torchvision, "", "convnext_tiny"), *_IMAGES),
    "deeplabv3_resnet50": Network(
        partial(_of_torchvision, "segmentation", "deeplabv3_resnet50"), (4, 3, 512, 512), (1, 3, 64, 64)
    ),
    "r3d_18": Network(partial(_of_torchvision, "video", "r3d_18"), (4, 3, 16, 112, 112), (1, 3, 4, 32, 32)),
    "unet": Network(UNet, (4, 3, 256, 256), (1, 3, 32, 32), partial(UNet, 32)),
    "dcgan": Network(generator, (128, 100, 1, 1), (2, 100, 1, 1), partial(generator, 8)),
    "vae_decoder": Network(
        VaeDecoder, (1, 4, 64, 64), (1, 4, 8, 8), partial(VaeDecoder, widths=(64, 64, 32, 32))
    ),
}
"""Those that are timed, by name. Those of torchvision need it."""

NETWORK_PEERS: Final = (
    "eager",
    "eager_channels_last",
    "compile",
    "compile_channels_last",
    "fused",
    "fused_channels_last",
)
"""Layouts that a network is run in, as it comes, compiled by torch, and fused."""


@dataclass(frozen=True)
class NetworkTime:
    """A network by one peer, in eval mode without gradients.

    Attributes:
        network, dtype, peer: what was run.
        ms: of a call, end to end.
        error: the largest difference from the network in float64, over the largest value there.
    """

    network: str
    dtype: str
    peer: str
    ms: float
    error: float


def network_times(
    name: str, dtype_word: str, device: torch.device, peers: Sequence[str], seconds: float
) -> list[NetworkTime]:
    """Times a network by several peers in turns.

    Args:
        name: of `NETWORKS`; small on a CPU.
        dtype_word: of `peers.DTYPES`.
        device: where.
        peers: names of `NETWORK_PEERS`.
        seconds: to measure for.

    Returns:
        A row for each peer.

    Raises:
        Unavailable: the network cannot be made here.

    Example:
        >>> network_times("unet", "fp32", torch.device("cpu"), ["eager", "fused"], 1.0)
    """
    network = NETWORKS[name]
    is_small = device.type == "cpu"
    make = network.make_small if is_small and network.make_small is not None else network.make
    torch.manual_seed(0)
    model = make().eval()
    _randomise_statistics(model)
    model = model.to(device)
    x = torch.randn(network.small if is_small else network.shape, device=device)
    try:
        with torch.no_grad(), dtype_settings(dtype_word):
            exact = _first_result(model.double()(x[:1].double()))
            model, x = model.to(DTYPES[dtype_word]), x.to(DTYPES[dtype_word])
            calls: dict[str, Callable[[], object]] = {}
            errors: dict[str, float] = {}
            for peer in peers:
                run, given = _built(peer, model, x)
                errors[peer] = _error(_first_result(run(given))[:1], exact)
                calls[peer] = partial(run, given)
            warm_up = WARM_UP_SECONDS if device.type == "cuda" else 0.1
            timings = interleave(calls, stopwatch_for(device), seconds=seconds, warm_up=warm_up)
    finally:
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return [
        NetworkTime(name, dtype_word, peer, timing.seconds * 1e3, errors[peer])
        for peer, timing in timings.items()
    ]


def _randomise_statistics(model: nn.Module) -> None:
    """A BatchNorm that has seen nothing does next to nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)


def _built(peer: str, model: nn.Module, x: torch.Tensor) -> tuple[Callable[..., Any], torch.Tensor]:
    """A peer of `NETWORK_PEERS`, and its input."""
    kind, _, layout = peer.partition("_")
    # Of its own memory, since a layout is that of the parameters.
    own = fuse(model, x) if kind == "fused" else deepcopy(model)
    if layout == "channels_last":
        memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        for module in own.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d if x.dim() == 4 else nn.Conv3d):
                module.to(memory_format=memory_format)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=memory_format)
    return torch.compile(own, dynamic=False) if kind == "compile" else own, x


def _first_result(result: Any) -> torch.Tensor:
    """The tensor of a model's result, that of "out" in a dictionary."""
    found: torch.Tensor = result["out"] if isinstance(result, dict) else result
    return found


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())
