"""Resolve and gather, compiled for GPUs that are not there: no spills, and how shared words are reached."""

import importlib.util
import re
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import torch
import triton
from support.cross_compile import MAX_SHARED_BYTES, NoDriver, cross_compile
from triton.runtime import driver

from compute.kernels.triton_resolve import MAX_ROWS, gather_launch, resolve_launch


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
    yield
    triton.knobs.cache.dir = before


def accesses(ptx: str) -> list[str]:
    """Loads and stores of memory, as they stand there."""
    return re.findall(r"\b((?:ld|st)\.\S*global\S*|atom\S*|red\.\S*)", ptx)


@pytest.mark.parametrize(
    "num_rows,capability",
    [(8, 80), (8, 86), (8, 89), (8, 90), (8, 100), (64, 90), (MAX_ROWS, 80), (MAX_ROWS, 100)],
)
def test_shared_words_are_read_anew_by_one_thread_each_and_stored_through_whole(
    num_rows: int, capability: int
) -> None:
    launch = resolve_launch(num_rows)
    compiled = cross_compile(launch, capability, "i64")
    assert compiled.stack_bytes == 0 and compiled.shared_bytes <= MAX_SHARED_BYTES[capability]
    assert launch.constants["ROWS"] == 32 * launch.options["num_warps"], "a word is read by two threads"
    found = accesses(compiled.ptx)
    assert all(access.endswith(".b64") for access in found), "a word is reached in pieces"
    # Control words, open slots, table; the row of the mailbox, its first word, predictions.
    assert found.count("ld.volatile.global.b64") == 3
    assert found.count("st.global.wt.b64") == 3


@pytest.mark.parametrize("capability", MAX_SHARED_BYTES)
def test_gather_has_eight_loads_of_sixteen_bytes_on_their_way(capability: int) -> None:
    compiled = cross_compile(gather_launch(), capability, "i64")
    assert compiled.stack_bytes == 0 and compiled.shared_bytes == 0
    of_blobs = accesses(compiled.ptx)[2:]  # after the two addresses
    assert of_blobs == 8 * ["ld.global.v2.b64"] + 8 * ["st.global.v2.b64"]


def test_neither_the_layer_nor_where_anything_lies_nor_a_blobs_size_chooses_another_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_active", NoDriver())
    resolving, gathering = set(), set()
    numbers = torch.zeros(2, dtype=torch.int64)
    for start, layer, size in ((0, 1, 4096), (1, 16, 4096 * 401), (0, 3, 1 << 20)):
        pointers = 9 * [numbers[start:]]
        launch = resolve_launch(8)
        arguments = (*pointers, layer, 16 * layer, 8, layer - 1, size, 1, 9)
        compiled = launch.kernel.warmup(*arguments, grid=(1,), **launch.constants, **launch.options)
        resolving.add(compiled.hash)
        launch = gather_launch()
        compiled = launch.kernel.warmup(
            *pointers[:2], size, grid=(8, 1), **launch.constants, **launch.options
        )
        gathering.add(compiled.hash)
    assert len(resolving) == 1 and len(gathering) == 1
