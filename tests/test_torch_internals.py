"""Private PyTorch and its process-wide switches: each does what it is for, and is put back after errors and threads."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import checkpoint, module_tracker
from torch.utils.flop_counter import FlopCounterMode

from curvext.torch_internals import hooks, modules, switches, tensors
from curvext.torch_internals.shared_context import SharedContext


def attention_backends():
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def stance():
    return torch._dynamo.eval_frame._stance.stance


def deterministic():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        list(warnings.filters),
    )


def plain():
    return (
        torch.backends.cudnn.deterministic,
        torch.backends.mha.get_fastpath_enabled(),
        parametrize._cache_enabled,
        type(parametrize._cache_enabled),
    )


def checkpointing():
    return checkpoint._checkpoint_hook, "apply" in vars(checkpoint.CheckpointFunction)


#: the context, and a reading of all that it changes
SWITCHES = {
    "without_cudnn": lambda: torch.backends.cudnn.enabled,
    "without_mkldnn": lambda: torch.backends.mkldnn.enabled,
    "with_math_attention": attention_backends,
    "deterministic_algorithms": deterministic,
    "plain_forward": plain,
    "without_checkpointing": checkpointing,
    "reported_as_compiling": lambda: type(torch.compiler._is_compiling_flag),
    "without_compiled_code": stance,
    "without_module_trackers": lambda: module_tracker.register_multi_grad_hook,
}


def context_of(name):
    import torch._dynamo  # noqa: F401  # without it there is no stance to switch

    return getattr(hooks if name == "without_module_trackers" else switches, name)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_something_and_comes_back_after_an_error(name):
    context, read = context_of(name), SWITCHES[name]
    before = read()
    with pytest.raises(ZeroDivisionError), context(), context():
        assert read() != before
        1 / 0  # noqa: B018
    assert read() == before


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_kept_until_the_last_thread_leaves(name):
    """The first thread leaves while the second is inside, so that what each found at first differs."""
    context, read = context_of(name), SWITCHES[name]
    before = read()
    entered, left = threading.Event(), threading.Event()
    seen = []

    def second():
        with context():
            entered.set()
            assert left.wait(30)
            seen.append(read())

    thread = threading.Thread(target=second)
    with context():
        held = read()
        thread.start()
        assert entered.wait(30)
    left.set()
    thread.join(30)
    assert held != before
    assert seen == [held]
    assert read() == before


def test_every_attention_may_run_inside_a_context_of_one_and_that_one_comes_back():
    before = attention_backends()
    with switches.with_math_attention():
        held = attention_backends()
        with pytest.raises(ZeroDivisionError), switches.with_every_attention():
            assert attention_backends() == (True, True, True)
            1 / 0  # noqa: B018
        assert attention_backends() == held == (False, False, True)
    assert attention_backends() == before


def test_a_context_that_fails_to_begin_is_not_held():
    begun = []

    @SharedContext
    def fails_at_first():
        begun.append(1)
        if len(begun) == 1:
            raise AttributeError("renamed")
        yield

    with pytest.raises(AttributeError, match="renamed"), fails_at_first():
        pass
    with fails_at_first():
        assert fails_at_first.entered_here()
    assert len(begun) == 2 and not fails_at_first.entered_here()


def elsewhere(job):
    """What ``job`` returns in another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(job()))
    thread.start()
    thread.join(30)
    (answer,) = found
    return answer


# ---------------------------------------------------------------------- one by one


def is_checkpointed(reentrant):
    """Whether a block runs again in the backward pass."""
    calls = []

    def block(x):
        calls.append(1)
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    checkpoint.checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, x.detach().cos())
    return len(calls) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_are_not_checkpointed_here_and_are_in_other_threads(reentrant):
    assert is_checkpointed(reentrant)
    with switches.without_checkpointing():
        assert not is_checkpointed(reentrant)
        assert elsewhere(lambda: is_checkpointed(reentrant))
    assert is_checkpointed(reentrant)


def test_code_is_told_that_it_is_compiled_in_this_thread_alone():
    with switches.reported_as_compiling():
        told = torch.compiler.is_compiling()
        assert told and told == True and (told | False) is True and (False | told) is True  # noqa: E712
        assert (told & False) is False and told != False and hash(told) == hash(True)  # noqa: E712
        assert not elsewhere(lambda: bool(torch.compiler.is_compiling()))
    assert torch.compiler.is_compiling() is False


def test_a_flag_that_a_compiler_sets_in_between_is_left_to_it():
    before = torch.compiler._is_compiling_flag
    try:
        with switches.reported_as_compiling():
            ours = torch.compiler._is_compiling_flag  # what torch.compile would put back
            torch.compiler._is_compiling_flag = True
        assert torch.compiler._is_compiling_flag is True
        torch.compiler._is_compiling_flag = ours
        assert not torch.compiler.is_compiling()
    finally:
        torch.compiler._is_compiling_flag = before


class _Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 1


def test_parametrised_weights_that_a_caller_keeps_are_computed_anew():
    layer, counted = nn.Linear(2, 2), _Counted()
    parametrize.register_parametrization(layer, "weight", counted)
    with parametrize.cached():
        kept = layer.weight
        calls = counted.calls
        with switches.plain_forward():
            assert layer.weight is not kept and layer.weight is not kept
            assert counted.calls == calls + 2
            with parametrize.cached():  # as a model may do for its own time
                assert layer.weight is not None
            assert elsewhere(lambda: layer.weight) is not None
            assert elsewhere(lambda: bool(parametrize._cache_enabled))
    assert parametrize._cache_enabled == 0


def test_another_thread_may_begin_and_end_to_keep_weights_meanwhile():
    cached = parametrize.cached()
    with switches.plain_forward():
        elsewhere(cached.__enter__)
    assert parametrize._cache_enabled == 1
    with switches.plain_forward():
        elsewhere(lambda: cached.__exit__(None, None, None))
        assert not parametrize._cache_enabled
    assert parametrize._cache_enabled == 0 and type(parametrize._cache_enabled) is int


def test_a_hook_is_counted_unless_it_is_left_out():
    x = torch.ones(2, requires_grad=True)
    before = hooks.hooks_made()
    x.register_hook(lambda g: g)
    assert hooks.hooks_made() == before + 1
    y = x * 1
    with hooks.WithoutTensorHooks():
        handle = y.register_hook(lambda g: g * 100)
        handle.remove()
    assert hooks.hooks_made() == before + 1
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1]


def test_module_trackers_put_no_hooks_on_tensors_here_and_do_in_other_threads():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)

    def made():
        before = hooks.hooks_made()
        layer(x)
        return hooks.hooks_made() > before

    with FlopCounterMode(display=False):
        assert made()
        with hooks.without_module_trackers():
            assert not made()
            assert elsewhere(made)
        assert made()
    assert not made()


def test_backward_hooks_are_set_aside_and_put_back_after_an_error():
    layer, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    layer.weight.register_hook(lambda g: g * 10)
    layer.register_full_backward_hook(lambda m, i, o: (i[0] * 10,))
    x.requires_grad_()

    def gradients():
        return [g.clone() for g in torch.autograd.grad(layer(x).sum(), (layer.weight, x))]

    assert hooks.has_backward_hooks(layer) and hooks.has_backward_hooks(layer.weight)
    edited = gradients()
    with (
        pytest.raises(ZeroDivisionError),
        hooks.backward_hooks_set_aside([layer.weight, x], [layer]),
    ):
        assert not hooks.has_backward_hooks(layer) and not hooks.has_backward_hooks(layer.weight)
        exact = gradients()
        1 / 0  # noqa: B018
    assert torch.equal(exact[0], x.detach()) and torch.equal(exact[1], layer.weight.detach())
    assert torch.equal(edited[0], 10 * exact[0]) and torch.equal(edited[1], 10 * exact[1])
    assert all(map(torch.equal, gradients(), edited))


def test_members_are_those_of_the_public_walks():
    tied = nn.Linear(2, 2)
    model = nn.Sequential(tied, nn.BatchNorm1d(2), nn.Sequential(tied, nn.LayerNorm(2)))
    model.register_module("none", None)
    found = modules.Members.of(model)
    assert found.modules == list(model.modules())
    for ours, theirs in (
        (found.parameters, model.parameters()),
        (found.buffers, model.buffers()),
        (modules.tensors_of(model), [*model.parameters(), *model.buffers()]),
        (modules.tensors_of(model[1]), [*model[1].parameters(), *model[1].buffers()]),
    ):
        assert [id(t) for t in ours] == [id(t) for t in theirs]
    assert list(modules.modules_of(model)) == list(model.modules())
    assert list(modules.modules_of(tied)) == [tied]
    assert modules.members_of(tied) == [tied.weight, tied.bias]
    assert isinstance(model[1], modules.BatchNorm) and isinstance(nn.Dropout2d(), modules.Dropout)


def test_the_module_inside_a_compiled_one_is_found():
    layer = nn.Linear(2, 2)
    assert modules.uncompiled(torch.compile(layer)) is layer
    assert modules.uncompiled(layer) is None


def test_writes_are_counted_and_those_of_inference_mode_are_not():
    t = torch.zeros(2)
    before = tensors.version_of(t)
    t.add_(1)
    assert tensors.version_of(t) == before + 1
    with torch.inference_mode():
        assert tensors.version_of(torch.zeros(2)) == 0


def test_parts_of_a_sparse_tensor_are_as_they_lie():
    t = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True)
    indices, values = tensors.sparse_parts(t)
    assert indices.tolist() == [[0, 0]] and values.tolist() == [1, 2]


def test_leaves_of_nested_containers_come_in_order():
    nested = {"a": [1, (2, 3)], "b": None}
    assert tensors.leaves_of(nested)[:3] == [1, 2, 3]
    assert tensors.map_leaves(lambda leaf: leaf, nested) == nested
