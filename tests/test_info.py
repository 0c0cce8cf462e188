"""`info` says what is installed."""

import dataclasses
import platform

import pytest
import torch

import epiconv
from epiconv import _core


def test_info():
    info = epiconv.info()
    assert info.version == _core.version == epiconv.__version__
    assert (info.toolkit, info.architectures) == (_core.cuda_toolkit, _core.cuda_architectures)
    assert info.cpu_only == (not _core.has_cuda)
    assert info.torch_version == torch.__version__
    assert info.torch_cuda == (torch.version.cuda or "")
    assert len(info.cards) == len(info.why_not_on_cards) == torch.cuda.device_count()
    assert info.python_version == platform.python_version()


def test_it_prints():
    text = str(epiconv.info())
    assert text.splitlines()[0] == f"epiconv {_core.version}"
    assert torch.__version__ in text
    if not torch.cuda.is_available():
        assert "card    none" in text


def test_a_build_without_cuda_says_what_to_do():
    info = dataclasses.replace(epiconv.info(), toolkit="", architectures="")
    assert info.cpu_only
    assert "nvcc on PATH and reinstall" in str(info)


def test_a_build_with_cuda():
    info = dataclasses.replace(
        epiconv.info(),
        toolkit="13.0",
        architectures="sm_80, sm_90a",
        driver="13.0",
        cards=("NVIDIA H200 (9.0)", "Old (7.0)"),
        why_not_on_cards=("", "too old"),
    )
    text = str(info)
    assert "CUDA 13.0 for sm_80, sm_90a" in text
    assert "card    NVIDIA H200 (9.0)\n" in text
    assert "Old (7.0): plain torch operations, too old" in text
    assert "driver  none" in str(dataclasses.replace(info, driver=""))


@pytest.mark.gpu
def test_info_on_the_card(cuda):
    info = epiconv.info()
    assert info.cards[cuda.index].startswith(torch.cuda.get_device_name(cuda))
    assert info.driver
    assert info.cudnn
