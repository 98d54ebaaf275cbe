"""Records that were taken apart, sent and put together again give the same inner products, for each kind of network."""

from __future__ import annotations

import pickle

import pytest
import torch
from models import CASES
from problems import pose

import curvext as cx
from curvext.operators.sample_gradients import SampleGradients
from curvext.per_sample.parcels import Parcel, packed, unpacked
from curvext.per_sample.widened import in_float64

#: networks of which a sample has no gradient of its own
COUPLED = [name for name, case in CASES.items() if case.coupled]


def records_of(posed):
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.cut(3, 2))
    return SampleGradients(risk)._all(), risk.space


def sent(records, space):
    """The records as another process would have them: nothing is shared."""
    parcel = packed(records)
    label = pickle.loads(pickle.dumps(parcel.label))
    for t, form in zip(parcel.tensors, label.sizes, strict=True):
        assert (t.shape, t.dtype) == (form.shape, form.dtype) and t.is_contiguous()
    return unpacked(Parcel(label, [t.clone() for t in parcel.tensors]), space)


@pytest.mark.parametrize("name", [name for name in CASES if name not in COUPLED])
def test_inner_products_with_what_was_sent_are_the_same(name):
    posed = pose(name, "mse")
    records, space = records_of(posed)
    arrived = sent(records, space)
    for mine in records:
        for theirs, copy in zip(records, arrived, strict=True):
            assert torch.equal(mine.gram(copy), mine.gram(theirs))
            assert torch.equal(copy.gram(mine), theirs.gram(mine))


def test_records_in_float64_stay_so():
    posed = pose("mlp", "ce", dtype=torch.float32)
    records, space = records_of(posed)
    wide = [in_float64(r) for r in records]
    arrived = sent(wide, space)
    assert arrived[0].gram(wide[1]).dtype is torch.float64
    assert torch.equal(wide[0].gram(arrived[1]), wide[0].gram(wide[1]))


def test_what_no_rule_sends_is_named():
    posed = pose("linear", "mse")
    records, _ = records_of(posed)
    records[0]._uses[0][2].secret = object()
    with pytest.raises(TypeError, match="process_group: .* holds a object"):
        packed(records)
