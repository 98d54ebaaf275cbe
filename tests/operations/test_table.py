"""The table of operations: every name is that of a node, and what stands beside it has been tested."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from facets import X
from torch.nn.modules import _functions
from torch.utils.checkpoint import CheckpointFunction

from curvext import operations
from curvext.graph.autograd_graph import Graph
from curvext.operations import attention_in_closed_form, gelu, layer_norm
from curvext.operations.operation import Operation
from curvext.operations.table import OPERATIONS, merged, operation

FILES = {
    name: importlib.import_module(f"curvext.operations.{name}")
    for _, name, _ in pkgutil.iter_modules(operations.__path__)
}
TABLES = {
    name: file.OPERATIONS
    for name, file in FILES.items()
    if hasattr(file, "OPERATIONS") and name != "table"
}

#: nodes of functions written in Python, as PyTorch names them after their class
OF_PYTHON = {
    f"{function.__name__}Backward"
    for function in (
        attention_in_closed_form._ClosedFormAttention,
        gelu.ClosedFormGelu,
        layer_norm.ClosedFormLayerNorm,
        _functions.SyncBatchNorm,
        CheckpointFunction,
    )
}
#: nodes that the table of PyTorch's generated nodes lacks
OTHERS = {
    "CompiledFunctionBackward": "made by torch.compile, by a class inside a function",
    "torch::autograd::CheckpointFunctionBackward": "one that PyTorch's own registers for pickling",
    "torch::autograd::CompiledFunctionBackward": "the same of torch.compile",
    "torch::autograd::CopyBackwards": "written by hand in C++, without a class in Python",
    "torch::autograd::CopySlices": "written by hand in C++, without a class of this name in Python",
}
#: nodes that PyTorch 2.6 does not have yet
LATER = {"FusedRmsNormBackward0", "LdexpBackward0"}
#: nodes that only CUDA makes: cuDNN's in tests/test_cuda_nodes.py, RMS norm's by the networks of models.py there
ON_CUDA = {"CudnnBatchNormBackward0", "FusedRmsNormBackward0"}
#: tangents that tests of their own hold: their inputs are not one x
BY_THEMSELVES = {
    "ClosedFormGeluBackward",
    "ClosedFormLayerNormBackward",
    "NativeBatchNormBackward0",
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "_ClosedFormAttentionBackward",
}
#: other ways to nodes that the CPU does not make in float64: attention's is that of the CPU's node
WAYS_BY_THEMSELVES = {
    "CudnnRnnBackward0",
    "MkldnnRnnLayerBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductFlashAttentionBackward0",
}


def cases_of(attribute):
    """(name, case) of every facet test of this kind in this folder."""
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.stem != Path(__file__).stem:
            for value in vars(importlib.import_module(path.stem)).values():
                yield from getattr(value, attribute, {}).items()


def generated():
    return {name for name in dir(torch._C._functions) if "Backward" in name}


def test_every_name_is_that_of_a_node():
    """A rule under a misspelt name would never be used, and no answer would tell."""
    unknown = OPERATIONS.keys() - generated() - OF_PYTHON - OTHERS.keys() - LATER
    assert not unknown


def test_no_reason_is_left_for_a_name_that_needs_none():
    assert OTHERS.keys() <= OPERATIONS.keys()
    assert not OTHERS.keys() & (generated() | OF_PYTHON)
    assert OPERATIONS.keys() >= LATER


def test_a_name_stands_in_one_file():
    with pytest.raises(ValueError, match=r"\['A'\]: two files claim"):
        merged([{"A": Operation(), "B": Operation()}, {"A": Operation()}])
    assert sum(map(len, TABLES.values())) == len(OPERATIONS)


def test_of_an_unknown_operation_nothing_is_known():
    assert operation("FooBackward0") == Operation()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_facets_of_an_operation_agree(name):
    here = OPERATIONS[name]
    assert here != Operation(), "an entry without a facet"
    if here.view is not None:
        assert here.flow is not None, "a rearrangement says where samples lie"
        assert here.tangent is None and not here.per_sample, "the tangent of a view is the view"
    if here.multilinear:
        assert here.tangent is not None and here.per_sample
    if here.product is not None and here.product.bias is not None:
        assert {here.product.right, here.product.bias} <= here.per_sample.keys()
    if here.product is not None and here.product.factors is not None:
        assert {here.product.left, here.product.right} <= here.per_sample.keys()
        assert (here.factor(here.product.left), here.factor(here.product.right)) == (
            "left",
            "right",
        )
    if here.look_up:
        assert 0 in here.per_sample
    if here.per_sample:
        assert here.flow is not None, "samples lie apart at its output only where a rule says so"
    if here.alternatives:
        assert here.refusal is None
    if "linearised" in here.alternatives:
        assert {"doubled", "twice"} <= here.alternatives.keys(), "what is missing once is missing"
    if here.once_differentiable and here.flow is not None:
        assert "twice" in here.alternatives


def test_every_tangent_is_tested():
    made = set()
    for _, function in cases_of("functions"):
        x = X.clone().requires_grad_()
        made |= set(Graph(function(x), [x]).names)
    with_tangent = {name for name, here in OPERATIONS.items() if here.tangent is not None}
    assert sorted(with_tangent - made - ON_CUDA - BY_THEMSELVES) == []


def test_every_other_way_is_tested():
    with_ways = {name for name, here in OPERATIONS.items() if here.alternatives}
    tested = {node for node, _ in cases_of("node")}
    assert sorted(with_ways - tested - WAYS_BY_THEMSELVES) == []


def test_every_per_sample_rule_is_tested():
    made = set()
    for _, (shape, call, *_) in cases_of("uses"):
        w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        node = call(w).grad_fn
        for edge, (child, _) in enumerate(node.next_functions):
            if getattr(child, "variable", None) is w:
                made.add((node.name(), edge))
    rules = {
        (name, edge)
        for name, here in OPERATIONS.items()
        for edge in here.per_sample
        if name not in ON_CUDA
    }
    assert sorted(rules - made) == []
