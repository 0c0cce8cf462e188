"""What NVIDIA cards can do at most: the floor under a problem's time.

Rates of the tensor cores, dense, with accumulation in float32. "fp32" is a third of TF32's, since three
TF32 products make one of float32; without tensor cores these cards multiply at less than half of that.
"""

from dataclasses import dataclass
from typing import Final

from epiconv import _core


@dataclass(frozen=True)
class Card:
    """The most a card can do.

    Attributes:
        bytes_per_second: read + written.
        flops_per_second: by math: "fp32", "tf32", "bf16", "fp16", "fp64".
        source: where the numbers are from.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]
    source: str

    def floor(self, math_name: str, flops: int, bytes_moved: int) -> tuple[float, str]:
        """The least time for so many operations and bytes.

        Args:
            math_name: a key of `flops_per_second`.
            flops: two per multiply-add.
            bytes_moved: read + written.

        Returns:
            Seconds, and what bounds them: "FLOPs" or "bytes".

        Example:
            >>> CARDS["NVIDIA H200"].floor("bf16", 10**12, 10**9)
            (0.0010683760683760685, 'FLOPs')
        """
        by_flops = flops / self.flops_per_second[math_name]
        by_bytes = bytes_moved / self.bytes_per_second
        return (by_flops, "FLOPs") if by_flops > by_bytes else (by_bytes, "bytes")


def _rates(tf32: float, half: float, fp64: float) -> dict[str, float]:
    return {
        "fp32": tf32 / 3 * 1e12,
        "tf32": tf32 * 1e12,
        "bf16": half * 1e12,
        "fp16": half * 1e12,
        "fp64": fp64 * 1e12,
    }


_H200: Final = (
    "measured on one H200 (700 W, CUDA 13.0): wgmma m64n256 on random data in short runs, device copy"
)
_H100: Final = "NVIDIA H100 Tensor Core GPU datasheet, without sparsity"
_A100: Final = "NVIDIA A100 Tensor Core GPU datasheet, without sparsity"

CARDS: Final[dict[str, Card]] = {
    "NVIDIA H200": Card(
        _core.predicted_bytes_per_second, _rates(456, 936, 67), _H200 + "; fp64 from the datasheet"
    ),
    "NVIDIA H100 80GB HBM3": Card(3.35e12, _rates(494.5, 989.5, 67), _H100),
    "NVIDIA H100 NVL": Card(3.9e12, _rates(417.5, 835.5, 60), _H100),
    "NVIDIA H100 PCIe": Card(2.0e12, _rates(378, 756.5, 51), _H100),
    "NVIDIA A100-SXM4-80GB": Card(2.039e12, _rates(156, 312, 19.5), _A100),
    "NVIDIA A100-SXM4-40GB": Card(1.555e12, _rates(156, 312, 19.5), _A100),
    "NVIDIA A100 80GB PCIe": Card(1.935e12, _rates(156, 312, 19.5), _A100),
    "NVIDIA A100-PCIE-40GB": Card(1.555e12, _rates(156, 312, 19.5), _A100),
}
"""By the name that `torch.cuda.get_device_name` gives."""
