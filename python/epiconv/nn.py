"""Convolution modules with an epilogue: `torch.nn`'s, and one keyword more.

    >>> conv = epiconv.nn.FusedConv2d(64, 128, 3, padding=1, epilogue=[ops.relu(), ops.mul(2.0)])
    >>> fused = epiconv.nn.FusedConv2d.from_module(nn.Conv2d(64, 128, 3), nn.GroupNorm(8, 128), nn.ReLU())

Constructor arguments, parameters and `state_dict` keys are those of the class of torch.nn. The operands of
the epilogue belong to the module too, and move with it (`to`, `half`, `load_state_dict`):

- a `Parameter` is a parameter of the module, `epilogue_operand0` and so on, in its `state_dict` as well.
  One that another module owns is shared between both; for torch.nn's keys alone, call
  `fused_conv_epilogue` in that module's forward instead.
- any other tensor is a buffer that is not in the `state_dict`: a constant, given to the constructor.
- `from_module` keeps the modules that it was given, as the submodule `following`; their parameters are
  the operands, under `following.0.weight` and so on.

The attribute `save`, of the constructor's argument, says what is kept for the backward pass.

On the path "implicit_gemm" a module keeps the packed weight, which is neither in its `state_dict` nor in
copies and pickles of it; `repack()` says which writes to a weight a call cannot see.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from epiconv import _torch_private
from epiconv.arguments import SAVES, check_word
from epiconv.functional import fused_in_module
from epiconv.packed_weights import PackingModule
from epiconv.program import BoundProgram, PartialProgram, Program, bind_epilogue
from epiconv.tracing import trace

_Module = TypeVar("_Module", bound="_FusedModule")


class _FusedModule(PackingModule):
    """The epilogue of a convolution module: its program, and where its operands are."""

    _transposed: ClassVar[bool]
    _base: ClassVar[type[nn.Module]]
    _program: Program
    _operand_names: tuple[str, ...]

    def __init__(self, *args: Any, epilogue: Any = None, save: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_word("save", save, SAVES)
        self.save = save
        self._set_epilogue(epilogue)

    def _set_epilogue(self, epilogue: Any) -> None:
        """Takes over program and operands; an operand that a submodule owns is found there."""
        self._program, operands = bind_epilogue(epilogue)
        owned = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        names = {id(tensor): name for name, tensor in reversed(owned)}
        count = len(names)
        for operand in operands:
            if id(operand) in names:
                continue
            name = f"epilogue_operand{len(names) - count}"
            names[id(operand)] = name
            if isinstance(operand, nn.Parameter):
                self.register_parameter(name, operand)
            else:
                self.register_buffer(name, operand, persistent=False)
        self._operand_names = tuple([names[id(operand)] for operand in operands])

    def _operand(self, name: str) -> torch.Tensor:
        owner: Any = self
        for part in name.split("."):
            owner = getattr(owner, part)
        tensor: torch.Tensor = owner
        return tensor

    @property
    def epilogue(self) -> BoundProgram:
        """The program with its operands as they are now: what `epilogue=` of other calls takes."""
        return self._program(*[self._operand(name) for name in self._operand_names])

    def _convolve(self, input: torch.Tensor, output_padding: Sequence[int] | int) -> torch.Tensor:
        own: Any = self
        arguments = (
            *(own.stride, own.padding, own.dilation, own.groups, self._transposed, output_padding),
            *(own.padding_mode, None, "auto", None, None, self.save),
        )
        return fused_in_module(input, own.weight, own.bias, self.epilogue, arguments, self._packed)

    @classmethod
    def from_module(cls: type[_Module], conv: nn.Module, *following: nn.Module) -> _Module:
        """Takes over a convolution and the modules behind it, without copying a parameter.

        Args:
            conv: of the class of torch.nn that this one stands for, without hooks or parametrizations.
            following: what its output goes through, in order. They are traced once, now: later changes
                of their attributes are not seen, changes of their parameters are.

        Returns:
            A module with the same parameters as `conv` and, under `following`, those of the others.

        Raises:
            TypeError: `conv` is of another class.
            ValueError: it has hooks or parametrizations.
            Other exceptions: of `epiconv.trace`, for an operation that an epilogue does not have.

        Example:
            >>> fused = FusedConv2d.from_module(model.conv, model.norm, model.activation)
        """
        if not isinstance(conv, cls._base) or isinstance(conv, _FusedModule):
            raise TypeError(
                f"{cls.__name__} takes a torch.nn.{cls._base.__name__}, not a {type(conv).__name__}"
            )
        for module in (conv, *following):
            _refuse_side_effects(module)
        own: Any = conv
        words: dict[str, Any] = {"output_padding": own.output_padding} if cls._transposed else {}
        fused = cls(
            own.in_channels,
            own.out_channels,
            own.kernel_size,
            stride=own.stride,
            padding=own.padding,
            dilation=own.dilation,
            groups=own.groups,
            bias=own.bias is not None,
            padding_mode=own.padding_mode,
            device="meta",
            **words,
        )
        fused.weight, fused.bias = own.weight, own.bias
        if following:
            fused.following = nn.Sequential(*following)
            fused._set_epilogue(_traced(fused.following))
        return fused.train(conv.training)

    def extra_repr(self) -> str:
        """The arguments, as torch.nn prints them, and the program."""
        return f"{super().extra_repr()}, epilogue={self._program.text!r}"


def _refuse_side_effects(module: nn.Module) -> None:
    for each in module.modules():
        if parametrize.is_parametrized(each):
            raise ValueError(
                f"{each!r} is parametrized: call torch.nn.utils.parametrize.remove_parametrizations"
            )
        if _torch_private.has_hooks(each):
            raise ValueError(f"{each!r} has hooks, which would not run: remove them first")


def _traced(following: nn.Module) -> BoundProgram:
    program: Program | PartialProgram | BoundProgram = trace(following)
    return program()  # what needs further operands says so


class _FusedConvolution(_FusedModule):
    _transposed = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolution and epilogue in one call.

        Args:
            input: (N, C, spatial…) or (C, spatial…).

        Returns:
            (N, K, spatial…), or (K, spatial…).

        Raises:
            TypeError, ValueError: as `epiconv.fused_conv_epilogue`.
        """
        return self._convolve(input, 0)


class _FusedTransposedConvolution(_FusedModule):
    _transposed = True

    def forward(self, input: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """Transposed convolution and epilogue in one call.

        Args:
            input: (N, C, spatial…) or (C, spatial…).
            output_size: wanted spatial extents, with or without N and K, instead of `output_padding`.

        Returns:
            (N, K, spatial…), or (K, spatial…).

        Raises:
            TypeError, ValueError: as `epiconv.fused_conv_epilogue`; an output size that cannot be.
        """
        own: Any = self
        if output_size is None:
            return self._convolve(input, own.output_padding)
        return self._convolve(input, _torch_private.transposed_output_padding(self, input, output_size))


class FusedConv1d(_FusedConvolution, nn.Conv1d):
    """`torch.nn.Conv1d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.Conv1d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.Conv1d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConv1d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 100)).shape
        torch.Size([2, 32, 98])
    """

    _base = nn.Conv1d


class FusedConv2d(_FusedConvolution, nn.Conv2d):
    """`torch.nn.Conv2d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.Conv2d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, P, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.Conv2d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConv2d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 30, 30)).shape
        torch.Size([2, 32, 28, 28])
    """

    _base = nn.Conv2d


class FusedConv3d(_FusedConvolution, nn.Conv3d):
    """`torch.nn.Conv3d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.Conv3d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, D, P, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.Conv3d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConv3d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 9, 9, 9)).shape
        torch.Size([2, 32, 7, 7, 7])
    """

    _base = nn.Conv3d


class FusedConvTranspose1d(_FusedTransposedConvolution, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.ConvTranspose1d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.ConvTranspose1d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConvTranspose1d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 100)).shape
        torch.Size([2, 32, 102])
    """

    _base = nn.ConvTranspose1d


class FusedConvTranspose2d(_FusedTransposedConvolution, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.ConvTranspose2d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, P, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.ConvTranspose2d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConvTranspose2d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 30, 30)).shape
        torch.Size([2, 32, 32, 32])
    """

    _base = nn.ConvTranspose2d


class FusedConvTranspose3d(_FusedTransposedConvolution, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` followed by an epilogue, in one call.

    Args:
        args, kwargs: those of `torch.nn.ConvTranspose3d`.
        epilogue, save: as of `fused_conv_epilogue`; operands broadcast against (N, K, D, P, Q).

    Raises:
        TypeError, ValueError: as `torch.nn.ConvTranspose3d`; `epilogue` is no epilogue.

    Example:
        >>> FusedConvTranspose3d(16, 32, 3, epilogue=[ops.relu()])(torch.randn(2, 16, 9, 9, 9)).shape
        torch.Size([2, 32, 11, 11, 11])
    """

    _base = nn.ConvTranspose3d


__all__ = [
    "FusedConv1d",
    "FusedConv2d",
    "FusedConv3d",
    "FusedConvTranspose1d",
    "FusedConvTranspose2d",
    "FusedConvTranspose3d",
]
