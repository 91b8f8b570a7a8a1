"""What of a conversation is read again, and what is not."""

import torch
from transformers import DynamicCache, PreTrainedConfig

from launch.chat.recall import Recall


def _read(num_tokens: int, cache: DynamicCache | None = None) -> DynamicCache:
    """A cache that has read `num_tokens` in each of two layers."""
    cache = cache or DynamicCache()
    states = torch.zeros(1, 1, num_tokens, 4)
    for layer in range(2):
        cache.update(states, states, layer)
    return cache


def test_what_was_read_is_there_for_what_follows() -> None:
    recall = Recall()
    recall.keep(_read(4), [1, 2, 3, 4, 5])  # the last token was said, not read
    cache = recall.take([1, 2, 3, 4, 5, 6, 7])
    assert cache is not None
    assert cache.get_seq_length() == 4


def test_what_has_changed_is_taken_back() -> None:
    recall = Recall()
    recall.keep(_read(4), [1, 2, 3, 4])
    cache = recall.take([1, 2, 9, 4, 5])
    assert cache is not None
    assert cache.get_seq_length() == 2


def test_the_last_token_is_always_read() -> None:
    recall = Recall()
    recall.keep(_read(4), [1, 2, 3, 4])
    cache = recall.take([1, 2, 3])
    assert cache is not None
    assert cache.get_seq_length() == 2


def test_another_beginning_is_read_from_the_start() -> None:
    recall = Recall()
    recall.keep(_read(4), [1, 2, 3, 4])
    assert recall.take([9, 2, 3, 4]) is None


def test_a_cache_is_lent_once_and_forgotten_when_told_to() -> None:
    recall = Recall()
    recall.keep(_read(4), [1, 2, 3, 4])
    assert recall.take([1, 2, 3, 4, 5]) is not None
    assert recall.take([1, 2, 3, 4, 5]) is None
    recall.keep(_read(4), [1, 2, 3, 4])
    recall.forget()
    assert recall.take([1, 2, 3, 4, 5]) is None


def test_a_window_is_not_taken_back_but_goes_on() -> None:
    config = PreTrainedConfig(num_hidden_layers=2, sliding_window=2, layer_types=["sliding_attention"] * 2)
    recall = Recall()
    recall.keep(_read(4, DynamicCache(config=config)), [1, 2, 3, 4])
    assert recall.take([1, 2, 9]) is None
    recall.keep(_read(4, DynamicCache(config=config)), [1, 2, 3, 4])
    assert recall.take([1, 2, 3, 4, 5]) is not None
