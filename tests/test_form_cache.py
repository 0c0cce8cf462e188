"""What is prepared once for tensors of one form, and how forms are told apart."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F

import epiconv
from epiconv import _torch_private, form_cache, ops


def integers(*shape):
    """Small integers: every sum of their products is exact in float32, whatever its order."""
    return torch.randint(-3, 4, shape).float()


def tensors():
    return integers(2, 4, 7, 6), integers(6, 4, 3, 3), integers(6), integers(6, 1, 1)


def test_every_form_gets_its_own_plan():
    # The same call again and again, each time with another dtype, layout, shape, number of threads.
    x, weight, bias, per_channel = tensors()
    program = epiconv.Program("v1 = relu(v0); v2 = add(v1, b0)")
    variants = [
        (x, weight, bias, per_channel),
        (x.to(memory_format=torch.channels_last), weight, bias, per_channel),
        (x, weight, None, per_channel),
        (x, weight, bias, per_channel.double()),
        (x, weight, bias, integers(1, 6, 5, 4)),
        (x, weight, bias, integers(4, 6, 5, 1).transpose(0, 3)[0:1]),
        (x.double(), weight.double(), bias.double(), per_channel),
        (x[:, :, :, ::2], weight, bias, per_channel),
        (x[:1], weight, bias, per_channel),
        (x, weight, integers(12)[::2], per_channel),
        (x, weight, bias, integers(5, 6).t().unsqueeze(2)),
    ]
    for _ in range(2):
        for x_, weight_, bias_, operand in variants:
            got = epiconv.fused_conv_epilogue(x_, weight_, bias_, epilogue=program(operand))
            assert torch.equal(got, F.conv2d(x_, weight_, bias_).relu() + operand)


def test_lists_and_tuples_are_the_same():
    x, weight, _, _ = tensors()
    given = epiconv.fused_conv_epilogue(
        x, weight, stride=[2, 1], padding=[1, 0], dilation=[1, 1], output_padding=[0, 0]
    )
    assert torch.equal(given, F.conv2d(x, weight, stride=(2, 1), padding=(1, 0)))
    assert torch.equal(epiconv.fused_conv_epilogue(x, weight, stride=(2, 1), padding=(1, 0)), given)


def test_threads_share_what_is_prepared():
    _, weight, bias, per_channel = tensors()
    failures = []

    def work(seed):
        for step in range(40):
            n, width = 1 + (seed + step) % 3, 3 + (seed * step) % 4
            batch = integers(n, 4, 7, width)
            got = epiconv.fused_conv_epilogue(
                batch, weight, bias, epilogue=[ops.relu(), ops.add(per_channel)]
            )
            if not torch.equal(got, F.conv2d(batch, weight, bias).relu() + per_channel):
                failures.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(form_cache, "_CACHED_KEYS", 4)
    cache = form_cache.FormCache()
    one = [torch.zeros(1)]
    for key in range(100):
        cache.keep(key, one, key)
        assert cache.get(0, one) in (0, None)
        cache.get(key - 1, one)
    assert len(cache._young) <= 4
    assert len(cache._old) <= 4
    assert cache.get(99, one) == 99
    assert cache.get(98, one) == 98
    assert cache.get(50, one) is None
    for width in range(100):
        cache.keep("shapes", [torch.zeros(width)], width)
    assert cache.get("shapes", [torch.zeros(99)]) == 99
    assert cache.get("shapes", [torch.zeros(5)]) is None


def test_the_cache_holds_no_tensor():
    x, weight, bias, per_channel = tensors()
    references = [weakref.ref(tensor) for tensor in (x, weight, bias, per_channel)]
    epiconv.fused_conv_epilogue(x, weight, bias, epilogue=[ops.add(per_channel), ops.mul(0.40625)])
    del x, weight, bias, per_channel
    gc.collect()
    assert all(reference() is None for reference in references)


def test_both_kinds_of_guards_tell_forms_apart():
    assert _torch_private._tells_apart(_torch_private._plain_guards)
    x = torch.zeros(2, 3)
    for make in (_torch_private.form_guards, _torch_private._plain_guards):
        check = make([x, x])
        assert check(x, x.clone())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not check(x, x)
        with torch.inference_mode():
            assert not check(torch.zeros(2, 3), x)
        torch.vmap(lambda v, check=check: (v, pytest.fail("seen as plain") if check(x, x) else 0)[0])(x)
