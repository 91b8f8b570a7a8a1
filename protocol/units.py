"""SIZE and RATE as people write them: `900MiB`, `1.5GB`, `64MB/s`."""

import re

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes. An int, or digits without a unit, are bytes already. Raises ValueError."""
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{text} is not a size: it is negative")
        return text
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get((match[2] or "B").upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size: write it like 900MiB, 1.5GB or 4096")
    size = float(match[1]) * factor
    if size >= 2**63:
        raise ValueError(f"{text[:20]!r}... is not a size: no machine has 2**63 bytes")
    return int(size)


def parse_rate(text: str) -> int:
    """Bytes per second, written as SIZE/s. Raises ValueError."""
    size, slash, second = text.rpartition("/")
    if not slash or second.strip() != "s":
        raise ValueError(f"{text!r} is not a rate: write it like 40MB/s or 25GiB/s")
    rate = parse_size(size)
    if rate <= 0:
        raise ValueError(f"{text!r} is not a rate: it must be above zero")
    return rate


def format_size(num_bytes: int | float) -> str:
    """`1.5 GiB`: binary units, one decimal from KiB up."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
