"""Rules for each operation of PyTorch: one operation or small family in each file, and one table of all.

* :mod:`.operation`: the facets of an operation, and the arguments of its rules.
* :mod:`.table`: the operation of a node's name, which all other code asks.
* :mod:`.node`: reads nodes, as no other file here does, and has the tangent of any operation.
* :mod:`.flow`, :mod:`.broadcasting`, :mod:`.alternative`: parts that the rules of several operations share.
* :mod:`.view_chain`: rearrangements one after the other, between a parameter and its use.
"""
