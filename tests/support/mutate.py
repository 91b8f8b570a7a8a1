"""Mutations: bytes that are nearly right, which is where parsers break."""

import random

_ODD_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xC0, 0xC1, 0xCF, 0xD3, 0xDC, 0xDD, 0xDF, 0xFF)
_ODD_WORDS = (b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"../../etc", b"\x00" * 8, b"\xff" * 8)


def mutated(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four changes: flipped, replaced, removed, repeated, spliced or cut."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 32))
        match rng.randrange(7):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[place % len(changed)] = rng.choice(_ODD_BYTES)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * rng.randint(1, 8)
            case 4:
                changed[place : place + length] = rng.choice(_ODD_WORDS)
            case 5 if other:
                start = rng.randrange(len(other))
                changed[place : place + length] = other[start : start + length]
            case 6:
                del changed[place:]
    return bytes(changed[: 1 << 20])
