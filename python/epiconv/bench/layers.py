"""Layers of networks that people run, as problems of the benchmark: a convolution and what follows it.

They are split into two halves of the same number. What chooses a kernel is made from measurements: limits,
tile shapes, which path to take. It is tuned on the half "tuning" alone, and the half "measured" says what
that is worth on layers that nobody looked at meanwhile: one set for both would praise choices that were made
for it. Each network has layers in both halves, large and small ones in turns, so that the two are alike. The
half stands beside each layer and does not follow from a rule, so that a new layer moves no other.

Where a network has a batch norm behind a convolution, it is folded into weight and bias, as for inference;
the DCGAN layers keep theirs as a scale and a shift. Depthwise convolutions are left out.
"""

from typing import Any, Final

from epiconv.bench.problems import OUTPUT, Problem

_NETWORKS: Final = {
    "resnet50": "ResNet-50",
    "efficientnet": "EfficientNet-B0",
    "mobilenetv3": "MobileNetV3-Large",
    "yolo": "YOLO detector, 640×640",
    "diffusion": "diffusion U-Net, 64×64 latents",
    "vae": "decoder of a VAE, 512×512",
    "deeplab": "DeepLab",
    "dcgan": "DCGAN generator",
    "unet": "U-Net, 256×256",
    "audio": "generator of audio",
    "unet3d": "medical 3-D U-Net",
    "videovae": "VAE of video",
}

_RELU: Final = "v1 = relu(v0)"
_SILU: Final = "v1 = silu(v0)"
_HARDSWISH: Final = "v1 = hardswish(v0)"
_TANH: Final = "v1 = tanh(v0)"
_LEAKY_01: Final = "v1 = leaky_relu(v0, 0.01)"
_LEAKY_1: Final = "v1 = leaky_relu(v0, 0.1)"
_ADD: Final = "v1 = add(v0, b0)"
_ADD_RELU: Final = "v1 = add(v0, b0); v2 = relu(v1)"
_SILU_ADD: Final = "v1 = silu(v0); v2 = add(v1, b0)"
_NORM_RELU: Final = "v1 = mul(v0, b0); v2 = add(v1, b1); v3 = relu(v2)"
_NONE: Final = ""

_RESIDUAL: Final = (OUTPUT,)
_UP: Final[dict[str, Any]] = {"op": "conv_transpose2d", "stride": 2}
_DCGAN: Final[dict[str, Any]] = {**_UP, "padding": 1, "conv_bias": False}


def _layer(
    network: str,
    half: str,
    layer: str,
    input: tuple[int, ...],
    filters: int,
    taps: int,
    epilogue: str,
    operands: tuple[tuple[int, ...] | str, ...] = (),
    op: str = "",
    **more: Any,
) -> Problem:
    """A layer with as many taps along all dimensions; a plain convolution where no op is given."""
    rank = len(input) - 2
    return Problem(
        id=f"{network}-{layer}",
        name=_NETWORKS[network],
        op=op or f"conv{rank}d",
        input=input,
        out_channels=filters,
        kernel=(taps,) * rank,
        epilogue=epilogue,
        operands=operands,
        network=network,
        half=half,
        **more,
    )


LAYERS: Final[tuple[Problem, ...]] = (
    _layer("resnet50", "measured", "stem-b1", (1, 3, 224, 224), 64, 7, _RELU, stride=2, padding=3),
    _layer("resnet50", "tuning", "stem-b32", (32, 3, 224, 224), 64, 7, _RELU, stride=2, padding=3),
    _layer("resnet50", "tuning", "1x1-64-256-b256", (256, 64, 56, 56), 256, 1, _ADD_RELU, _RESIDUAL),
    _layer("resnet50", "tuning", "3x3-128-b32", (32, 128, 28, 28), 128, 3, _RELU, padding=1),
    _layer("resnet50", "measured", "3x3-256-s2-b32", (32, 256, 28, 28), 256, 3, _RELU, stride=2, padding=1),
    _layer("resnet50", "measured", "down-512-1024-b256", (256, 512, 28, 28), 1024, 1, _NONE, stride=2),
    _layer("resnet50", "measured", "1x1-1024-256-b32", (32, 1024, 14, 14), 256, 1, _RELU),
    _layer("resnet50", "tuning", "3x3-512-b1", (1, 512, 7, 7), 512, 3, _RELU, padding=1),
    _layer("resnet50", "measured", "3x3-512-b256", (256, 512, 7, 7), 512, 3, _RELU, padding=1),
    _layer("resnet50", "tuning", "1x1-512-2048-b1", (1, 512, 7, 7), 2048, 1, _ADD_RELU, _RESIDUAL),
    _layer("efficientnet", "tuning", "stem", (32, 3, 224, 224), 32, 3, _SILU, stride=2, padding=1),
    _layer("efficientnet", "tuning", "expand-24-144", (32, 24, 56, 56), 144, 1, _SILU),
    _layer("efficientnet", "measured", "project-144-24", (32, 144, 56, 56), 24, 1, _ADD, _RESIDUAL),
    _layer("efficientnet", "measured", "head", (32, 320, 7, 7), 1280, 1, _SILU),
    _layer("mobilenetv3", "tuning", "expand-40-240", (32, 40, 28, 28), 240, 1, _HARDSWISH),
    _layer("mobilenetv3", "measured", "expand-160-960", (32, 160, 7, 7), 960, 1, _HARDSWISH),
    _layer("yolo", "tuning", "stem", (8, 3, 640, 640), 32, 3, _SILU, stride=2, padding=1),
    _layer("yolo", "measured", "3x3-32-64-s2", (8, 32, 320, 320), 64, 3, _SILU, stride=2, padding=1),
    _layer("yolo", "measured", "3x3-64", (8, 64, 80, 80), 64, 3, _SILU_ADD, _RESIDUAL, padding=1),
    _layer("yolo", "tuning", "3x3-128-256-s2", (8, 128, 80, 80), 256, 3, _SILU, stride=2, padding=1),
    _layer("yolo", "tuning", "1x1-256-128", (8, 256, 40, 40), 128, 1, _SILU),
    _layer("yolo", "measured", "3x3-256", (8, 256, 20, 20), 256, 3, _SILU, padding=1),
    _layer("diffusion", "tuning", "3x3-320-b2", (2, 320, 64, 64), 320, 3, _ADD, ((2, 320, 1, 1),), padding=1),
    _layer("diffusion", "tuning", "3x3-320-b8", (8, 320, 64, 64), 320, 3, _ADD, ((8, 320, 1, 1),), padding=1),
    _layer("diffusion", "tuning", "3x3-640-b2", (2, 640, 32, 32), 640, 3, _ADD, _RESIDUAL, padding=1),
    _layer("diffusion", "measured", "3x3-640-b8", (8, 640, 32, 32), 640, 3, _ADD, ((8, 640, 1, 1),),
           padding=1),
    _layer("diffusion", "measured", "3x3-1280-b8", (8, 1280, 16, 16), 1280, 3, _ADD, _RESIDUAL, padding=1),
    _layer("diffusion", "measured", "3x3-1280-8x8-b2", (2, 1280, 8, 8), 1280, 3, _ADD, ((2, 1280, 1, 1),),
           padding=1),
    _layer("vae", "tuning", "3x3-512", (1, 512, 64, 64), 512, 3, _ADD, _RESIDUAL, padding=1),
    _layer("vae", "tuning", "3x3-256-128", (1, 256, 256, 256), 128, 3, _NONE, padding=1),
    _layer("vae", "measured", "3x3-128", (1, 128, 512, 512), 128, 3, _ADD, _RESIDUAL, padding=1),
    _layer("vae", "measured", "3x3-128-3", (1, 128, 512, 512), 3, 3, _NONE, padding=1),
    _layer("deeplab", "measured", "3x3-512-d2", (8, 512, 33, 33), 512, 3, _RELU, padding=2, dilation=2),
    _layer("deeplab", "tuning", "aspp-d12", (8, 2048, 33, 33), 256, 3, _RELU, padding=12, dilation=12),
    _layer("dcgan", "measured", "up-1024-512", (128, 1024, 4, 4), 512, 4, _NORM_RELU, ((512, 1, 1),) * 2,
           **_DCGAN),
    _layer("dcgan", "tuning", "up-512-256", (128, 512, 8, 8), 256, 4, _NORM_RELU, ((256, 1, 1),) * 2,
           **_DCGAN),
    _layer("dcgan", "tuning", "up-256-128", (128, 256, 16, 16), 128, 4, _NORM_RELU, ((128, 1, 1),) * 2,
           **_DCGAN),
    _layer("dcgan", "measured", "up-128-3", (128, 128, 32, 32), 3, 4, _TANH, **_DCGAN),
    _layer("unet", "measured", "up-256-128", (8, 256, 64, 64), 128, 2, _NONE, **_UP),
    _layer("unet", "tuning", "up-128-64", (8, 128, 128, 128), 64, 2, _NONE, **_UP),
    _layer("audio", "measured", "k3-d1", (16, 256, 8192), 256, 3, _ADD, _RESIDUAL, padding=1),
    _layer("audio", "tuning", "k3-d4", (16, 256, 8192), 256, 3, _LEAKY_1, padding=4, dilation=4),
    _layer("audio", "tuning", "k3-d9", (16, 256, 8192), 256, 3, _LEAKY_1, padding=9, dilation=9),
    _layer("audio", "measured", "up-256-128", (16, 256, 1024), 128, 16, _LEAKY_1, op="conv_transpose1d",
           stride=8, padding=4),
    _layer("unet3d", "measured", "stem", (2, 1, 64, 96, 96), 32, 3, _LEAKY_01, padding=1),
    _layer("unet3d", "tuning", "3x3x3-32", (2, 32, 64, 96, 96), 32, 3, _LEAKY_01, padding=1),
    _layer("unet3d", "tuning", "down-64-128", (2, 64, 32, 48, 48), 128, 3, _LEAKY_01, stride=2, padding=1),
    _layer("unet3d", "measured", "up-64-32", (2, 64, 32, 48, 48), 32, 2, _NONE, op="conv_transpose3d",
           stride=2),
    _layer("videovae", "measured", "3x3x3-128", (1, 128, 9, 64, 64), 128, 3, _SILU, padding=1),
    _layer("videovae", "tuning", "3x3x3-256", (1, 256, 5, 32, 32), 256, 3, _ADD, _RESIDUAL, padding=1),
)  # fmt: skip
"""All layers, by network."""
