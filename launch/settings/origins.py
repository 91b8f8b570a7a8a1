"""Where the running command's settings came from, so that a notice or a complaint can say so."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar

#: `--slots` -> "sidestage.toml", for the settings that no flag overruled.
Origins = Mapping[str, str]

_origins: ContextVar[Callable[[], Origins]] = ContextVar("origins", default=dict)


def note_origins(tell: Callable[[], Origins]) -> None:
    """From now on `tell` answers for the command that runs; it is asked once its flags are known."""
    _origins.set(tell)


def origins() -> Origins:
    """The running command's."""
    return _origins.get()()
