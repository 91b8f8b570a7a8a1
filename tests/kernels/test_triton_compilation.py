"""The Triton kernels compile for GPUs that are not there, spill nothing and fit into their memory.

In the suite, real shapes spread over the architectures; every combination with `-m stress`.
"""

import importlib.util
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import torch
import triton
from support.cross_compile import MAX_SHARED_BYTES, NoDriver, cross_compile
from triton.runtime import driver

from compute.kernels.measure import gated_layout
from compute.kernels.triton_gate import Gate
from compute.kernels.triton_launch import Launch, down_launch, up_launch
from compute.kernels.triton_plan import block_tile, decode_tile, down_matrix, up_matrix
from protocol.blob import BlobLayout

#: hidden, intermediate, and the experts that a token is sent to
SHAPES = {"qwen3": (2048, 768, 8), "olmoe": (2048, 1024, 8), "mixtral": (4096, 14336, 2)}
SILU = Gate("halves", "silu")
CLAMPED = Gate("interleaved", "silu", alpha=1.702, limit=7.0, shift=1.0)
#: A token; small blocks; large blocks.
NUM_TOKENS = (1, 64, 512)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
    yield
    triton.knobs.cache.dir = before


def layout_of(shape: str, bits: str, group: int) -> BlobLayout:
    hidden, intermediate, _ = SHAPES[shape]
    if bits != "none":
        return gated_layout(hidden, intermediate, bits, group)
    up, down = (2 * intermediate, hidden), (hidden, intermediate)
    return BlobLayout.pack("none", 0, [("gate_up_proj", "bfloat16", up), ("down_proj", "bfloat16", down)])


def launches(
    layout: BlobLayout,
    num_tokens: int,
    top_k: int,
    gate: Gate = SILU,
    *,
    is_transposed: bool = False,
    is_wide: bool = False,
) -> tuple[Launch, Launch]:
    """What one call launches."""
    up = up_matrix(layout, has_gate=True, pairing=gate.pairing, is_transposed=is_transposed)
    down = down_matrix(layout, is_transposed=is_transposed)
    if num_tokens == 1:
        tiles = decode_tile(up), decode_tile(down)
    else:
        tiles = tuple(block_tile(matrix, num_tokens, is_wide=is_wide) for matrix in (up, down))
    return up_launch(up, tiles[0], gate, top_k), down_launch(down, tiles[1], is_weighted=True)


def check(launch: Launch, capability: int, dtype: str = "bf16") -> None:
    compiled = cross_compile(launch, capability, dtype)
    assert compiled.stack_bytes == 0, f"{compiled.stack_bytes} bytes of registers are spilled"
    assert compiled.shared_bytes <= MAX_SHARED_BYTES[capability]
    if "M" not in launch.constants:
        assert compiled.num_registers <= 128, "at least four programs of 128 threads share a processor"
        assert compiled.widest_load >= (64 if launch.constants["X"][:2] == (3, 32) else 128)
        # Codes are subnormal numbers until they are multiplied: flushed to zero, they would be lost.
        assert ".ftz" not in compiled.ptx.replace("ex2.approx.ftz", "")


@pytest.mark.parametrize(
    "shape,num_tokens,capability",
    [
        ("qwen3", 1, 80), ("qwen3", 1, 90), ("qwen3", 64, 86), ("qwen3", 512, 90),
        ("olmoe", 1, 86), ("olmoe", 64, 100), ("olmoe", 512, 80),
        ("mixtral", 1, 89), ("mixtral", 64, 90), ("mixtral", 512, 89), ("mixtral", 1, 100),
    ],
)  # fmt: skip
def test_real_shapes_compile_without_spills(shape: str, num_tokens: int, capability: int) -> None:
    for launch in launches(layout_of(shape, "4", 64), num_tokens, SHAPES[shape][2]):
        check(launch, capability)


@pytest.mark.parametrize(
    "bits,num_tokens,capability",
    [("8", 1, 90), ("3", 1, 80), ("2", 1, 89), ("none", 1, 90), ("3", 512, 90), ("none", 512, 80)],
)
def test_other_widths_compile_without_spills(bits: str, num_tokens: int, capability: int) -> None:
    check(launches(layout_of("qwen3", bits, 64), num_tokens, 8)[0], capability)


@pytest.mark.parametrize("num_tokens,capability", [(1, 90), (512, 80)])
def test_transposed_biased_interleaved_experts_compile_without_spills(
    num_tokens: int, capability: int
) -> None:
    """gpt-oss with its weights as they are."""
    side = 2880
    parts = [("gate_up_proj", "bfloat16", (side, 2 * side)), ("down_proj", "bfloat16", (side, side))]
    biases = [("gate_up_proj_bias", "bfloat16", (2 * side,)), ("down_proj_bias", "bfloat16", (side,))]
    layout = BlobLayout.pack("none", 0, [*parts, *biases])
    for launch in launches(layout, num_tokens, 4, CLAMPED, is_transposed=True):
        compiled = cross_compile(launch, capability)
        assert compiled.stack_bytes == 0
        assert compiled.shared_bytes <= MAX_SHARED_BYTES[capability]


def test_float32_activations_compile_without_spills() -> None:
    check(launches(layout_of("qwen3", "4", 64), 512, 8, is_wide=True)[0], 80, "fp32")


def test_the_check_sees_a_spill() -> None:
    launch, _ = launches(layout_of("qwen3", "4", 64), 512, 8)
    starved = Launch(launch.kernel, launch.constants, {**launch.options, "maxnreg": 32})
    assert cross_compile(starved, 80).stack_bytes > 0


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_active", NoDriver())


@pytest.mark.parametrize("num_tokens", [1, 512])
def test_where_the_indices_lie_and_how_many_rows_there_are_choose_no_other_compilation(
    num_tokens: int, no_driver: None
) -> None:
    """Another compilation may have other bits."""
    for launch in launches(layout_of("qwen3", "4", 64), num_tokens, 8):
        names = [name for name in launch.kernel.arg_names if name.endswith("_ptr")]
        hashes = set()
        for start, num_rows in ((0, 16), (1, 7), (1, 16), (0, 1)):
            numbers = torch.zeros(64, dtype=torch.int64)[start : start + num_rows]
            weights = torch.zeros(64, dtype=torch.bfloat16)[start : start + num_rows]
            rows = torch.zeros(num_rows, 4096, dtype=torch.bfloat16)
            tensors = {"x_ptr": rows, "out_ptr": rows, "weights_ptr": weights}
            arguments = [tensors.get(name, numbers) for name in names]
            compiled = launch.kernel.warmup(
                *arguments, grid=(num_rows, 1), **launch.constants, **launch.options
            )
            hashes.add(compiled.hash)
        assert len(hashes) == 1


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", MAX_SHARED_BYTES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_compiles_without_spills(shape: str, dtype: str, capability: int) -> None:
    is_wide = dtype == "fp32"
    for bits in ("8", "4", "3", "2", "none"):
        for group in (32, 64, 128) if bits != "none" else (0,):
            for num_tokens in NUM_TOKENS:
                layout = layout_of(shape, bits, group)
                for launch in launches(layout, num_tokens, SHAPES[shape][2], is_wide=is_wide):
                    check(launch, capability, dtype)
