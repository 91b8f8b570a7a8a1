"""offload, end to end: real stores, real loader processes, real generation."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from support.tiny_stores import make_tiny_store, prompt

from compute import Offloaded, offload
from compute.loader_process import OwnedLoader, start_loader
from compute.policies.lru import Lru
from compute.policies.reuse_distance import ReuseDistance
from protocol.errors import (
    LoaderLostError,
    MemoryBudgetError,
    ModelError,
    RefusedError,
    SidestageError,
    StoreError,
)

GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
CONTRACT = {
    "lookups",
    "hits",
    "late",
    "misses",
    "hit_rate",
    "prefetch_issued",
    "prefetch_used",
    "prefetch_wasted_bytes",
    "miss_recall",
    "prediction_recall",
    "prediction_precision",
    "stall_s",
    "bytes_read",
    "bytes_transferred",
    "evictions",
    "arrangement",
    "arrangement_reason",
    "policy",
    "predictor",
    "lookahead",
    "slots",
    "frames",
    "bits",
    "model_type",
    "expert_bytes_total",
    "compute_parameter_bytes",
}


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, store) of a tiny OLMoE: 2 layers of 8 experts, top-3, unquantized."""
    return make_tiny_store("olmoe", tmp_path_factory.mktemp("olmoe"))


@pytest.fixture
def running_loader(olmoe: tuple[Path, Path]) -> Iterator[OwnedLoader]:
    """A loader with 12 frames of the 16 experts, for up to four clients."""
    with start_loader(olmoe[1], num_frames=12, num_clients=4) as loader:
        yield loader


def generate(model: transformers.PreTrainedModel, length: int = 20, batch: int = 1) -> list[list[int]]:
    output = model.generate(prompt(batch), max_new_tokens=length, min_new_tokens=length, **GREEDY)
    ids: list[list[int]] = output.tolist()
    return ids


def stock_tokens(checkpoint: Path, length: int = 20, batch: int = 1) -> list[list[int]]:
    return generate(transformers.AutoModelForCausalLM.from_pretrained(checkpoint), length, batch)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def open_fds() -> dict[str, str]:
    names = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in names}


# --- it works ------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_stock_transformers(olmoe: tuple[Path, Path]) -> None:
    checkpoint, store = olmoe
    with offload(store, slots=4) as offloaded:
        assert generate(offloaded.model) == stock_tokens(checkpoint)
        assert generate(offloaded.model, batch=3) == stock_tokens(checkpoint, batch=3)


def test_a_left_padded_batch_gives_the_tokens_of_stock_transformers(
    store_none: Path, shipped_model: Path
) -> None:
    texts = ["Once upon a time", "The king said unto them that", "def main("]
    with offload(store_none, slots=24) as offloaded:
        tokenizer = offloaded.tokenizer
        assert tokenizer is not None
        tokenizer.padding_side = "left"
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        ours = offloaded.model.generate(**inputs, max_new_tokens=12, **GREEDY)
    stock = transformers.AutoModelForCausalLM.from_pretrained(shipped_model, dtype="auto")
    assert torch.equal(ours, stock.generate(**inputs, max_new_tokens=12, **GREEDY))


def test_it_unpacks_into_model_and_tokenizer(olmoe: tuple[Path, Path]) -> None:
    offloaded = offload(olmoe[1])
    model, tokenizer = offloaded
    assert type(model) is transformers.OlmoeForCausalLM
    assert tokenizer is None
    offloaded.close()


def test_where_every_expert_has_a_slot_the_cheapest_policy_keeps_the_books(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1]) as offloaded:
        assert type(offloaded.stage._residency.policy) is Lru
        assert offloaded.report()["policy"] == "reuse-distance"
    with offload(olmoe[1], slots=5) as offloaded:
        assert type(offloaded.stage._residency.policy) is ReuseDistance
    with pytest.raises(ValueError, match='policy "lfu" has no option "speed"'):
        offload(olmoe[1], policy="lfu+speed=3")


def test_the_report_holds_every_word_of_the_contract(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=5) as offloaded:
        generate(offloaded.model)
        report = offloaded.report()
    assert set(report) >= CONTRACT
    assert report["lookups"] == report["hits"] + report["late"] + report["misses"]  # type: ignore[operator]
    assert (report["arrangement"], report["bits"], report["slots"]) == ("direct", "none", 5)
    assert report["bytes_transferred"] == 0
    assert report["bytes_read"] > 0  # type: ignore[operator]
    assert json.loads(json.dumps(report)) == report


def test_the_report_outlives_the_loader(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1]) as offloaded:
        generate(offloaded.model)
        before = offloaded.report()
    assert offloaded.report()["lookups"] == before["lookups"]


def test_bytes_cross_the_link_when_emulated(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=5, arrangement="emulated", link="200MB/s") as offloaded:
        tokens = generate(offloaded.model)
        report = offloaded.report()
    assert tokens == stock_tokens(olmoe[0])
    assert report["arrangement"] == "emulated"
    assert report["bytes_transferred"] > 0  # type: ignore[operator]


def test_top_k_slots_work_and_say_that_prefetch_idles(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=3, lookahead=1) as offloaded:
        assert generate(offloaded.model) == stock_tokens(olmoe[0])
        assert any("prefetch idles" in notice for notice in offloaded.notices)
        assert offloaded.report()["prefetch_issued"] == 0


def test_a_checkpoint_is_converted_once_and_kept(
    olmoe: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with offload(olmoe[0], bits="none") as first:
        manifest = first.store / "manifest.json"
        written = manifest.stat().st_mtime_ns
        tokens = generate(first.model)
    with offload(olmoe[0], bits="none") as second:
        assert second.store == first.store and second.store.is_relative_to(tmp_path)
    assert manifest.stat().st_mtime_ns == written
    assert tokens == stock_tokens(olmoe[0])


def test_two_models_live_in_one_process(olmoe: tuple[Path, Path], tmp_path: Path) -> None:
    other_checkpoint, other_store = make_tiny_store("mixtral", tmp_path)
    with offload(olmoe[1], slots=4) as first, offload(other_store, slots=3) as second:
        assert generate(second.model) == stock_tokens(other_checkpoint)
        assert generate(first.model) == stock_tokens(olmoe[0])


def test_threads_that_generate_at_once_are_served_one_after_the_other(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=4) as offloaded:
        expected = generate(offloaded.model)
        found: list[list[list[int]]] = []
        workers = [threading.Thread(target=lambda: found.append(generate(offloaded.model))) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert found == [expected] * 3


def test_no_signal_handler_is_installed(olmoe: tuple[Path, Path]) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with offload(olmoe[1]) as offloaded:
        generate(offloaded.model)
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_a_loader_that_is_killed_is_replaced_and_no_token_moves(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=4, timeout=20) as offloaded:
        calm = generate(offloaded.model, length=60)
        (loader,) = children()
        killer = threading.Timer(0.1, lambda: os.kill(loader, signal.SIGKILL))
        killer.start()
        shaken = generate(offloaded.model, length=60)
        killer.join()
        assert shaken == calm
        assert generate(offloaded.model, length=60) == calm
        assert children() != {loader}


def test_the_timeline_of_both_processes_is_one_file(olmoe: tuple[Path, Path], tmp_path: Path) -> None:
    with offload(olmoe[1], slots=4, timeline=tmp_path / "trace.json") as offloaded:
        generate(offloaded.model)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len({event["pid"] for event in events}) == 2
    assert {"s", "f"} <= {event["ph"] for event in events}
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


# --- it ends -------------------------------------------------------------------------------------


def test_closing_leaves_no_process_no_thread_and_no_fd(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], arrangement="emulated") as offloaded:  # what is opened once for ever is open now
        generate(offloaded.model)
    fds, threads = open_fds(), set(threading.enumerate())
    for arrangement in ("direct", "emulated"):
        with offload(olmoe[1], slots=4, arrangement=arrangement) as offloaded:
            generate(offloaded.model)
            assert len(children()) == 1
        assert children() == set()
    del offloaded
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert len(open_fds()) == len(fds), set(open_fds().values()) - set(fds.values())


def test_closing_twice_is_closing_once(olmoe: tuple[Path, Path]) -> None:
    offloaded = offload(olmoe[1])
    assert not offloaded.is_closed
    offloaded.close()
    offloaded.close()
    assert offloaded.is_closed


def test_a_closed_model_says_so(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1]) as offloaded:
        pass
    with pytest.raises(RuntimeError, match="this offloaded model is closed"):
        generate(offloaded.model)
    with pytest.raises(RuntimeError, match="this offloaded model is closed"):
        offloaded.model(prompt())


def test_closing_while_another_thread_generates_ends_that_with_an_error(olmoe: tuple[Path, Path]) -> None:
    offloaded = offload(olmoe[1], slots=4)
    met: list[BaseException] = []

    def work() -> None:
        try:
            generate(offloaded.model, length=200)
        except RuntimeError as error:
            met.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.2)
    offloaded.close()
    worker.join(timeout=10)
    assert [str(error) for error in met] == ["this offloaded model is closed: call `offload` again to run it"]


def test_the_model_alone_keeps_its_loader(olmoe: tuple[Path, Path]) -> None:
    model, _ = offload(olmoe[1], slots=4)
    gc.collect()
    assert model is not None and len(children()) == 1
    assert generate(model) == stock_tokens(olmoe[0])  # type: ignore[arg-type]
    del model
    gc.collect()
    assert children() == set()


def test_an_error_while_opening_leaves_nothing(
    olmoe: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **words: object) -> None:
        raise ValueError("no stage today")

    monkeypatch.setattr("compute.stage_opening.Stage", fail)
    fds = len(open_fds())
    with pytest.raises(ValueError, match="no stage today"):
        offload(olmoe[1])
    gc.collect()
    assert children() == set()
    assert len(open_fds()) == fds


def run_script(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, from a folder without our packages."""
    program = [sys.executable, "-P", "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(program, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def test_a_process_that_ends_without_closing_leaves_nothing(olmoe: tuple[Path, Path]) -> None:
    done = run_script(
        """
        import sys, psutil
        from compute import offload
        model, tokenizer = offload(sys.argv[1])
        print(*[child.pid for child in psutil.Process().children()])
        """,
        olmoe[1],
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (pid,) = map(int, done.stdout.split())
    assert not psutil.pid_exists(pid)


def test_a_process_that_is_killed_takes_its_loader_with_it(olmoe: tuple[Path, Path]) -> None:
    done = run_script(
        """
        import os, signal, sys, psutil
        from compute import offload
        model, tokenizer = offload(sys.argv[1])
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        olmoe[1],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (pid,) = map(int, done.stdout.split())
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid)


def test_a_fork_cannot_run_the_model_and_does_not_stop_its_parents_loader(olmoe: tuple[Path, Path]) -> None:
    done = run_script(
        """
        import gc, os, sys
        import torch
        from compute import offload
        offloaded = offload(sys.argv[1])
        ids = torch.tensor([[3, 4, 5]])
        before = offloaded.model(ids).logits
        pid = os.fork()
        if pid == 0:
            try:
                offloaded.model(ids)
            except RuntimeError as error:
                print(error, flush=True)
            offloaded.close()
            del offloaded
            gc.collect()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(torch.equal(offloaded.model(ids).logits, before))
        """,
        olmoe[1],
    )
    assert done.returncode == 0, done.stderr
    error, status, is_equal = done.stdout.splitlines()
    assert "cannot run in its fork" in error
    assert (status, is_equal) == ("7", "True")


class Numbers(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> int:
        return number


def test_data_loader_workers_come_and_go_beside_an_offloaded_model(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1], slots=4) as offloaded:
        before = generate(offloaded.model)
        fork = multiprocessing.get_context("fork")
        numbers = torch.utils.data.DataLoader(Numbers(), num_workers=2, multiprocessing_context=fork)
        assert sorted(int(number) for number in numbers) == list(range(8))
        del numbers
        gc.collect()
        assert generate(offloaded.model) == before


# --- another's loader ----------------------------------------------------------------------------


def test_it_attaches_to_a_running_loader_and_learns_the_model_from_it(
    olmoe: tuple[Path, Path], running_loader: OwnedLoader
) -> None:
    with offload(connect=running_loader.endpoint) as offloaded:
        assert generate(offloaded.model) == stock_tokens(olmoe[0])
        assert offloaded.report()["slots"] == 9
        assert "room for 12 experts" in str(offloaded.report()["slots_reason"])
    assert running_loader.is_alive


def test_clients_share_a_loader_one_after_the_other_and_at_once(
    olmoe: tuple[Path, Path], running_loader: OwnedLoader
) -> None:
    expected = stock_tokens(olmoe[0])
    for _ in range(3):
        with offload(olmoe[1], connect=running_loader.endpoint) as offloaded:
            assert generate(offloaded.model) == expected
    endpoint = running_loader.endpoint
    with (
        offload(connect=endpoint, slots=3) as first,
        offload(connect=endpoint, slots=4, arrangement="emulated") as second,
    ):
        assert generate(second.model) == expected
        assert generate(first.model) == expected


def test_a_loader_without_room_says_how_much_it_has(running_loader: OwnedLoader) -> None:
    with (
        offload(connect=running_loader.endpoint),
        pytest.raises(RefusedError, match=r"1 frames asked, 0 of 12 are not promised"),
    ):
        offload(connect=running_loader.endpoint)


def test_a_loader_of_another_store_is_refused(running_loader: OwnedLoader, tmp_path: Path) -> None:
    _, other = make_tiny_store("mixtral", tmp_path)
    with pytest.raises((RefusedError, StoreError), match="store"):
        offload(other, connect=running_loader.endpoint)


def test_nobody_at_the_endpoint_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LoaderLostError, match="no loader answers"):
        offload(connect=tmp_path / "door", timeout=0.5)
    assert time.monotonic() - started < 5


# --- wrong settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"slots": 2}, ValueError, "--slots is 2, but a token of this model uses 3 experts"),
        ({"ram": "10TB"}, MemoryBudgetError, "of RAM asked, .* free: pass a smaller --ram"),
        ({"ram": "100KiB"}, MemoryBudgetError, "at least 4 are needed"),
        ({"ram": "much"}, ValueError, "--ram: 'much' is not a size"),
        ({"vram": "1GiB"}, ValueError, "--vram belongs to the arrangements with a CUDA device"),
        ({"link": "1GB/s"}, ValueError, "--link belongs to --arrangement emulated"),
        ({"link": "fast", "arrangement": "emulated"}, ValueError, "--link: 'fast' is not a rate"),
        ({"predictor": "none", "lookahead": 1}, ValueError, "--lookahead 1 needs a predictor"),
        ({"predictor": "oracle"}, ValueError, "'oracle'; allowed: gate, none"),
        ({"lookahead": -1}, ValueError, "--lookahead is -1"),
        ({"policy": "newest"}, ValueError, 'no policy is called "newest"; known are .*lru'),
        ({"policy": "belady"}, ValueError, "must know the future"),
        ({"arrangement": "pinned"}, ValueError, "use direct or emulated"),
        ({"arrangement": "sideways"}, ValueError, "allowed: auto, direct, emulated"),
        ({"device": "cuda"}, ValueError, "use auto or cpu"),
        ({"dtype": "int3"}, ValueError, "use auto, bfloat16, float16, float32"),
        ({"threads": 0}, ValueError, "--threads is 0"),
        ({"bits": 4}, ValueError, "--bits is 4, but the store .* was converted with none"),
        ({"bits": 5}, ValueError, "--bits is '5'; allowed: 8, 4, 3, 2, none"),
        ({"timeout": 0}, ValueError, "a timeout of 0"),
        ({"ram": "1GiB", "connect": "/nowhere/door"}, ValueError, "with --connect it has its own"),
        ({"timeline": "/nowhere/trace.json"}, ValueError, "cannot be written"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_answered_with_a_sentence(
    settings: dict[str, object], kind: type[Exception], sentence: str, olmoe: tuple[Path, Path]
) -> None:
    with pytest.raises(kind, match=sentence):
        offload(olmoe[1], **settings)  # type: ignore[arg-type]
    assert children() == set()


def test_a_store_of_another_group_is_refused(store_4bit: Path) -> None:
    with pytest.raises(ValueError, match=r"--group is 128, but the store .* was converted with 64"):
        offload(store_4bit, group=128)
    with pytest.raises(ValueError, match=r"--fast is yes, but the store .* was converted with no"):
        offload(store_4bit, fast=True)


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no model is named"):
        offload()


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(ModelError, match="there is no folder 'no-such/model'"):
        offload("no-such/model")


def test_a_truncated_store_is_refused(olmoe: tuple[Path, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(olmoe[1], store)
    shard = next(store.glob("experts*.safetensors"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 4096)
    with pytest.raises(StoreError, match="truncated"):
        offload(store)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(SidestageError, match="experts"):
        offload(tmp_path, bits="none")


def test_a_handle_is_an_offloaded(olmoe: tuple[Path, Path]) -> None:
    with offload(olmoe[1]) as offloaded:
        assert isinstance(offloaded, Offloaded)
