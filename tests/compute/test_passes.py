"""The turnstile: one pass at a time, and what a pass is called."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
import transformers

from compute.passes import Passes, describe_pass

IDS = torch.ones(2, 5, dtype=torch.int64)


def cache_after(num_tokens: int) -> transformers.DynamicCache:
    cache = transformers.DynamicCache()
    if num_tokens:
        states = torch.zeros(1, 1, num_tokens, 4)
        cache.update(states, states, 0)
    return cache


def test_tokens_of_the_whole_batch_are_counted() -> None:
    assert describe_pass([IDS], {}) == (10, True)
    assert describe_pass([], {"input_ids": IDS}) == (10, True)
    assert describe_pass([], {"inputs_embeds": torch.zeros(2, 5, 16)}) == (10, True)


def test_a_sequence_begins_with_an_empty_cache() -> None:
    assert describe_pass([], {"input_ids": IDS, "past_key_values": cache_after(0)}) == (10, True)


def test_a_sequence_goes_on_with_a_filled_cache() -> None:
    assert describe_pass([], {"input_ids": IDS[:, :1], "past_key_values": cache_after(7)}) == (2, False)


def test_a_cache_without_attention_layers_is_understood() -> None:
    class Recurrent:
        has_previous_state = False

    cache = transformers.DynamicCache()
    cache.layers = [Recurrent()]
    assert describe_pass([], {"input_ids": IDS, "past_key_values": cache})[1]
    Recurrent.has_previous_state = True
    assert not describe_pass([], {"input_ids": IDS, "past_key_values": cache})[1]


class Asked(transformers.cache_utils.StaticLayer):
    """A static layer that notes when somebody wants its number of tokens from the device."""

    num_asked = 0

    def get_seq_length(self) -> torch.Tensor:
        self.num_asked += 1
        return super().get_seq_length()  # type: ignore[no-any-return]


def static_cache_after(num_tokens: int) -> transformers.Cache:
    layer = Asked(max_cache_len=16)
    if num_tokens:
        states = torch.zeros(2, 1, num_tokens, 4)
        layer.update(states, states)
    return transformers.Cache(layers=[layer])


def test_a_new_token_in_a_static_cache_goes_on_and_the_device_is_not_asked() -> None:
    cache = static_cache_after(7)
    assert describe_pass([], {"input_ids": IDS[:, :1], "past_key_values": cache}) == (2, False)
    embeds = {"inputs_embeds": torch.zeros(2, 1, 16), "past_key_values": cache}
    assert describe_pass([], embeds) == (2, False)
    assert cache.layers[0].num_asked == 0


def test_a_prompt_of_one_token_begins_in_a_fresh_static_cache() -> None:
    cache = static_cache_after(0)
    assert describe_pass([], {"input_ids": IDS[:, :1], "past_key_values": cache}) == (2, True)


def test_a_prompt_asks_a_static_cache_whether_it_holds_tokens() -> None:
    assert describe_pass([], {"input_ids": IDS, "past_key_values": static_cache_after(7)}) == (10, False)
    cache = static_cache_after(7)
    cache.reset()
    assert describe_pass([], {"input_ids": IDS, "past_key_values": cache}) == (10, True)


class Model:
    """What `guard` needs of a model."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def forward(self, input_ids: torch.Tensor) -> str:
        """Computes."""
        self.work()
        return "logits"

    def generate(self, input_ids: torch.Tensor) -> str:
        return "tokens after " + self.forward(input_ids)


def guarded(passes: Passes, work: Callable[[], None] = lambda: None) -> Model:
    model = Model(work)
    passes.guard(model)  # type: ignore[arg-type]
    return model


def test_every_forward_is_announced_and_generate_is_not() -> None:
    begun: list[tuple[int, bool]] = []
    model = guarded(Passes(lambda num_tokens, is_new: begun.append((num_tokens, is_new))))
    assert model.generate(IDS) == "tokens after logits"
    assert model.forward(input_ids=IDS) == "logits"
    assert begun == [(10, True), (10, True)]


def test_a_guarded_method_looks_like_itself() -> None:
    import inspect

    model = guarded(Passes(lambda *_: None))
    assert list(inspect.signature(model.forward).parameters) == ["input_ids"]
    assert model.forward.__doc__ == "Computes."


def test_threads_go_through_one_by_one() -> None:
    inside: list[int] = []

    def work() -> None:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.01)
        inside.pop()

    model = guarded(Passes(lambda *_: None), work)
    threads = [threading.Thread(target=model.generate, args=(IDS,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []


def test_an_error_in_a_pass_lets_the_next_one_in() -> None:
    def fail() -> None:
        raise ArithmeticError

    model = guarded(Passes(lambda *_: None), fail)
    with pytest.raises(ArithmeticError):
        model.generate(IDS)
    model.work = lambda: None
    worker = threading.Thread(target=model.generate, args=(IDS,), daemon=True)
    worker.start()
    worker.join(timeout=5)
    assert not worker.is_alive()


def test_close_waits_for_the_pass_under_way_but_not_for_ever() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(10)

    passes = Passes(lambda *_: None)
    model = guarded(passes, work)
    worker = threading.Thread(target=model.forward, args=(IDS,))
    worker.start()
    entered.wait(10)
    started = time.monotonic()
    passes.close(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - started < 5
    leave.set()
    worker.join()
    with pytest.raises(RuntimeError, match="this offloaded model is closed"):
        model.forward(IDS)
