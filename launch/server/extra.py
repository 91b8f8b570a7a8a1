"""Whether what `sidestage[serve]` installs is there. Imports nothing of it."""

import importlib.util

from protocol.errors import SidestageError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def check_extra() -> None:
    """Raise SidestageError with the command that installs what is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SidestageError(
            f"serving needs {', '.join(missing)}, not installed here: pip install 'sidestage[serve]'"
        )
