"""Weights as the implicit-GEMM kernels read them: packed once, and kept while they are the same.

A packed weight belongs to one tensor, one version of it and one format. Where it is kept:

- what a call of a function packed is kept as long as the weight tensor lives, and is valid while that very
  tensor has the same version and address. It is not kept where writes could not be seen (inference tensors
  have no versions), where they are to be expected (weights that require grad), nor while a CUDA graph is
  captured, whose replays would read it after it was dropped: there each call, and each replay, packs anew.
- a module keeps what it packed itself, also of weights that require grad, and packs into the same memory
  again, so that a graph which was captured with it reads the new weights after the module's next call
  outside the graph.

A stream other than the one that packed waits for it on the device; the host waits for nothing. A write that
leaves the version alone, by way of `weight.data` for instance, is not seen: `PackingModule.repack`.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

import torch

from epiconv import _core
from epiconv.core_tensors import address, dtype_name

_STALE: Final = -1  # no tensor has this version

# By name, so that a test can stand in for the card.
capturing = torch.cuda.is_current_stream_capturing
current_stream = torch.cuda.current_stream


class Packed:
    """A packed weight.

    Attributes:
        address: of its memory.
        buffer: its memory.
        weight: the tensor, weakly; None where nothing is kept.
        version: of the tensor when it was packed.
        data_ptr: of the tensor when it was packed.
        event: when it is packed.
        streams: by their addresses those that need not wait for it any more.
    """

    __slots__ = ("address", "buffer", "data_ptr", "event", "streams", "version", "weight")

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.address = address(buffer)
        self.weight: weakref.ref[torch.Tensor] | None = None
        self.version = _STALE
        self.data_ptr = 0
        self.event: Any = None
        self.streams: dict[int, Any] = {}


class OwnPackedWeights:
    """What a module has packed. Copies and pickles of it are empty: each module packs for itself.

    Attributes:
        kept: by what they were packed with.
    """

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: dict[Packing, Packed] = {}

    def repack(self) -> None:
        """Makes the next use pack anew, into the memory that is there."""
        for packed in tuple(self.kept.values()):
            packed.version = _STALE

    def __reduce__(self) -> tuple[type["OwnPackedWeights"], tuple[()]]:
        return OwnPackedWeights, ()


class Packing:
    """Packs weights of one form (shape, strides, dtype, device) into one format, and keeps the results.

    Every step on what is kept is one operation of a dict, so that threads need no lock: what two of them
    pack at once is packed twice, with the same result.

    Args:
        plan: any with this format.
        weight: of the form.

    Attributes:
        packed_bytes: of a packed weight.
    """

    def __init__(self, plan: "_core.ConvPlan", weight: torch.Tensor) -> None:
        self.packed_bytes = plan.packed_bytes
        self._pack = plan.pack
        self._dtype = dtype_name(weight.dtype)
        self._strides: Sequence[int] = weight.stride()
        self._device = weight.device
        self._kept: dict[int, Packed] = {}  # by id of the weight, which is that tensor's while it lives

    def once(self, weight: torch.Tensor, stream: int) -> Packed:
        """A packed weight for one use on the current stream.

        Args:
            weight: of the form.
            stream: address of the current stream; the weight's device is the current one.
        """
        packed = Packed(self._memory())
        self._fill(weight, packed.address, stream)
        return packed

    def find(self, weight: torch.Tensor, stream: int) -> Packed:
        """The packed weight of a tensor that has versions and does not require grad.

        Args:
            weight, stream: as for `once`.
        """
        if capturing():
            return self.once(weight, stream)
        packed = self._kept.get(id(weight))
        if packed is None or not _is_valid(packed, weight):
            return self._keep(weight, stream)
        if stream not in packed.streams:
            self._follow(packed, stream)
        return packed

    def find_owned(self, weight: torch.Tensor, stream: int, owner: OwnPackedWeights) -> Packed:
        """The packed weight of a module's tensor that has versions.

        Args:
            weight, stream: as for `once`.
            owner: the module's.
        """
        packed = owner.kept.get(self)
        if packed is None or not _is_valid(packed, weight):
            if capturing():
                return self.once(weight, stream)
            packed = owner.kept[self] = self._pack_again(packed, weight, stream)
        # What a graph captures runs at replays, which are behind the calls before the capture; and a
        # capture may not wait for work outside of it.
        elif stream not in packed.streams and not capturing():
            self._follow(packed, stream)
        return packed

    def _keep(self, weight: torch.Tensor, stream: int) -> Packed:
        """Packs a weight and keeps the result until the weight dies."""
        packed = self._packed_by(Packed(self._memory()), weight, stream)
        key, kept = id(weight), weakref.ref(self)

        def forget(dead: "weakref.ref[torch.Tensor]") -> None:
            packing = kept()
            entry = None if packing is None else packing._kept.get(key)
            if packing is not None and entry is not None and entry.weight is dead:
                del packing._kept[key]

        packed.weight = weakref.ref(weight, forget)
        self._kept[key] = packed
        return packed

    def _pack_again(self, before: Packed | None, weight: torch.Tensor, stream: int) -> Packed:
        """Packs a module's weight, into the memory that it had before."""
        packed = Packed(self._memory() if before is None else before.buffer)
        if before is not None:
            current = current_stream(self._device)
            for other, reader in tuple(before.streams.items()):
                if other != stream:
                    current.wait_stream(reader)  # the old weight is not overwritten while it is read
            packed.buffer.record_stream(current)
        self._packed_by(packed, weight, stream)
        packed.weight = weakref.ref(weight)
        return packed

    def _packed_by(self, packed: Packed, weight: torch.Tensor, stream: int) -> Packed:
        # The version first: a write in the meantime makes the result too old, never too new.
        packed.version, packed.data_ptr = weight._version, address(weight)
        self._fill(weight, packed.address, stream)
        current = current_stream(self._device)
        packed.event = current.record_event()
        packed.streams[stream] = current
        return packed

    def _follow(self, packed: Packed, stream: int) -> None:
        """Lets the current stream use what another one packed."""
        current = current_stream(self._device)
        current.wait_event(packed.event)
        packed.buffer.record_stream(current)  # its memory is not reused before this stream is done with it
        packed.streams[stream] = current

    def _memory(self) -> torch.Tensor:
        # What is made in inference mode could not be recorded on a stream outside of it.
        with torch.inference_mode(False):
            return torch.empty(self.packed_bytes, dtype=torch.uint8, device=self._device)

    def _fill(self, weight: torch.Tensor, packed: int, stream: int) -> None:
        self._pack(address(weight), self._dtype, self._strides, packed, self._device.index, stream)


def _is_valid(packed: Packed, weight: torch.Tensor) -> bool:
    """Whether it was packed from this tensor as it is now."""
    tensor = packed.weight
    return (
        tensor is not None
        and tensor() is weight
        and packed.version == weight._version
        and packed.data_ptr == address(weight)
    )


_packings: "Final[weakref.WeakValueDictionary[tuple[Any, ...], Packing]]" = weakref.WeakValueDictionary()
_packings_lock: Final = threading.Lock()


def packing_of(plan: "_core.ConvPlan", weight: torch.Tensor) -> Packing:
    """The one `Packing` for weights of this form in the plan's format, so that plans share what is packed.

    Args:
        plan: of the convolution.
        weight: of the form.
    """
    key = (
        plan.weight_format,
        plan.packed_bytes,
        tuple(weight.shape),
        weight.stride(),
        weight.dtype,
        weight.device,
    )
    with _packings_lock:
        packing = _packings.get(key)
        if packing is None:
            packing = _packings[key] = Packing(plan, weight)
    return packing


class PackingModule(torch.nn.Module):
    """A module that keeps the packed weight of its convolution, apart from its state and its copies."""

    _packed: OwnPackedWeights

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = OwnPackedWeights()

    def repack(self) -> None:
        """Packs the weight anew at the next call outside of a CUDA graph.

        Calls see by themselves that a weight was replaced, moved, loaded, or written in place. They cannot
        see writes that leave its version alone, through `weight.data` or from outside torch. A CUDA graph
        that was captured with the module reads the packed weight of the module's last call outside of it.

        Example:
            >>> conv.weight.data.mul_(0.5)
            >>> conv.repack()
        """
        self._packed.repack()
