"""Every parser against the corpus of bad files, and against mutations of it, for a little while.

`make fuzz` looks longer, guided by coverage; `make stress` a million messages and ten thousand files.
"""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz_targets import TARGETS
from support.mutate import mutated

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
SEEDS = {target: [path.read_bytes() for path in FILES if path.parent.name == target] for target in TARGETS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
@pytest.mark.timeout(20)
def test_a_file_of_the_corpus_is_understood_or_refused_with_a_sentence(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_of_the_corpus_are_understood_or_refused_with_a_sentence(target: str) -> None:
    rng = random.Random(target)
    for _ in range(3000 if target == "codec" else 400):
        data = mutated(rng.choice(SEEDS[target]), rng, rng.choice(SEEDS[target]))
        _try(target, data)


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_understood_or_refused_with_a_sentence(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_million_messages_neither_crash_nor_hang_nor_grow() -> None:
    _fuzz_long("codec", 1_000_000)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", [name for name in TARGETS if name != "codec"])
def test_ten_thousand_files_neither_crash_nor_hang_nor_grow(target: str) -> None:
    _fuzz_long(target, 10_000)


def _fuzz_long(target: str, count: int) -> None:
    import resource

    rng = random.Random(count)
    _try(target, SEEDS[target][0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        _try(target, mutated(rng.choice(SEEDS[target]), rng, rng.choice(SEEDS[target])))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 256 * 1024, f"{target} took {grown_kib} KiB"


def _try(target: str, data: bytes) -> None:
    try:
        TARGETS[target](data)
    except Exception as error:
        raise AssertionError(f"{target} broke on {data[:200].hex()}") from error
