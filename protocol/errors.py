"""The few exceptions that cross a folder's border.

A `ValueError` is for a wrong setting; these are for what a caller can act upon.
Each carries one sentence: what was given, what is allowed, what to do.
"""


class SidestageError(Exception):
    """Base of every error that is answered with a sentence instead of a traceback."""


class ProtocolError(SidestageError):
    """Bytes that do not follow the protocol: wrong version, unknown tag, wrong field."""


class RefusedError(SidestageError):
    """The loader refused a client: foreign store, quota larger than the arena, another user."""


class LoaderLostError(SidestageError):
    """The loader died, hung or could not be reached within the timeout."""


class StoreError(SidestageError):
    """A store that is truncated, foreign, of another schema, or damaged."""


class ModelError(SidestageError):
    """A model that cannot be served: no experts, off the interface, already quantized, not found."""


class MemoryBudgetError(SidestageError):
    """Memory asked for is not there, or not enough for the smallest legal configuration."""
