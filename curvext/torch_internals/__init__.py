"""PyTorch's private names and process-wide switches, in one place that can be checked against a new torch.

What no documented name gives is read, set and put back here, and nowhere else; each entry names what it relies on and
what breaks without it. All of it is the same in torch 2.6 and 2.13, whose sources were read.

* :mod:`.switches`: what a process has once: backends, checkpointing, compiled code.
* :mod:`.hooks`: hooks on tensors and modules.
* :mod:`.modules`: what ``nn.Module`` keeps in its own tables.
* :mod:`.tensors`: counters and parts of tensors, and the leaves of nested containers.

What operations saved for their backward passes is read in :mod:`curvext.operations` and :mod:`curvext.graph`.
``tests/test_architecture.py`` finds private names elsewhere.
"""
