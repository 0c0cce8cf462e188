"""What the tests share: the devices they run on."""

import fake_conv_core
import pytest
import torch

from epiconv import _core, compiler
from epiconv.implicit_gemm import why_not_on


@pytest.fixture
def core(monkeypatch):
    """A stand-in for the implicit-GEMM kernels and the card."""
    return fake_conv_core.install(monkeypatch)


@pytest.fixture
def setting():
    """Sets torch's precision of float32 convolutions, and sets it back."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision

    def set_to(value):
        conv.fp32_precision = value

    yield set_to
    conv.fp32_precision = before


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def cuda():
    """The current CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def card(cuda):
    """The current CUDA device, if it has implicit-GEMM kernels."""
    if reason := why_not_on(cuda):
        pytest.skip(reason)
    return cuda


@pytest.fixture
def two_cards():
    """Two CUDA devices; the first is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    with torch.cuda.device(0):
        yield torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def kept_files(monkeypatch, tmp_path):
    """A compiler whose work is kept in a directory of its own."""
    monkeypatch.setenv("EPICONV_CACHE_DIR", str(tmp_path))
    compiler.prepare.cache_clear()
    compiler.prepare()
    yield tmp_path
    monkeypatch.undo()
    compiler.prepare.cache_clear()
    compiler.prepare()


@pytest.fixture
def nvrtc():
    """Skips where nothing can be compiled."""
    if reason := _core.why_no_conv_kernels(8, 0) or _core.why_no_compiler():
        pytest.skip(reason)


@pytest.fixture
def hopper(card, nvrtc):
    """A card of compute capability 9.0, and what compiles for it."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0")
    return card
