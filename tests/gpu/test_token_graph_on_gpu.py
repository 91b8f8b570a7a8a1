"""Recorded tokens on a CUDA device: real graphs, the same bits, and what a failed capture leaves behind."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from support.tiny_models import random_model, tiny_config
from support.tiny_stores import prompt
from support.token_play import (
    GREEDY,
    NUM_FIRST,
    NUM_NEW,
    SAMPLED,
    STATIC,
    Model,
    Playing,
    all_equal,
    assert_same,
    generate,
    launched,
    own_loop,
    padded,
    recorded,
    static_cache,
    tiny,
)

from compute.beside.token_recorder import CudaRecorder
from compute.passes import Passes
from compute.transports.cuda_driver import CudaDriver

pytestmark = pytest.mark.gpu


@pytest.fixture
def olmoe(there_is_a_device: None) -> Model:
    return tiny("olmoe", "cuda")


@pytest.fixture
def recorder(there_is_a_device: None) -> CudaRecorder:
    return CudaRecorder(torch.device("cuda"))


def token_of(model: Model) -> torch.Tensor:
    return prompt(batch=1, length=1).to(model.device)


# --- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", STATIC)
def test_replayed_logits_are_launched_logits_bit_for_bit(arch: str, recorder: CudaRecorder) -> None:
    model = tiny(arch, "cuda")
    calls = [(prompt(batch=1), GREEDY), (prompt(batch=1), SAMPLED), (padded(), GREEDY), (padded(), SAMPLED)]
    expected = [launched(model, given, **way) for given, way in calls]
    with recorded(model, recorder) as playing:
        for (given, way), launched_before in zip(calls, expected, strict=True):
            assert_same(generate(model, given, **way), launched_before)
    assert playing.graphs.notices == []
    assert playing.graphs.num_replayed == len(calls) * (NUM_NEW - 1) - 2 * NUM_FIRST


def test_the_shipped_model_gives_its_tokens(shipped_model: Path, recorder: CudaRecorder) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        shipped_model, dtype="auto", experts_implementation="batched_mm"
    ).to("cuda")
    ids = torch.tensor([[5, 17, 99, 3, 42, 7, 60, 12, 90, 41]])
    expected = launched(model, ids, max_new_tokens=64)
    with recorded(model, recorder) as playing:
        assert_same(generate(model, ids, max_new_tokens=64), expected)
    assert playing.graphs.num_replayed == 63 - NUM_FIRST


def test_a_callers_own_loop_keeps_its_logits(olmoe: Model, recorder: CudaRecorder) -> None:
    expected = own_loop(olmoe, static_cache(olmoe))
    with recorded(olmoe, recorder) as playing:
        assert all_equal(own_loop(olmoe, static_cache(olmoe)), expected)
        assert playing.graphs.num_replayed == NUM_NEW - NUM_FIRST


def test_two_caches_in_turn_do_not_disturb_each_other(olmoe: Model, recorder: CudaRecorder) -> None:
    """Recordings share their memory."""

    def in_turn() -> list[torch.Tensor]:
        caches = [static_cache(olmoe), static_cache(olmoe, max_cache_len=80)]
        ids = prompt(batch=1, length=12).to("cuda")
        with torch.no_grad():
            return [
                olmoe(ids[:, i : i + 1] + number, past_key_values=cache).logits
                for i in range(12)
                for number, cache in enumerate(caches)
            ]

    expected = in_turn()
    with recorded(olmoe, recorder) as playing:
        assert all_equal(in_turn(), expected)
        assert playing.graphs.num_recorded == 2


def test_streams_and_threads_of_the_callers(olmoe: Model, recorder: CudaRecorder) -> None:
    """A conversation goes on in other threads, each with a stream of its own."""

    def converse() -> list[torch.Tensor]:
        cache, ids, logits = static_cache(olmoe), prompt(batch=1, length=9).to("cuda"), []
        before = torch.cuda.current_stream()

        def step(number: int) -> None:
            nonlocal before
            stream = torch.cuda.Stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream), torch.no_grad():
                logits.append(olmoe(ids[:, number : number + 1], past_key_values=cache).logits)
            before = stream

        for number in range(9):
            thread = threading.Thread(target=step, args=(number,))
            thread.start()
            thread.join()
        torch.cuda.synchronize()
        return logits

    expected = converse()
    with recorded(olmoe, recorder) as playing:
        assert all_equal(converse(), expected)
        assert playing.graphs.num_replayed > 0


def test_two_streams_that_do_not_wait_for_each_other(olmoe: Model, recorder: CudaRecorder) -> None:
    """They may: their caches are different ones. Only the recordings' memory is the same."""

    def both() -> list[torch.Tensor]:
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        caches = [static_cache(olmoe), static_cache(olmoe)]
        ids, logits = prompt(batch=1, length=16).to("cuda"), []
        torch.cuda.synchronize()
        for i in range(16):
            for number, (stream, cache) in enumerate(zip(streams, caches, strict=True)):
                with torch.cuda.stream(stream), torch.no_grad():
                    torch.cuda._sleep(200_000 * (1 - number))
                    logits.append(olmoe(ids[:, i : i + 1] + number, past_key_values=cache).logits)
        torch.cuda.synchronize()
        return logits

    expected = both()
    with recorded(olmoe, recorder):
        assert all_equal(both(), expected)


def test_a_replayed_token_waits_for_nothing(olmoe: Model, recorder: CudaRecorder) -> None:
    """Turnstile, eligibility, copies, replay and answer: the host is not held up by the device."""
    with recorded(olmoe, recorder) as playing:
        Passes(lambda *_: None).guard(olmoe)
        cache, token = static_cache(olmoe), token_of(olmoe)
        with torch.no_grad():
            for _ in range(NUM_FIRST + 2):  # the first of them makes the cache's tensors
                olmoe(token, past_key_values=cache)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(5):
                    olmoe(token, past_key_values=cache)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert playing.graphs.num_replayed == 6


# --- beside a busy link -----------------------------------------------------------------------


@contextmanager
def busy_link(driver: CudaDriver) -> Iterator[Callable[[], bool]]:
    """A thread that copies and asks all the time; gives whether all that it copied is right so far."""
    num_bytes = 4 * 2**20
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8).pin_memory()
    target = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    ended, failures, copied = threading.Event(), list[BaseException](), [0]

    def keep_busy() -> None:
        try:
            while not ended.is_set():
                driver.copy(target.data_ptr(), source.data_ptr(), num_bytes)
                mark = driver.mark_copies()
                while not mark.is_done():
                    pass
                copied[0] += 1
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        yield lambda: not failures and copied[0] > 0
    finally:
        ended.set()
        thread.join(timeout=30)
    assert torch.equal(target.cpu(), source.cpu())


def test_a_link_that_copies_and_asks_meanwhile_is_not_disturbed(
    olmoe: Model, recorder: CudaRecorder, driver: CudaDriver
) -> None:
    expected = launched(olmoe, prompt(batch=1))
    with busy_link(driver) as is_well, recorded(olmoe, recorder) as playing:
        for _ in range(10):
            assert_same(generate(olmoe, prompt(batch=1)), expected)
        assert is_well()
        assert playing.graphs.num_recorded == 10
        assert playing.graphs.notices == []


# --- how long a recording lives ---------------------------------------------------------------


def test_recordings_that_are_dropped_give_their_memory_to_the_next(
    olmoe: Model, recorder: CudaRecorder
) -> None:
    """Also when none is left in between: the pool outlives them."""
    taken = []
    with recorded(olmoe, recorder) as playing:
        for _ in range(12):
            generate(olmoe, prompt(batch=1))
            gc.collect()
            torch.cuda.synchronize()
            taken.append(torch.cuda.memory_reserved())
            assert playing.graphs.num_held == 0
        assert playing.graphs.num_recorded == 12
    assert taken[-1] <= taken[3]


def test_closing_frees_what_recordings_held(olmoe: Model) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with recorded(olmoe, CudaRecorder(torch.device("cuda"))) as playing:
        kept = generate(olmoe, prompt(batch=1))
        assert playing.graphs.num_held == 1
    del kept, playing
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 64 * 2**20, "but for cuBLAS's workspace"


# --- a capture that fails ---------------------------------------------------------------------


def asks(device: torch.device) -> int:
    return int(torch.ones(3, device=device).sum().item())


def finds(device: torch.device) -> torch.Tensor:
    return torch.ones(3, device=device).nonzero()


def brings_home(device: torch.device) -> torch.Tensor:
    return torch.ones(3, device=device).cpu()


def sends(device: torch.device) -> torch.Tensor:
    return torch.tensor([1, 2, 3], device=device)


def waits(device: torch.device) -> None:
    torch.ones(3, device=device)
    torch.cuda.current_stream().synchronize()


ASKING = [asks, finds, brings_home, sends, waits]


@pytest.mark.parametrize("work", ASKING)
def test_a_rehearsal_hears_where_the_host_waits(
    recorder: CudaRecorder, work: Callable[[torch.device], object]
) -> None:
    _, objection = recorder.rehearse(lambda: work(recorder.device))
    assert objection.startswith("the model waits for the device in "), objection
    assert recorder.rehearse(lambda: torch.ones(3, device="cuda") * 2)[1] == ""
    assert torch.cuda.get_sync_debug_mode() == 0


def refuses(device: torch.device) -> None:
    torch.rand(3, device=device)
    raise RuntimeError("this work goes no further")


@pytest.mark.parametrize("work", [*ASKING, refuses])
def test_a_failed_capture_leaves_a_device_that_works(
    recorder: CudaRecorder, work: Callable[[torch.device], object]
) -> None:
    """Without the rehearsal: stream, allocator, pool and random numbers are as they were."""
    torch.manual_seed(3)
    expected = torch.rand(5, device="cuda")
    torch.manual_seed(3)
    with pytest.raises(RuntimeError):
        recorder.record(lambda: work(recorder.device))
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.equal(torch.rand(5, device="cuda"), expected)
    assert recorder._pool.use_count() == 1
    values = torch.arange(4.0, device="cuda")
    recording = recorder.record(lambda: values * 2)
    assert recording.replay().tolist() == [0, 2, 4, 6]
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


def test_a_model_that_waits_is_launched_and_says_where(recorder: CudaRecorder) -> None:
    model = random_model(tiny_config("olmoe")).to("cuda")
    model.set_experts_implementation("eager")
    expected = launched(model, prompt(batch=1))
    with recorded(model, recorder) as playing:
        assert_same(generate(model, prompt(batch=1)), expected)
        assert_notice(playing, "the model waits for the device in ")


def test_a_capture_that_fails_in_the_middle_of_a_model_changes_no_token(
    olmoe: Model, recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the capture sees: the rehearsal said nothing."""
    expected = launched(olmoe, prompt(batch=1), **SAMPLED)
    monkeypatch.setattr(recorder, "rehearse", lambda work: (work(), ""))
    norm = olmoe.model.norm
    inner = norm.forward

    def asking(hidden: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            hidden.sum().item()
        found: torch.Tensor = inner(hidden)
        return found

    monkeypatch.setattr(norm, "forward", asking)
    with recorded(olmoe, recorder) as playing:
        for _ in range(2):
            assert_same(generate(olmoe, prompt(batch=1), **SAMPLED), expected)
        assert_notice(playing, "capturing")


def assert_notice(playing: Playing, text: str) -> None:
    assert playing.graphs.num_recorded == 0
    (notice,) = playing.graphs.notices
    assert text in notice
