"""What native code reads of Python's objects: it may know less than Python's own reading, and never something else."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import curvext as cx
from curvext import _extension, finite, reading
from curvext.kernels import outer_square
from curvext.reading import Reading

pytestmark = pytest.mark.skipif(_extension.module is None, reason="the extension is not built")

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def network():
    torch.manual_seed(0)
    padded = nn.Conv2d(2, 3, 2, padding=1, padding_mode="reflect")
    model = nn.Sequential(padded, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    model.scales = [1, 2]
    return model.eval()


def read(model, batches=None, contents=True):
    found = Reading.of(list(model.modules()), batches, contents)
    assert found is not None
    return found


CHANGES = {
    "weight": lambda m: m[4].weight.data.neg_(),
    "one entry": lambda m: m[4].weight.data.view(-1)[-1].mul_(1 + 2**-20),
    "order": lambda m: m[4].weight.data.copy_(m[4].weight.data.flip(1)),
    "rows": lambda m: m[4].weight.data.copy_(m[4].weight.data.flip(0)),
    "scale": lambda m: m[4].weight.data.mul_(2),
    "sign": lambda m: m[0].weight.data.abs_(),
    "storage": lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()),
    "strides": lambda m: setattr(m[4].weight, "data", m[4].weight.data.as_strided((3, 48), (1, 3))),
    "version": lambda m: m[4].bias.detach().add_(0),
    "parameter": lambda m: setattr(m[4], "bias", nn.Parameter(m[4].bias.detach().clone())),
    "parameter taken away": lambda m: setattr(m[4], "bias", None),
    "buffer": lambda m: m[1].running_mean.data.add_(1),
    "buffer of integers": lambda m: m[1].num_batches_tracked.data.add_(1),
    "mode": lambda m: m[1].train(),
    "number": lambda m: setattr(m[1], "eps", 0.5),
    "tuple": lambda m: setattr(m[0], "stride", (2, 2)),
    "entry of a list": lambda m: m.scales.__setitem__(1, 3),
    "new attribute": lambda m: setattr(m[2], "slope", 0.1),
    "attribute by another name": lambda m: m[1].__dict__.update(other=m[1].__dict__.pop("eps")),
    "attribute taken away": lambda m: m[2].__dict__.pop("inplace"),
    "module": lambda m: m.__setitem__(2, nn.Tanh()),
    "new module": lambda m: m.append(nn.Identity()),
    "forward hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *_: None),
    "class": lambda m: setattr(m[2], "__class__", nn.SiLU),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_nothing_else_is(name):
    model = network()
    before = read(model)
    assert read(model).is_same(before)
    CHANGES[name](model)
    after = Reading.of(list(model.modules()), None, True)
    assert after is None or not after.is_same(before)


def test_the_forward_of_a_class_is_part_of_it():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    model = Own(3, 2)
    before = read(model)
    Own.forward = lambda self, x: F.linear(x, self.weight)
    assert not read(model).is_same(before)


@pytest.mark.parametrize("contents", [True, False])
def test_contents_are_read_where_that_is_asked_for(contents):
    model = network()
    before = read(model, contents=contents)
    model[4].weight.data.view(-1)[5] += 1  # neither version nor address tells
    assert read(model, contents=contents).is_same(before) is not contents


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("size", [1, 3, 8, 511, 4096, 4099, 300_001])
def test_any_entry_counts(dtype, size):
    module = nn.Module()
    module.register_buffer("b", torch.arange(size).to(dtype))
    before = read(module)
    words = module.b.data.view(torch.uint8)
    for place in {0, len(words) // 2, len(words) - 1}:
        words[place] ^= 1
        assert not read(module).is_same(before)
        words[place] ^= 1
        assert read(module).is_same(before)


@pytest.mark.parametrize("shape", [(64, 1024), (1, 2048), (7, 9)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_changes_that_keep_many_bits_are_seen(dtype, shape):
    def turned(t):
        return t.roll(1, 0).roll(1, 1)

    moves = (lambda t: t.flip(0, 1), lambda t: t.roll(1, 0), lambda t: t.roll(8, -1), turned)
    for change in (torch.neg, lambda t: 2 * t, torch.zeros_like, *moves):
        module = nn.Module()
        module.register_buffer("b", torch.randn(shape).to(dtype))
        before, held = read(module), module.b.clone()
        module.b.data.copy_(change(held))
        assert read(module).is_same(before) is torch.equal(module.b, held)


def test_two_hooks_are_left_to_python_as_their_order_may_change():
    model = network()
    for _ in range(2):
        model[0].register_forward_hook(lambda *_: None)
    assert Reading.of(list(model.modules()), None, True) is None
    model, data = network(), (torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 2, 1]))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    model[2].register_forward_hook(lambda m, x, y: 2 * y)
    later = model[2].register_forward_hook(lambda m, x, y: y + 1)
    G, v = risk.ggn(), torch.ones(risk.space.size)
    before = G @ v
    model[2]._forward_hooks.move_to_end(later.id, last=False)
    expected = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data).ggn() @ v
    assert torch.equal(G @ v, expected) and not torch.equal(before, expected)


def test_a_tensor_with_gaps_is_read_without_them():
    module = nn.Module()
    whole = torch.randn(8, 8)
    module.register_buffer("b", whole[:, ::2])
    before = read(module)
    whole.data[3, 3] += 1
    assert read(module).is_same(before)
    whole.data[3, 2] += 1
    assert not read(module).is_same(before)


def test_data_are_compared_by_address_version_and_form():
    model, x, y = network(), torch.randn(4, 2, 3, 3), torch.randint(3, (4,))
    held = [(x, y), {"x": x, "labels": y}]
    before = read(model, held)
    assert read(model, list(held)).is_same(before)
    x.data.add_(1)
    assert read(model, held).is_same(before)  # as the documentation says
    for change in (
        lambda: x.add_(1),
        lambda: held.__setitem__(0, (x.clone(), y)),
        lambda: held[1].update(x=x.clone()),
        lambda: held.append((x, y)),
        lambda: x.transpose_(2, 3),
    ):
        before = read(model, held)
        change()
        assert not read(model, held).is_same(before)


@pytest.mark.parametrize(
    "made",
    [
        lambda m: setattr(m, "f", lambda x: x),
        lambda m: setattr(m, "f", {"a": 1}),
        lambda m: setattr(m, "f", [nn.ReLU()]),
        lambda m: setattr(m, "f", object()),
        lambda m: setattr(m, "f", (1, [2])),
        lambda m: setattr(m, "f", torch.zeros(3).numpy()),
        lambda m: m.register_buffer("f", torch.zeros(3, device="meta")),
        lambda m: m.register_buffer("f", torch.eye(3).to_sparse()),
        lambda m: m.register_buffer(
            "f", torch.nn.functional.linear(torch.ones(1), torch.ones(1)).as_subclass(Sub)
        ),
    ],
)
def test_what_only_python_knows_is_left_to_it(made):
    model = network()
    made(model[2])
    assert Reading.of(list(model.modules()), None, True) is None


class Sub(torch.Tensor):
    pass


def test_a_hook_of_all_modules_is_left_to_python():
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert Reading.of(list(network().modules()), None, True) is None


def test_the_answers_are_those_without_native_code(monkeypatch):
    def answers():
        model, data = (
            network(),
            (torch.arange(72.0).view(4, 2, 3, 3).sin(), torch.tensor([0, 1, 2, 1])),
        )
        risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
        G, v = risk.ggn(), torch.ones(risk.space.size)
        found = [G @ v, G @ v, torch.tensor(risk.value())]
        with torch.no_grad():
            model[4].weight.data.mul_(0.5)
        found += [G @ v, torch.tensor(risk.value())]
        model[1].eps = 0.1
        return [*found, G @ v, risk.gradient()]

    native = answers()
    monkeypatch.setattr(reading, "_read", None)
    monkeypatch.setattr(finite, "_native", None)
    for a, b in zip(native, answers(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(native[0], native[1]) and not torch.equal(native[1], native[3])


def test_a_kept_product_does_not_ask_python(monkeypatch):
    model, data = network(), (torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 2, 1]))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    G, v = risk.ggn(), torch.ones(risk.space.size)
    expected = G @ v
    monkeypatch.setattr("curvext.problem.freshness.fingerprints", None)
    monkeypatch.setattr("curvext.problem.freshness.Marks", None)
    assert torch.equal(G @ v, expected)
    model[4].weight.data.neg_()
    with pytest.raises(TypeError):
        G @ v


def test_a_copy_of_a_risk_reads_its_own_model():
    model, data = network(), (torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 2, 1]))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    G, v = risk.ggn(), torch.ones(risk.space.size)
    expected = G @ v
    other = copy.deepcopy(G)
    model[4].weight.data.neg_()
    assert torch.equal(other @ v, expected) and not torch.equal(G @ v, expected)
    assert vars(copy.copy(risk._freshness))["_reading"] is None is not risk._freshness._reading


# ---------------------------------------------------------------------- nan and inf


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 5, 17, 70_000])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_are_found_anywhere(dtype, size, wrong):
    t = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    assert finite.all_finite([torch.zeros(3), t])
    for place in {0, size // 2, size - 1}:
        other = t.clone()
        other[place] = wrong
        assert not finite.all_finite([t, other]) and not finite.is_finite(other)


def test_other_tensors_are_looked_at_too():
    columns = torch.ones(3, 2)
    assert finite.is_finite(columns[:, 0]) and finite.is_finite(torch.zeros(0))
    columns[1, 0] = torch.nan
    assert finite.is_finite(columns[:, 1]) and not finite.is_finite(columns[:, 0])
    assert finite.is_finite(torch.tensor([1j])) and not finite.is_finite(
        torch.tensor([torch.inf * 1j])
    )
    assert finite.all_finite([torch.arange(3), torch.ones(2)])


# ---------------------------------------------------------------------- the way to a kernel


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_kernel_is_called_past_the_dispatcher_only_where_that_has_nothing_to_do():
    reaches = _extension.module.reaches_cpu_kernel
    x = torch.ones(2, 3)
    assert reaches(x, 3, None) and reaches(nn.Parameter(x).detach())
    w = nn.Parameter(x)
    assert not reaches(x, w)
    with torch.no_grad():
        assert reaches(x, w)
    with torch.inference_mode():
        assert reaches(x)
    assert not reaches(torch._neg_view(x))
    assert not reaches(torch.ones(2, device="meta")) and not reaches(x.to_sparse())
    assert not reaches(x.as_subclass(Sub))
    with Seen():
        assert not reaches(x)
    with torch.overrides.BaseTorchFunctionMode():
        assert not reaches(x)
    with forward_ad.dual_level():
        assert not reaches(forward_ad.make_dual(x, x))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not reaches(x)
    found = []
    torch.func.vmap(lambda t: (found.append(reaches(t)), t)[1])(x)
    torch.func.grad(lambda t: (found.append(reaches(t)), t.sum())[1])(x)
    assert found == [False, False]


def test_modes_and_profilers_see_the_kernels_still():
    a, g = torch.ones(3, 1, 2), torch.ones(1, 3, 1, 4)
    with Seen() as seen:
        outer_square(a, g)
    assert "curvext.outer_square.default" in seen.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outer_square(a, g)
    assert "curvext::outer_square" in {event.key for event in profile.key_averages()}


def test_what_reads_with_its_sign_changed_does_so_in_a_kernel():
    a, g = torch.randn(3, 2, 2), torch.randn(1, 3, 2, 4)
    both = outer_square(torch.stack([a, a]).sum(0), torch._neg_view(g))
    assert torch.allclose(both, outer_square(2 * a, g))
    mixed = torch.cat([a, a], 1), torch.cat([g, torch._neg_view(g)], 2)
    assert not outer_square(*mixed).abs().max() > 1e-9
