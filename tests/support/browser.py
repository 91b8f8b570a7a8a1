"""A real browser, where the system has one: a page as it is after its scripts have run."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: apt-get install chromium runs this test"
)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def page_after_scripts(url: str, profile: Path, *, virtual_ms: int = 5000) -> str:
    """The page's elements as HTML, `virtual_ms` of its own time after it was opened."""
    assert CHROMIUM is not None
    argv = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={virtual_ms}"]
    ended = subprocess.run(
        [*argv, "--dump-dom", url], capture_output=True, text=True, timeout=100, check=True
    )
    return ended.stdout
