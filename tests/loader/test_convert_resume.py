"""An interrupted conversion goes on where it was, and ends in the very bytes of an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stores import contents
from support.tiny_models import make_checkpoint

from loader.convert import convert
from loader.journal import JOURNAL_FILE
from loader.store import StorePlace
from protocol.child import Child
from protocol.errors import SidestageError
from protocol.manifest import MANIFEST_FILE, Manifest

NUM_KEYS = 16
CONVERT = (sys.executable, "-P", "-m", "loader", "convert")


class PowerCutError(Exception):
    """What a test throws into a conversion."""


def cut_after(experts: int) -> Callable[[int, int], None]:
    def cut(done: int, total: int) -> None:
        if done == experts:
            raise PowerCutError

    return cut


def interrupt(checkpoint: Path, store: Path, experts: int, bits: str = "4") -> Path:
    """Interrupt a conversion after `experts`; the partial folder it leaves."""
    with pytest.raises(PowerCutError):
        convert(checkpoint, store, bits=bits, fast=True, progress=cut_after(experts))
    return StorePlace(store).partial


def converted_on_resume(checkpoint: Path, store: Path, bits: str = "4") -> int:
    """Go on; how many experts had to be converted."""
    seen: list[int] = []
    convert(checkpoint, store, bits=bits, fast=True, progress=lambda done, total: seen.append(done))
    return NUM_KEYS - seen[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("olmoe", tmp_path_factory.mktemp("olmoe"))


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted conversion."""
    return contents(convert(checkpoint, tmp_path_factory.mktemp("whole") / "store", bits="4", fast=True))


@pytest.mark.parametrize("experts", [0, 1, 7, NUM_KEYS])
def test_conversion_goes_on_where_it_was(
    experts: int, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    interrupt(checkpoint, tmp_path / "store", experts)
    assert not (tmp_path / "store").exists()
    assert converted_on_resume(checkpoint, tmp_path / "store") == NUM_KEYS - experts
    assert contents(tmp_path / "store") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_conversion_survives_many_interruptions(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for experts in range(1, NUM_KEYS, 4):
        interrupt(checkpoint, tmp_path / "store", experts)
    assert converted_on_resume(checkpoint, tmp_path / "store") == 3
    assert contents(tmp_path / "store") == whole


def test_torn_journal_line_costs_one_expert(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    journal = interrupt(checkpoint, tmp_path / "store", 9) / JOURNAL_FILE
    journal.write_text(journal.read_text()[:-5])
    assert converted_on_resume(checkpoint, tmp_path / "store") == NUM_KEYS - 8
    assert contents(tmp_path / "store") == whole


def test_journal_that_is_nonsense_costs_all(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (interrupt(checkpoint, tmp_path / "store", 9) / JOURNAL_FILE).write_bytes(b"\xff\x00\n\n7")
    assert converted_on_resume(checkpoint, tmp_path / "store") == NUM_KEYS
    assert contents(tmp_path / "store") == whole


def test_blob_that_never_reached_the_disk_is_converted_again(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    partial = interrupt(checkpoint, tmp_path / "store", 9)
    (shard,) = partial.glob("experts-*")
    damaged = bytearray(shard.read_bytes())
    stride = len(whole[shard.name]) // NUM_KEYS
    damaged[-4 * stride] ^= 1
    shard.write_bytes(damaged)
    assert converted_on_resume(checkpoint, tmp_path / "store") >= NUM_KEYS - 6
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_truncated_shard_is_seen(
    size: int, checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (shard,) = interrupt(checkpoint, tmp_path / "store", 9).glob("experts-*")
    os.truncate(shard, size)
    convert(checkpoint, tmp_path / "store", bits="4", fast=True)
    assert contents(tmp_path / "store") == whole


def test_damaged_dense_weights_are_copied_again(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dense = interrupt(checkpoint, tmp_path / "store", 3) / "model.safetensors"
    dense.write_bytes(dense.read_bytes()[:-1] + b"?")
    assert converted_on_resume(checkpoint, tmp_path / "store") == NUM_KEYS - 3
    assert contents(tmp_path / "store") == whole


def test_other_parameters_start_anew(checkpoint: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    partial = interrupt(checkpoint, tmp_path / "store", 9, bits="8")
    (partial / "tokenizer.model").write_text("of another model")
    assert converted_on_resume(checkpoint, tmp_path / "store") == NUM_KEYS
    assert contents(tmp_path / "store") == whole


def test_store_that_lacked_only_its_name_gets_it(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = convert(checkpoint, tmp_path / "store", bits="4", fast=True)
    store.rename(StorePlace(store).partial)
    convert(checkpoint, store, bits="4", fast=True, progress=cut_after(0))
    assert contents(store) == whole


def test_half_store_has_no_manifest(checkpoint: Path, tmp_path: Path) -> None:
    assert not (interrupt(checkpoint, tmp_path / "store", NUM_KEYS) / MANIFEST_FILE).exists()


# --- real processes --------------------------------------------------------------------------------


def wait_for_experts(partial: Path, count: int, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if (partial / JOURNAL_FILE).exists() and len(
            (partial / JOURNAL_FILE).read_text().split("\n")
        ) > count + 2:
            return
        time.sleep(0.002)
    raise TimeoutError(f"no {count} experts within {timeout_s} s")


@pytest.mark.slow
def test_killed_conversion_goes_on_to_the_same_bytes(
    shipped_model: Path, store_4bit: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    partial = StorePlace(store).partial
    argv = [*CONVERT, str(shipped_model), str(store), "--bits", "4", "--group", "64"]
    for number, sign in enumerate((signal.SIGKILL, signal.SIGINT), 1):
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        wait_for_experts(partial, 30 * number)
        process.send_signal(sign)
        _, stderr = process.communicate(timeout=30)
        assert not store.exists() and partial.is_dir()
    assert process.returncode == 130
    assert "interrupted: the same command goes on where it was" in stderr
    seen: list[int] = []
    convert(shipped_model, store, bits="4", group=64, progress=lambda done, total: seen.append(done))
    assert 60 <= seen[0] < 192
    assert contents(store) == contents(store_4bit)


@pytest.mark.slow
def test_child_reports_its_store(checkpoint: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    argv = [*CONVERT, str(checkpoint), str(tmp_path / "store"), "--bits", "4", "--fast"]
    with Child.spawn(argv, name="convert", ready_timeout_s=60) as child:
        assert child.wait_ready() == {"store": str(tmp_path / "store")}
        assert child.wait(10) == 0
    assert contents(tmp_path / "store") == whole


def test_child_reports_a_sentence(tmp_path: Path) -> None:
    argv = [*CONVERT, str(tmp_path / "nothing"), str(tmp_path / "store")]
    with (
        Child.spawn(argv, name="convert", ready_timeout_s=60) as child,
        pytest.raises(SidestageError, match="there is no folder"),
    ):
        child.wait_ready()


def test_child_dies_with_its_parent(checkpoint: Path, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    argv = [*CONVERT, str(checkpoint), str(tmp_path / "store"), "--lifeline-fd", str(read_end)]
    process = subprocess.Popen(argv, pass_fds=[read_end])
    os.close(read_end)
    os.close(write_end)
    assert process.wait(30) == 1
    assert not (tmp_path / "store").exists()


def test_refusals_need_no_torch(shipped_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from loader.convert import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(status)"
    )
    argv = [sys.executable, "-c", program, str(shipped_model), str(tmp_path / "store"), "--bits", "5"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (1, "sidestage: --bits is '5'; allowed: 8, 4, 3, 2, none\n")


MEMORY = """
import re, sys
from loader.convert import convert

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

convert(sys.argv[1], sys.argv[3] + "-warm", bits="4", fast=True)
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
convert(sys.argv[2], sys.argv[3], bits="4", fast=True)
print((kib("VmHWM") - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
def test_memory_holds_one_expert_not_the_checkpoint(fused: bool, checkpoint: Path, tmp_path: Path) -> None:
    """192 MiB of experts, 0.8 MiB each: a conversion needs a few experts' worth, whatever the format."""
    large = make_checkpoint(
        "qwen3_moe",
        tmp_path / "large",
        fused=fused,
        dtype="bfloat16",
        hidden_size=256,
        moe_intermediate_size=512,
        num_experts=128,
    )
    assert (large / "model.safetensors").stat().st_size > 190 * 2**20
    argv = [sys.executable, "-c", MEMORY, str(checkpoint), str(large), str(tmp_path / "store")]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 32, f"{run.stdout.strip()} MiB"


def test_kept_lock_file_of_a_dead_conversion_is_no_lock(checkpoint: Path, tmp_path: Path) -> None:
    StorePlace(tmp_path / "store").lock.touch()
    assert Manifest.read(convert(checkpoint, tmp_path / "store", bits="none")).num_keys == NUM_KEYS
