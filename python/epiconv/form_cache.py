"""What has been prepared for tensors of one form: shapes, strides, dtypes, devices."""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

import torch

from epiconv import _torch_private

_CACHED_KEYS: Final = 1024
_CACHED_FORMS: Final = 8  # per key
_PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter})

Value = TypeVar("Value")


class FormCache(Generic[Value]):
    """What was prepared for tensors of one form, by a key and, below it, by the form.

    Holds up to twice `_CACHED_KEYS` keys, the longest unused go first: entries are found in the young half,
    or moved to it; when it is full, it becomes the old half, whose entries are dropped. Every step is one
    operation of a dict, so that threads need no lock: what two of them prepare at once is prepared twice.
    """

    def __init__(self) -> None:
        self._young: dict[Hashable, tuple[tuple[Callable[..., bool], Value], ...]] = {}
        self._old: dict[Hashable, tuple[tuple[Callable[..., bool], Value], ...]] = {}

    def get(self, key: Hashable, tensors: Sequence[torch.Tensor]) -> Value | None:
        """What was kept for tensors of this form, or None.

        Args:
            key: as when it was kept.
            tensors: as many as then.
        """
        entries = self._young.get(key)
        if entries is None:
            entries = self._old.get(key)
            if entries is None:
                return None
            self._store(key, entries)
        for guards, value in entries:
            if guards(*tensors):
                return value
        return None

    def keep(self, key: Hashable, tensors: Sequence[torch.Tensor], value: Value) -> None:
        """Keeps a value for tensors of this form.

        Args:
            key: hashable; the number of tensors follows from it.
            tensors: those that the value was prepared for; they are not held.
            value: for `get`.
        """
        others = self._young.get(key, ())[: _CACHED_FORMS - 1]
        self._store(key, ((_torch_private.form_guards(tensors), value), *others))

    def _store(self, key: Hashable, entries: tuple[tuple[Callable[..., bool], Value], ...]) -> None:
        if len(self._young) >= _CACHED_KEYS:
            self._old, self._young = self._young, {}
        self._young[key] = entries


def are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the values of all tensors are what lies in their memory, and no subclass has a say.

    Args:
        tensors: any.

    Example:
        >>> are_plain([torch.zeros(1)])
        True
    """
    return all(type(t) in _PLAIN and not t.is_neg() and not t.is_meta for t in tensors)
