"""Where results go: files that appear whole, or stdout. Checked before the work, written after it."""

import os
import sys
from pathlib import Path


def write_json(place: str, text: str) -> None:
    """One line to stdout for "-", else a file that appears whole."""
    if place == "-":
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        return
    write_whole(place, (text + "\n").encode())


def write_whole(place: str, data: bytes) -> None:
    """A file that is there with all of `data`, or not at all."""
    temporary = Path(f"{place}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.rename(place)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(option: str, place: str | None) -> None:
    """Raise ValueError now if a file could not be written there later."""
    if place is None or place == "-":
        return
    path = Path(place)
    if path.is_dir():
        raise ValueError(f"{option} {place} is a folder: name a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{option} {place}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {place}: the folder {folder} cannot be written to")
