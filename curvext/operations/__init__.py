"""What is known of each operation of PyTorch: an operation or a small family in each file, one table of all of them.

* :mod:`.operation`: the facets of an operation, and what its rules are given.
* :mod:`.table`: the operation of a node's name, which all other code asks.
* :mod:`.node`: reads nodes, which nothing else here does, and has the tangent of any operation.
* :mod:`.flow`, :mod:`.broadcasting`, :mod:`.alternative`: what the rules of several operations share.
* :mod:`.view_chain`: rearrangements one after the other, between a parameter and its use.
"""
