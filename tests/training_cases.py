"""What the tests of training share: tensors, chains, what is kept, and what is asked of operators."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from epiconv import ops

SAVES = ("auto", "conv", "recompute")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small, and thousands of calls would wait for threads to start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


# Nothing, the result, or the convolution's output is kept.
EPILOGUES = {
    "identity": (lambda s, r: [], lambda y, s, r: y),
    "linear": (lambda s, r: [ops.mul(2.0), ops.add(r)], lambda y, s, r: y * 2.0 + r),
    "relu": (lambda s, r: [ops.add(r), ops.relu()], lambda y, s, r: F.relu(y + r)),
    "leaky": (lambda s, r: [ops.leaky_relu(0.1)], lambda y, s, r: F.leaky_relu(y, 0.1)),
    "scaled": (lambda s, r: [ops.mul(s), ops.gelu()], lambda y, s, r: F.gelu(y * s)),
    "norm": (
        lambda s, r: [ops.mul(s), ops.group_norm(3), ops.silu()],
        lambda y, s, r: F.silu(F.group_norm(y * s, 3)),
    ),
}


class Kept:
    """The tensors that a forward pass keeps for its backward pass."""

    def __enter__(self):
        self.tensors = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def _pack(self, tensor):
        self.tensors.append(tensor)
        return tensor

    def __exit__(self, *exception):
        self.hooks.__exit__(*exception)

    def beside(self, *given):
        """Shapes of those that are none of the given ones."""
        known = {tensor.data_ptr() for tensor in given}
        return [tuple(tensor.shape) for tensor in self.tensors if tensor.data_ptr() not in known]


class Masks(TorchDispatchMode):
    """Notes what is asked of torch's backward convolution, and of ours behind it."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.epilogues, self.forwards = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.convolutions.append(list(args[10]))
        elif func is torch.ops.epiconv.epilogue_backward.default:
            self.epilogues.append(list(args[10]))
        elif func is torch.ops.aten.convolution.default:
            self.forwards += 1
        return func(*args, **(kwargs or {}))
