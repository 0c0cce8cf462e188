"""When a weight is packed, where the result is kept, and when it is not valid any more."""

import copy
import gc
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from fake_conv_core import at_offset
from torch import nn

import epiconv
from epiconv import ops, packed_weights
from epiconv.recipes import ConvReluAdd


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


X = integers(2, 4, 8, 7)


def call(weight, x=X):
    """A call of the function, and its result checked."""
    with torch.no_grad():
        got = epiconv.fused_conv_epilogue(x, weight)
        assert torch.equal(got, F.conv2d(x, weight))
    return got


def kept():
    """How many packed weights functional calls have kept."""
    return sum(len(packing._kept) for packing in packed_weights._packings.values())


def test_packed_once_per_version(core):
    weight = integers(6, 4, 3, 3)
    for expected in (1, 1, 1):
        call(weight)
        assert len(core.packs) == expected
    weight.add_(1.0)
    for _ in range(2):
        call(weight)
        assert len(core.packs) == 2
    weight[0] = 0.0  # through a view
    call(weight)
    assert len(core.packs) == 3
    assert kept() == 1


def test_calls_of_other_forms_share_it(core):
    weight = integers(6, 4, 3, 3)
    call(weight)
    call(weight, integers(1, 4, 5, 5))
    call(weight, at_offset(X, 4))
    epiconv.fused_conv_epilogue(X, weight, padding=1, epilogue=[ops.relu()])
    assert len(core.packs) == 1
    for count, precision in ((2, "bf16"), (3, "ieee")):
        epiconv.fused_conv_epilogue(X, weight, precision=precision)
        assert len(core.packs) == count
    call(weight)
    assert len(core.packs) == 3


def test_formats_of_one_weight_lie_side_by_side(core):
    core.formats_differ = True
    weight, unaligned = integers(6, 4, 3, 3), at_offset(X, 4)
    for _ in range(3):
        call(weight)
        call(weight, unaligned)
    assert len(core.packs) == 2


def test_it_goes_with_the_weight(core):
    weight = integers(6, 4, 3, 3)
    call(weight)
    assert kept() == 1
    del weight
    gc.collect()
    assert kept() == 0


def test_another_tensor_at_the_same_address(core):
    memory = integers(6 * 4 * 9)
    first = memory.view(6, 4, 3, 3)
    call(first)
    again = memory.view(6, 4, 3, 3)  # the same address, and the same version
    assert (again.data_ptr(), again._version) == (first.data_ptr(), first._version)
    call(again)
    assert len(core.packs) == 2
    before = memory.view(6, 4, 3, 3)
    call(before)
    address = id(before)
    del before
    for _ in range(100):  # the object's address comes back, its packed weight does not
        new = memory.view(6, 4, 3, 3)
        packs = len(core.packs)
        call(new)
        assert len(core.packs) == packs + 1
        if id(new) == address:
            break
        del new


def test_memory_that_is_exchanged(core):
    weight = integers(6, 4, 3, 3)
    call(weight)
    weight.data = integers(6, 4, 3, 3)
    call(weight)
    assert len(core.packs) == 2
    weight.data = integers(6, 4, 3, 3).to(memory_format=torch.channels_last)
    call(weight)
    assert len(core.packs) == 3


def test_what_functions_do_not_keep(core):
    parameter = nn.Parameter(integers(6, 4, 3, 3))
    with torch.inference_mode():
        inference = integers(6, 4, 3, 3)
    for weight in (parameter, inference):
        before = len(core.packs)
        for count in (1, 2, 3):
            call(weight)
            assert len(core.packs) == before + count
    assert kept() == 0
    with torch.inference_mode():
        inference.add_(1.0)
    call(inference)
    with torch.inference_mode():  # tensors from outside have versions
        weight = torch.inference_mode(False)(integers)(6, 4, 3, 3)
        before = len(core.packs)
        for _ in range(2):
            assert torch.equal(epiconv.fused_conv_epilogue(X, weight), F.conv2d(X, weight))
        assert len(core.packs) == before + 1


def test_a_capture_packs_for_itself(core):
    weight = integers(6, 4, 3, 3)
    call(weight)
    core.capturing = True
    for count in (2, 3):
        call(weight)
        assert len(core.packs) == count
    core.capturing = False
    call(weight)
    assert len(core.packs) == 3


def test_another_stream_waits_once(core):
    weight = integers(6, 4, 3, 3)
    call(weight)
    assert core.log == []
    packed = core.packs[0][1]
    core.stream = 2
    call(weight)
    call(weight)
    assert core.log == [(2, "waits for", "packed 1 on 1"), (2, "uses", packed)]
    core.stream = 1
    call(weight)
    assert len(core.log) == 2
    weight.add_(1.0)  # packed anew on stream 1
    call(weight)
    core.stream = 2
    call(weight)
    assert core.log[2:] == [(2, "waits for", "packed 2 on 1"), (2, "uses", core.packs[1][1])]
    assert len(core.packs) == 2
    assert [stream for _, _, stream in core.packs] == [1, 1]


def test_threads(core):
    weights = [integers(6, 4, 3, 3) for _ in range(4)]
    errors = []

    def work():
        try:
            for step in range(50):
                call(weights[step % 4])
                call(integers(6, 4, 3, 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    gc.collect()
    assert kept() == 4


def fused_module():
    return epiconv.nn.FusedConv2d(4, 6, 3, epilogue=[ops.relu()])


MODULES = {
    "fused": (fused_module, lambda module: module),
    "recipe": (lambda: ConvReluAdd(4, 6, 3, (6, 1, 1)), lambda module: module.conv),
}


@pytest.fixture(params=MODULES)
def module(request):
    """A module, its convolution, and how to call it and check what it gives."""
    make, find = MODULES[request.param]
    owner = make()
    conv = find(owner)
    with torch.no_grad():
        conv.weight.copy_(integers(6, 4, 3, 3))
        conv.bias.copy_(integers(6))
    shift = getattr(owner, "bias", None) if owner is not conv else None

    def check():
        with torch.no_grad():
            expected = F.conv2d(X, conv.weight, conv.bias).relu()
            got = owner(X)
            torch.testing.assert_close(got, expected if shift is None else expected + shift)

    return owner, conv, check


def test_a_module_keeps_the_packed_weight_of_its_parameter(module, core):
    _, conv, check = module
    assert conv.weight.requires_grad
    for _ in range(3):
        check()
    assert len(core.packs) == 1
    with torch.no_grad():
        conv.weight.add_(1.0)
    check()
    check()
    assert len(core.packs) == 2
    conv.weight.data = integers(6, 4, 3, 3)
    check()
    assert len(core.packs) == 3
    conv.weight = nn.Parameter(integers(6, 4, 3, 3))
    check()
    assert len(core.packs) == 4
    assert kept() == 0
    assert len({packed for _, packed, _ in core.packs}) == 1  # the same memory each time


def test_a_module_keeps_one_for_each_math(module, core, setting):
    _, conv, check = module
    for count in (2, 4):
        for value in ("tf32", "ieee", "tf32", "ieee"):
            setting(value)
            check()
            assert core.runs[-1][0].math == value
        assert len(core.packs) == count
        with torch.no_grad():
            conv.weight.add_(1.0)
    assert len({packed for _, packed, _ in core.packs}) == 2  # each in its memory again


def test_optimizers_and_state_dicts_are_seen(module, core):
    owner, conv, check = module
    check()
    conv.weight.grad = torch.ones_like(conv.weight)
    torch.optim.SGD([conv.weight], lr=1.0).step()
    check()
    assert len(core.packs) == 2
    state = {name: tensor + 1.0 for name, tensor in owner.state_dict().items()}
    owner.load_state_dict(state)
    check()
    assert len(core.packs) == 3


def test_moved_and_cast(core):
    owner = fused_module()
    with torch.no_grad():
        owner(X)
        owner.to(memory_format=torch.channels_last)
        owner(X)
        owner.half()
        assert torch.equal(owner(X.half()), owner(X.half()))
    assert [plan.math for plan, _, _ in core.runs] == ["tf32", "tf32", "fp16", "fp16"]
    assert len(core.packs) == 3


def test_replaced_by_a_tensor_at_the_same_address(module, core):
    _, conv, check = module
    memory = integers(6 * 4 * 9)
    conv.weight = nn.Parameter(memory.view(6, 4, 3, 3))
    check()
    memory.data.zero_()  # not seen: the same parameter, version and address
    conv.weight = nn.Parameter(memory.view(6, 4, 3, 3))
    check()
    assert len(core.packs) == 2


def test_repack_is_for_writes_that_cannot_be_seen(module, core):
    owner, conv, check = module
    check()
    conv.weight.data.zero_()
    owner.repack()
    check()
    check()
    assert len(core.packs) == 2
    assert core.packs[0][1] == core.packs[1][1]


def test_state_copies_and_pickles_are_without_it(module, core):
    owner, _, check = module
    names = list(owner.state_dict())
    size = len(pickle.dumps(owner))
    check()
    assert list(owner.state_dict()) == names
    assert abs(len(pickle.dumps(owner)) - size) < 16
    torch.save(owner, buffer := io.BytesIO())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner)), loaded):
        assert twin._packed.kept == {}
        packs = len(core.packs)
        with torch.no_grad():
            assert torch.equal(twin(X), owner(X))
        assert len(core.packs) == packs + 1


def test_a_module_under_a_capture(module, core):
    _, conv, check = module
    core.capturing = True
    check()
    check()
    assert len(core.packs) == 2  # nothing of it is kept
    assert len({packed for _, packed, _ in core.packs}) == 2 or core.packs[0][1] == core.packs[1][1]
    core.capturing = False
    check()
    packs, packed = len(core.packs), core.packs[-1][1]
    core.capturing, core.stream = True, 7
    check()
    assert len(core.packs) == packs  # valid, and kept alive by the module
    assert core.runs[-1][2] == packed
    assert core.log == []  # a capture may not wait for work outside of it
    with torch.no_grad():
        conv.weight.add_(1.0)
    check()
    assert core.packs[-1][1] != packed
    core.capturing, core.stream = False, 1
    check()
    assert core.packs[-1][1] == packed  # which the graph reads


def test_a_module_on_other_streams(module, core):
    _, conv, check = module
    check()
    packed = core.packs[0][1]
    core.stream = 2
    check()
    assert core.log == [(2, "waits for", "packed 1 on 1"), (2, "uses", packed)]
    core.stream = 3
    with torch.no_grad():
        conv.weight.add_(1.0)
    check()  # it overwrites what the others may be reading
    assert core.log[2:] == [
        (3, "waits for stream", 1),
        (3, "waits for stream", 2),
        (3, "uses", packed),
    ]
    check()
    assert len(core.log) == 5
    assert len(core.packs) == 2


def test_inference_tensors_in_a_module(core):
    with torch.inference_mode():
        owner = fused_module()
        for count in (1, 2):
            owner(X)
            assert len(core.packs) == count


def test_a_module_that_wants_gradients(module, core):
    owner, conv, check = module
    owner(X).sum().backward()
    assert conv.weight.grad is not None
    assert core.packs == []
    check()
    assert len(core.packs) == 1


def test_a_compiled_module(core):
    owner = fused_module()
    try:
        with torch.no_grad():
            got = torch.compile(owner, fullgraph=True, backend="aot_eager")(X)
            torch.testing.assert_close(got, owner(X))
    finally:
        torch.compiler.reset()
    assert len(core.runs) == 2
