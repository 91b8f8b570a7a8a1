"""Our own log lines on stderr, and nobody else's: libraries keep to their own settings."""

import logging
import sys


def log_to_stderr(pattern: str = "%(message)s") -> None:
    """Show every life event from INFO up. Called once, by the command that runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(pattern))
    log = logging.getLogger("sidestage")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
