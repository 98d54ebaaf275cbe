"""Errors and warnings of curvext's own. Wrong arguments raise the built-in ValueError and TypeError."""


class NoClosedFormError(NotImplementedError):
    """The quantity has no closed form cheaper than P products; the message names what to use instead.

    A NotImplementedError, so that it is caught by who catches that: nothing is missing, nothing cheaper exists.
    """


class DtypeError(TypeError, ValueError):
    """An entry of a named vector has another dtype than the parameters: caught as either."""
