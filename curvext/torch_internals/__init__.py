"""PyTorch's private names and process-wide switches, in one place that can be checked against a new torch.

Whatever has no documented name is read, set and restored here, and nowhere else; each entry names what it relies on
and what breaks without it. All of it is the same in torch 2.6 and 2.13, whose sources were read.

* :mod:`.switches`: process-wide state: backends, checkpointing, compiled code. :mod:`.shared_context` counts threads.
* :mod:`.hooks`: hooks on tensors and modules.
* :mod:`.modules`: the tables inside ``nn.Module``.
* :mod:`.tensors`: counters and parts of tensors, and the leaves of nested containers.

:mod:`curvext.operations` and :mod:`curvext.graph` read what operations save for their backward passes.
``tests/test_architecture.py`` finds private names elsewhere.
"""
