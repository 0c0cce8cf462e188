"""The scale and the shift of a BatchNorm in eval mode, computed once for each version of its tensors."""

from typing import Any

import torch

from epiconv.core_tensors import address
from epiconv.packed_weights import capturing, current_stream


class AffineCache:
    """Scale and shift of one BatchNorm. Copies and pickles of it are empty.

    They are written into the same memory again after a change, so that a CUDA graph which was captured with
    them reads the new ones after the next call outside of the graph.
    """

    __slots__ = ("_event", "_kept", "_key", "_streams", "_tensors")

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._tensors: tuple[torch.Tensor | None, ...] = ()
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None
        self._event: Any = None
        self._streams: dict[int, Any] = {}

    def __reduce__(self) -> "tuple[type[AffineCache], tuple[()]]":
        return AffineCache, ()

    def find(
        self,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        rank: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, each (K, 1, …).

        Args:
            mean, var, weight, bias, eps: of the BatchNorm; (K,).
            rank: number of spatial dimensions.

        Example:
            >>> AffineCache().find(torch.zeros(4), torch.ones(4), None, None, 0.0, 2)[0].shape
            torch.Size([4, 1, 1])
        """
        tensors = (mean, var, weight, bias)
        if torch.compiler.is_compiling() or not _have_versions(tensors):
            return affine(mean, var, weight, bias, eps, rank)
        key = (eps, rank, *[(t._version, address(t), t.dtype, t.device) for t in tensors if t is not None])
        same = all(a is b for a, b in zip(tensors, self._tensors, strict=False))
        if self._kept is not None and same and key == self._key:
            if mean.is_cuda:
                self._follow(mean.device)
            return self._kept
        if mean.is_cuda and capturing():
            return affine(mean, var, weight, bias, eps, rank)
        with torch.inference_mode(False), torch.no_grad():
            self._keep(affine(mean, var, weight, bias, eps, rank))
        self._key, self._tensors = key, tensors
        assert self._kept is not None
        return self._kept

    def _keep(self, computed: tuple[torch.Tensor, torch.Tensor]) -> None:
        before = self._kept
        device = computed[0].device
        current = current_stream(device) if device.type == "cuda" else None
        if before is not None and _form(before[0]) == _form(computed[0]):
            for reader in self._streams.values():
                if current is not None and reader != current:
                    current.wait_stream(reader)  # the old values are not overwritten while they are read
            for kept, new in zip(before, computed, strict=True):
                kept.copy_(new)
        else:
            self._kept = computed
        if current is not None:
            self._event = current.record_event()
            self._streams = {current.cuda_stream: current}

    def _follow(self, device: torch.device) -> None:
        """Lets the current stream read what another one computed."""
        current = current_stream(device)
        if current.cuda_stream in self._streams or capturing():
            return
        current.wait_event(self._event)
        for kept in self._kept or ():
            kept.record_stream(current)
        self._streams[current.cuda_stream] = current


def affine(
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    rank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift by torch operations, differentiably; float32, or float64 where the variance is.

    Args:
        mean, var, weight, bias, eps, rank: as of `AffineCache.find`.
    """
    compute = torch.float64 if var.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(var.to(compute) + eps)
    if weight is not None:
        scale = scale * weight.to(compute)
    shift = -mean.to(compute) * scale
    if bias is not None:
        shift = shift + bias.to(compute)
    extents = (-1, *[1] * rank)
    return scale.view(extents), shift.view(extents)


def _have_versions(tensors: tuple[torch.Tensor | None, ...]) -> bool:
    """Whether what is computed from the tensors may be kept: later writes are seen, and no gradient flows."""
    grad = torch.is_grad_enabled()
    given = [tensor for tensor in tensors if tensor is not None]
    if any(type(t) not in (torch.Tensor, torch.nn.Parameter) or t.is_inference() for t in given):
        return False
    return not (grad and any(t.requires_grad for t in given))


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.dtype, tensor.device)
