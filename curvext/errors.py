"""Errors and warnings of curvext's own. Wrong arguments raise the built-in ValueError and TypeError."""


class NoClosedFormError(NotImplementedError):
    """The quantity has no closed form cheaper than P products; the message names what to use instead.

    It derives from NotImplementedError so that callers who catch that catch it too; no implementation is missing.
    """


class NoSecondDerivativeError(RuntimeError):
    """An operation of the model has no second derivative in PyTorch, so that H, and perhaps G, does not exist here."""


class DtypeError(TypeError, ValueError):
    """An entry of a named vector has another dtype than the parameters: caught as either."""
