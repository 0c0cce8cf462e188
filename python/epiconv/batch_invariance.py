"""Whether an image's result may depend on the batch that it is in.

Kernels sum up products in an order that follows from tiles, and from what is shared among multiprocessors;
both are chosen by how much there is to do, and so by the batch. Sums of floating numbers depend on their
order, in the last bits: an image may come out differently alone and among others.

`use_batch_invariant_algorithms(True)` asks for one order, whatever the batch, for calls from then on, in all
threads:

- kernels of ours are planned as for one usual batch, share no steps of a tile, and are chosen by a fixed
  order of families (im2col, compiled, portable) instead of by time; those of sm_90a that are compiled
  beforehand are left out, since they choose by the batch. `explain` says so in `why`. Images with gaps
  between them, or at addresses that no image of such a batch has, are copied first.
- torch's convolution, where none of ours runs (float64, the CPU, algorithm="cudnn"), and the pass behind it
  are called image by image, with `torch.backends.cudnn.deterministic` set meanwhile: always right, and slow
  on a GPU for large batches of small images.

Statistics of a GroupNorm are of one image each, and in an order of their own, with or without it. What a
gradient sums up over images depends on the batch by its meaning; the forward computation of training is
image by image. The convolution's gradients are computed for the whole batch on the CPU, and image by image on
CUDA, where a graph of torch.compile in which a gradient is wanted keeps the setting that it was traced with.
`torch.vmap` is refused.
"""

_is_enabled = False


def use_batch_invariant_algorithms(mode: bool) -> None:
    """Sets whether results of an image have the same bits whatever the batch is.

    As `torch.use_deterministic_algorithms`, it holds for the process until it is set again.

    Args:
        mode: True for the same bits, False (as at first) for what is fastest.

    Raises:
        TypeError: if `mode` is no bool.

    Example:
        >>> epiconv.use_batch_invariant_algorithms(True)
        >>> y = epiconv.fused_conv_epilogue(x, weight)  # (N, K, P, Q)
        >>> torch.equal(y[:1], epiconv.fused_conv_epilogue(x[:1], weight))
        True
    """
    global _is_enabled
    if not isinstance(mode, bool):
        raise TypeError(f"mode is True or False, not {mode!r}")
    _is_enabled = mode


def are_batch_invariant_algorithms_enabled() -> bool:
    """What `use_batch_invariant_algorithms` has set.

    Example:
        >>> epiconv.are_batch_invariant_algorithms_enabled()
        False
    """
    return _is_enabled
