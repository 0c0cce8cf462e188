"""Ready modules: a convolution and the elementwise operations behind it, in one call.

Each is a drop-in for the plain PyTorch model of the same forward: constructor arguments, parameter
names, `state_dict` keys and results are the same. `reference` is that plain forward on the module's own
parameters.

    >>> model = ConvReluAdd(64, 128, 3, (128, 1, 1)).cuda()
    >>> model.load_state_dict(plain_model.state_dict())
    >>> y = model(x)
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import nn

import epiconv
from epiconv.functional import arguments_of, fused_in_module
from epiconv.packed_weights import PackingModule
from epiconv.program import BoundProgram, Program


def _operand_parameter(name: str, shape: Sequence[int], out_channels: int) -> nn.Parameter:
    """A random parameter that broadcasts against a (N, out_channels, P, Q) output without growing it."""
    extents = tuple(shape)
    hint = f"; one value per channel is ({out_channels}, 1, 1)"
    if any(isinstance(extent, bool) or not isinstance(extent, int) or extent < 1 for extent in extents):
        raise ValueError(f"{name}_shape is {extents}, but its extents are positive integers{hint}")
    if len(extents) > 4:
        raise ValueError(f"{name}_shape {extents} has {len(extents)} dimensions, the output has 4{hint}")
    if len(extents) >= 3 and extents[-3] not in (1, out_channels):
        raise ValueError(
            f"{name}_shape {extents} does not broadcast against {out_channels} output channels{hint}"
        )
    if len(extents) == 1 and extents[0] == out_channels != 1:
        raise ValueError(f"{name}_shape {extents} runs along the width, as torch broadcasts it{hint}")
    return nn.Parameter(torch.randn(extents))


class Recipe(PackingModule):
    """What the recipes share: sizes to try them at, and programs that never change after construction.

    Attributes:
        sizes: shape (N, C, H, W) of the example input, as in the project's measurements.
        reduced_sizes: a small one with the same channels, for a CPU.
        program: the epilogue, unbound; `print(model.program)` shows it.
        bias: its first operand.
    """

    sizes: ClassVar[tuple[int, int, int, int]]
    reduced_sizes: ClassVar[tuple[int, int, int, int]]
    program: Program
    bias: nn.Parameter

    @classmethod
    def example_init(cls) -> tuple[Any, ...]:
        """Constructor arguments of the example.

        Example:
            >>> model = ConvReluAdd(*ConvReluAdd.example_init())
        """
        raise NotImplementedError

    @classmethod
    def example_inputs(
        cls,
        reduced: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> tuple[torch.Tensor, ...]:
        """Arguments of `forward` for a model made with `example_init()`: normal random numbers.

        Args:
            reduced: a few small images instead of the full size (0.27 to 0.54 GB in float32).
            device: where they are made; None is torch's default device.
            dtype: floating; None is torch's default dtype.
            memory_format: of the input, `torch.contiguous_format` or `torch.channels_last`.

        Returns:
            A tuple of one tensor, (N, C, H, W).

        Example:
            >>> y = model(*ConvReluAdd.example_inputs(reduced=True))
        """
        x = torch.randn(cls.reduced_sizes if reduced else cls.sizes, device=device, dtype=dtype)
        return (x.contiguous(memory_format=memory_format),)

    def epilogue(self) -> BoundProgram:
        """The program with this module's parameters as its operands.

        Example:
            >>> y = epiconv.fused_conv_epilogue(x, model.conv.weight, epilogue=model.epilogue())
        """
        return self.program(self.bias)

    def _convolution(self) -> tuple[nn.Conv2d | nn.ConvTranspose2d, dict[str, Any]]:
        """The convolution, and the keywords of `fused_conv_epilogue` for it."""
        own: Any = self
        return own.conv, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolution and epilogue in one call.

        Args:
            x: (N, C, H, W), any memory format.

        Returns:
            (N, K, P, Q); channels_last when the input or the weight is.

        Raises:
            RuntimeError, ValueError, TypeError: as `epiconv.fused_conv_epilogue`.

        Example:
            >>> y = model(x)
        """
        conv, words = self._convolution()
        return fused_in_module(x, conv.weight, conv.bias, self.epilogue(), arguments_of(words), self._packed)

    def explain(self, x: torch.Tensor) -> "epiconv.Plan":
        """How `forward` would run for this input: path, kernel, and why the others were refused.

        Args:
            x: as for `forward`.

        Example:
            >>> print(model.explain(x))
        """
        conv, words = self._convolution()
        return epiconv.explain(x, conv.weight, conv.bias, epilogue=self.epilogue(), **words)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The plain PyTorch forward on the same parameters.

        Args:
            x: as for `forward`, (N, C, H, W).

        Returns:
            (N, K, P, Q), in the dtype that torch gives it.

        Example:
            >>> torch.testing.assert_close(model(x), model.reference(x))
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The program, as text."""
        return f"program: {self.program}"


class ConvMinAddMul(Recipe):
    """`(min(conv(x), constant_value) + bias) * scaling_factor`: recipes A and B.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: filter height and width: an int for both, or (R, S).
        constant_value: upper bound of the convolution's output. Fixed once constructed.
        bias_shape: of the parameter `bias`; broadcasts against (N, K, P, Q), usually (K, 1, 1).
        scaling_factor: what the sum is multiplied by. Fixed once constructed.

    Attributes:
        conv: `nn.Conv2d` with its own bias.
        bias: what is added, of `bias_shape`.

    Raises:
        ValueError: `bias_shape` does not broadcast against the output's channels.

    Example:
        >>> model = ConvMinAddMul(64, 128, 3, 0.5, (128, 1, 1), 2.0)
        >>> model(torch.randn(2, 64, 32, 32)).shape
        torch.Size([2, 128, 30, 30])
    """

    sizes = (128, 64, 128, 128)
    reduced_sizes = (2, 64, 32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        constant_value: float,
        bias_shape: Sequence[int],
        scaling_factor: float,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = _operand_parameter("bias", bias_shape, out_channels)
        self._constant_value = float(constant_value)
        self._scaling_factor = float(scaling_factor)
        self.program = Program(
            f"v1 = minimum(v0, {self._constant_value!r}); "
            "v2 = add(v1, b0); "
            f"v3 = mul(v2, {self._scaling_factor!r})"
        )

    @classmethod
    def example_init(cls) -> tuple[Any, ...]:
        """Constructor arguments of the example: 64 to 128 channels, 3×3."""
        return 64, 128, 3, 0.5, (128, 1, 1), 2.0

    @property
    def constant_value(self) -> float:
        """Upper bound of the convolution's output."""
        return self._constant_value

    @property
    def scaling_factor(self) -> float:
        """What the sum is multiplied by."""
        return self._scaling_factor

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The plain PyTorch forward on the same parameters; see `Recipe.reference`."""
        y = self.conv(x)
        bound = torch.tensor(self._constant_value, dtype=torch.float64)  # 0-d: no part in type promotion
        result: torch.Tensor = (torch.minimum(y, bound) + self.bias) * self._scaling_factor
        return result


class ConvReluAdd(Recipe):
    """`relu(conv(x)) + bias`.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: filter height and width: an int for both, or (R, S).
        bias_shape: of the parameter `bias`; broadcasts against (N, K, P, Q), usually (K, 1, 1).

    Attributes:
        conv: `nn.Conv2d` with its own bias.
        bias: what is added, of `bias_shape`.

    Raises:
        ValueError: `bias_shape` does not broadcast against the output's channels.

    Example:
        >>> model = ConvReluAdd(64, 128, 3, (128, 1, 1))
        >>> model(torch.randn(2, 64, 32, 32)).shape
        torch.Size([2, 128, 30, 30])
    """

    sizes = (128, 64, 128, 128)
    reduced_sizes = (2, 64, 32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        bias_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = _operand_parameter("bias", bias_shape, out_channels)
        self.program = Program("v1 = relu(v0); v2 = add(v1, b0)")

    @classmethod
    def example_init(cls) -> tuple[Any, ...]:
        """Constructor arguments of the example: 64 to 128 channels, 3×3."""
        return 64, 128, 3, (128, 1, 1)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The plain PyTorch forward on the same parameters; see `Recipe.reference`."""
        return torch.relu(self.conv(x)) + self.bias


class ConvAddMulSigmoidGroupNorm(Recipe):
    """`group_norm(sigmoid((conv(x) + bias) * scale))`.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: filter height and width: an int for both, or (R, S).
        num_groups: of the GroupNorm; divides K.
        bias_shape: of the parameter `bias`; broadcasts against (N, K, P, Q), usually (K, 1, 1).
        scale_shape: of the parameter `scale`, as `bias_shape`.

    Attributes:
        conv: `nn.Conv2d` with its own bias.
        bias: what is added, of `bias_shape`.
        scale: what the sum is multiplied by, of `scale_shape`.
        group_norm: `nn.GroupNorm(num_groups, out_channels)`.

    Raises:
        ValueError: a shape does not broadcast against the output's channels, or `num_groups` does not
            divide them.

    Example:
        >>> model = ConvAddMulSigmoidGroupNorm(8, 32, 3, 8, (32, 1, 1), (32, 1, 1))
        >>> model(torch.randn(2, 8, 64, 64)).shape
        torch.Size([2, 32, 62, 62])
    """

    sizes = (128, 8, 256, 256)
    reduced_sizes = (2, 8, 64, 64)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_groups: int,
        bias_shape: Sequence[int],
        scale_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = _operand_parameter("bias", bias_shape, out_channels)
        self.scale = _operand_parameter("scale", scale_shape, out_channels)
        self.group_norm = nn.GroupNorm(num_groups, out_channels)
        self.program = Program(
            "v1 = add(v0, b0); v2 = mul(v1, b1); v3 = sigmoid(v2); "
            f"v4 = group_norm(v3, {num_groups}, b2, b3, {self.group_norm.eps!r})"
        )

    @classmethod
    def example_init(cls) -> tuple[Any, ...]:
        """Constructor arguments of the example: 8 to 32 channels, 3×3, 8 groups."""
        return 8, 32, 3, 8, (32, 1, 1), (32, 1, 1)

    def epilogue(self) -> BoundProgram:
        """The program with this module's parameters as its operands; see `Recipe.epilogue`."""
        return self.program(self.bias, self.scale, self.group_norm.weight, self.group_norm.bias)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The plain PyTorch forward on the same parameters; see `Recipe.reference`."""
        result: torch.Tensor = self.group_norm(torch.sigmoid((self.conv(x) + self.bias) * self.scale))
        return result


class ConvTransposeAddClampMulClampDiv(Recipe):
    """`clamp(clamp(conv_transpose(x) + bias, 0, 1) * scaling_factor, 0, 1) / scaling_factor`.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: filter height and width: an int for both, or (R, S).
        stride: an int, or one for height and one for width.
        padding: rows and columns that the output loses on each side; an int or a pair.
        output_padding: rows and columns that it gains at the end; an int or a pair, less than the stride.
        bias_shape: of the parameter `bias`; broadcasts against (N, K, P, Q), usually (K, 1, 1).
        scaling_factor: multiplied and divided by. Fixed once constructed.

    Attributes:
        conv_transpose: `nn.ConvTranspose2d` with its own bias.
        bias: what is added, of `bias_shape`.

    Raises:
        ValueError: `bias_shape` does not broadcast against the output's channels.

    Example:
        >>> model = ConvTransposeAddClampMulClampDiv(64, 64, 3, 2, 1, 1, (64, 1, 1), 2.0)
        >>> model(torch.randn(2, 64, 32, 32)).shape
        torch.Size([2, 64, 64, 64])
    """

    sizes = (128, 64, 128, 128)
    reduced_sizes = (2, 64, 32, 32)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        output_padding: int | tuple[int, int],
        bias_shape: Sequence[int],
        scaling_factor: float,
    ) -> None:
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
        )
        self.bias = _operand_parameter("bias", bias_shape, out_channels)
        self._scaling_factor = float(scaling_factor)
        self.program = Program(
            "v1 = add(v0, b0); v2 = clamp(v1, 0.0, 1.0); "
            f"v3 = mul(v2, {self._scaling_factor!r}); v4 = clamp(v3, 0.0, 1.0); "
            f"v5 = div(v4, {self._scaling_factor!r})"
        )

    @classmethod
    def example_init(cls) -> tuple[Any, ...]:
        """Constructor arguments of the example: 64 channels, 3×3, stride 2."""
        return 64, 64, 3, 2, 1, 1, (64, 1, 1), 2.0

    @property
    def scaling_factor(self) -> float:
        """What the clamped sum is multiplied by, and the result divided by."""
        return self._scaling_factor

    def _convolution(self) -> tuple[nn.Conv2d | nn.ConvTranspose2d, dict[str, Any]]:
        conv = self.conv_transpose
        words = {
            "stride": conv.stride,
            "padding": conv.padding,
            "output_padding": conv.output_padding,
            "transposed": True,
        }
        return conv, words

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The plain PyTorch forward on the same parameters; see `Recipe.reference`."""
        y = torch.clamp(self.conv_transpose(x) + self.bias, min=0.0, max=1.0)
        return torch.clamp(y * self._scaling_factor, min=0.0, max=1.0) / self._scaling_factor


RECIPES: Final[tuple[type[Recipe], ...]] = (
    ConvMinAddMul,
    ConvReluAdd,
    ConvAddMulSigmoidGroupNorm,
    ConvTransposeAddClampMulClampDiv,
)
"""All recipes, in the order of the project's table."""

__all__ = [
    "RECIPES",
    "ConvAddMulSigmoidGroupNorm",
    "ConvMinAddMul",
    "ConvReluAdd",
    "ConvTransposeAddClampMulClampDiv",
    "Recipe",
]
