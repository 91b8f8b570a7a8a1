"""Recorded tokens: the same as launched ones, over architectures, caches and ways to call."""

import gc
import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.tiny_models import random_model, tiny_config
from support.tiny_stores import make_tiny_store, prompt
from support.token_play import (
    GREEDY,
    NUM_FIRST,
    NUM_NEW,
    SAMPLED,
    STATIC,
    FakeRunner,
    Model,
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
from support.token_tape import Rerun, Tape
from transformers import DynamicCache, StaticCache

from compute import offload
from compute.beside.static_generation import prepare
from compute.beside.token_call import Call
from compute.beside.token_graph import TokenGraphs
from compute.passes import Passes


@pytest.fixture(scope="module")
def olmoe() -> Model:
    return tiny("olmoe")


# --- the same tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("arch", STATIC)
def test_recorded_tokens_are_launched_tokens(arch: str) -> None:
    model = tiny(arch)
    calls = [(prompt(batch=1), GREEDY), (prompt(batch=1), SAMPLED), (padded(), GREEDY), (padded(), SAMPLED)]
    expected = [launched(model, given, **way) for given, way in calls]
    with recorded(model) as playing:
        for (given, way), launched_before in zip(calls, expected, strict=True):
            assert_same(generate(model, given, **way), launched_before)
    num_steps = NUM_NEW - 1
    assert playing.recorder.num_replayed == len(calls) * num_steps - 2 * NUM_FIRST
    assert playing.graphs.notices == []


def test_the_shipped_model_gives_its_tokens(shipped_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        shipped_model, dtype="auto", experts_implementation="batched_mm"
    )
    ids = torch.tensor([[5, 17, 99, 3, 42, 7, 60, 12, 90, 41]])
    expected = launched(model, ids, max_new_tokens=24)
    with recorded(model) as playing:
        assert_same(generate(model, ids, max_new_tokens=24), expected)
    assert playing.recorder.num_replayed == 23 - NUM_FIRST


def test_the_next_generate_is_recorded_from_its_first_step_on(olmoe: Model) -> None:
    others = prompt(batch=1).flip(1)
    expected = launched(olmoe, prompt(batch=1)), launched(olmoe, others)
    with recorded(olmoe) as playing:
        assert_same(generate(olmoe, prompt(batch=1)), expected[0])
        before = playing.recorder.num_replayed
        assert_same(generate(olmoe, others), expected[1])
        assert playing.recorder.num_replayed - before == NUM_NEW - 1
        assert playing.recorder.num_recorded == playing.graphs.num_recorded == 2


def test_a_conversation_goes_on_in_the_callers_cache_and_its_recording(olmoe: Model) -> None:
    first, more = prompt(batch=1), prompt(batch=1, length=4).flip(1)

    def converse() -> list[Any]:
        cache = static_cache(olmoe)
        said = generate(olmoe, first, past_key_values=cache, disable_compile=True)
        told = torch.cat([said.sequences, more], dim=1)
        return [said, generate(olmoe, told, past_key_values=cache, disable_compile=True)]

    expected = converse()
    with recorded(olmoe) as playing:
        for output, launched_before in zip(converse(), expected, strict=True):
            assert_same(output, launched_before)
        assert playing.recorder.num_recorded == 1
        assert playing.recorder.num_replayed == 2 * (NUM_NEW - 1) - NUM_FIRST


def test_a_prompt_of_a_single_token(olmoe: Model) -> None:
    token = prompt(batch=1, length=1)
    expected = launched(olmoe, token)
    with recorded(olmoe) as playing:
        assert_same(generate(olmoe, token), expected)
        cache = static_cache(olmoe)
        generate(olmoe, prompt(batch=1), past_key_values=cache)
        cache.reset()
        output = generate(olmoe, token, past_key_values=cache)
        assert output.sequences.tolist() == expected.sequences.tolist(), "a cache that was reset is empty"
        assert playing.graphs.num_recorded == 2


def test_a_callers_own_loop_and_logits_that_were_answered_stay_as_they_were(olmoe: Model) -> None:
    expected = own_loop(olmoe, static_cache(olmoe))
    with recorded(olmoe) as playing:
        kept = own_loop(olmoe, static_cache(olmoe))
        assert all_equal(kept, expected)
        assert playing.recorder.num_replayed == NUM_NEW - NUM_FIRST


def test_calls_of_two_kinds_in_one_cache_have_a_recording_each(olmoe: Model) -> None:
    """With a mask that hides the first token, and without one."""

    def in_turn() -> list[torch.Tensor]:
        cache, ids = static_cache(olmoe), prompt(batch=1, length=12)
        masks = [torch.arange(48).view(1, 1, 1, 48) <= i for i in range(12)]
        with torch.no_grad():
            return [
                olmoe(
                    ids[:, i : i + 1],
                    past_key_values=cache,
                    attention_mask=masks[i] & (torch.arange(48) > 0) if i % 2 else None,
                ).logits
                for i in range(12)
            ]

    expected = in_turn()
    with recorded(olmoe) as playing:
        assert all_equal(in_turn(), expected)
        assert playing.recorder.num_recorded == 2
        assert playing.recorder.num_replayed == 11 - 2 * NUM_FIRST


def test_what_is_no_tensor_belongs_to_the_kind_of_a_call(olmoe: Model) -> None:
    cache, token = static_cache(olmoe), prompt(batch=1, length=1)
    with recorded(olmoe) as playing, torch.no_grad():
        for _ in range(2 + NUM_FIRST):
            olmoe(token, past_key_values=cache)
        assert playing.recorder.num_replayed == 1
        assert isinstance(olmoe(token, past_key_values=cache, return_dict=False), tuple)
        olmoe.train()
        olmoe(token, past_key_values=cache)
        olmoe.eval()
        assert playing.recorder.num_replayed == 1


def test_a_cache_of_another_size_is_another_kind(olmoe: Model) -> None:
    """Kernels may be chosen by it: they are not met for the first time in a recording."""
    token = prompt(batch=1, length=1)
    with recorded(olmoe) as playing, torch.no_grad():
        for max_cache_len in (16, 32):
            cache = static_cache(olmoe, max_cache_len)
            for number in range(2 + NUM_FIRST):
                assert playing.graphs.num_held == 0, f"call {number}"
                olmoe(token, past_key_values=cache)
            assert playing.graphs.num_held == 1
            del cache


class Lazy(torch.nn.Module):
    """A part of a model that makes its state with the first token, and asks for a value then."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.factor: float | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.factor is None and hidden.shape[1] == 1:
            self.factor = hidden.new_tensor(1.5).item()
        scaled: torch.Tensor = self.inner(hidden) * (self.factor or 1.5)
        return scaled


def test_what_a_model_does_only_once_is_not_held_against_it() -> None:
    model = tiny("olmoe")
    model.model.norm = Lazy(model.model.norm)
    with recorded(model) as playing:
        found = generate(model, prompt(batch=1))
        assert playing.graphs.notices == []
        assert playing.recorder.num_recorded == 1
    assert_same(launched(model, prompt(batch=1)), found)


def test_embeddings_instead_of_ids(olmoe: Model) -> None:
    def loop() -> list[torch.Tensor]:
        cache, embed = static_cache(olmoe), olmoe.get_input_embeddings()
        ids = prompt(batch=2)
        with torch.no_grad():
            olmoe(inputs_embeds=embed(ids), past_key_values=cache)
            steps = [olmoe(inputs_embeds=embed(ids[:, i : i + 1]), past_key_values=cache) for i in range(5)]
        return [step.logits for step in steps]

    expected = loop()
    with recorded(olmoe) as playing:
        assert all_equal(loop(), expected)
        assert playing.recorder.num_replayed == 5 - NUM_FIRST


def test_inference_mode_and_no_grad_share_a_recording(olmoe: Model) -> None:
    with recorded(olmoe) as playing:
        cache = static_cache(olmoe)
        token = prompt(batch=1, length=1)
        with torch.no_grad():
            olmoe(prompt(batch=1), past_key_values=cache)
        for number in range(6):
            with torch.inference_mode(number % 2 == 0), torch.no_grad():
                assert olmoe(token, past_key_values=cache).logits.isfinite().all()
        assert playing.recorder.num_recorded == 1


def test_the_answer_is_the_models_own_with_the_callers_cache(olmoe: Model) -> None:
    cache, token = static_cache(olmoe), prompt(batch=1, length=1)
    with recorded(olmoe) as playing, torch.no_grad():
        answers = [olmoe(token, past_key_values=cache) for _ in range(5)]
        assert playing.recorder.num_replayed > 0
        assert {type(answer) for answer in answers} == {type(answers[0])}
        assert all(list(answer) == ["logits", "past_key_values"] for answer in answers)
        assert answers[-1].past_key_values is cache
        assert int(cache.get_seq_length()) == 5


def test_an_offloaded_model_gives_its_tokens(tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    with offload(store, slots=4) as offloaded:
        expected = launched_through(offloaded.model)
        rerun, runner = Rerun(), FakeRunner()
        graphs = TokenGraphs(rerun, runner, offloaded.stage.undivided)
        graphs.take_over(offloaded.model)
        assert launched_through(offloaded.model) == expected
        assert rerun.num_replayed == NUM_NEW - 1 - NUM_FIRST
        graphs.close()


def launched_through(model: Model) -> list[list[int]]:
    ids: list[list[int]] = generate(model, prompt(), cache_implementation="static").sequences.tolist()
    return ids


# --- what is not recorded ---------------------------------------------------------------------


def with_hidden_states(model: Model) -> list[torch.Tensor]:
    return own_loop(model, static_cache(model), output_hidden_states=True)


def as_tuples(model: Model) -> list[torch.Tensor]:
    cache, ids = static_cache(model), prompt(batch=1)
    with torch.no_grad():
        return [model(ids[:, :1], past_key_values=cache, return_dict=False)[0] for _ in range(6)]


def with_a_gradient(model: Model) -> list[torch.Tensor]:
    cache, ids = static_cache(model), prompt(batch=1)
    steps = []
    for _ in range(5):
        steps.append(model(ids[:, :1], past_key_values=cache).logits.detach())
        cache.layers[0].keys.detach_(), cache.layers[1].keys.detach_()
        cache.layers[0].values.detach_(), cache.layers[1].values.detach_()
    return steps


def two_at_once(model: Model) -> list[torch.Tensor]:
    cache, ids = static_cache(model), prompt(batch=1)
    with torch.no_grad():
        return [model(ids[:, :2], past_key_values=cache).logits for _ in range(6)]


def nine_sequences(model: Model) -> list[torch.Tensor]:
    cache, ids = static_cache(model), prompt(batch=9)
    with torch.no_grad():
        return [model(ids[:, :1], past_key_values=cache).logits for _ in range(6)]


def with_an_object(model: Model) -> list[torch.Tensor]:
    """Nobody knows what is in a list at the next token."""
    return own_loop(model, static_cache(model), anything=["at all"])


def a_growing_cache(model: Model) -> list[torch.Tensor]:
    return own_loop(model, DynamicCache(config=model.config))


def a_growing_mask(model: Model) -> list[torch.Tensor]:
    """Two dimensions: another shape with every token."""
    cache, ids = static_cache(model), prompt(batch=1)
    with torch.no_grad():
        return [
            model(
                ids[:, i : i + 1],
                past_key_values=cache,
                attention_mask=torch.ones(1, i + 1, dtype=torch.int64),
            ).logits
            for i in range(6)
        ]


@pytest.mark.parametrize(
    "steps",
    [
        with_hidden_states,
        as_tuples,
        with_a_gradient,
        two_at_once,
        nine_sequences,
        with_an_object,
        a_growing_cache,
        a_growing_mask,
    ],
)
def test_what_cannot_be_recorded_runs_as_before(
    olmoe: Model, steps: Callable[[Model], list[torch.Tensor]]
) -> None:
    expected = steps(olmoe)
    with recorded(olmoe) as playing:
        assert all_equal(steps(olmoe), expected)
        assert playing.recorder.num_recorded == 0
        assert playing.runner.told == []
        assert playing.graphs.notices == []


def test_under_autocast_nothing_is_recorded(olmoe: Model) -> None:
    """It keeps weights that it has cast, for as long as it lasts."""
    cache, device = static_cache(olmoe), torch.device("cpu")
    given = {"input_ids": prompt(batch=2, length=1), "past_key_values": cache}
    with torch.no_grad():
        olmoe(**given)
        assert Call.of([], [], given, device, False)
        with torch.autocast("cpu", torch.bfloat16):
            assert Call.of([], [], given, device, False) is None


def test_a_sliding_window_counts_in_python_and_is_not_recorded() -> None:
    model = tiny("gpt_oss")
    expected = own_loop(model, static_cache(model))
    with recorded(model) as playing:
        assert all_equal(own_loop(model, static_cache(model)), expected)
        assert playing.recorder.num_recorded == 0
        cache = generate(model, prompt(batch=1)).past_key_values
        assert isinstance(cache, DynamicCache), "generate is left with its own cache"


def test_a_cache_whose_tensors_are_replaced_is_recorded_once_at_most(olmoe: Model) -> None:
    beams = {"num_beams": 2, "cache_implementation": "static", "disable_compile": True}
    expected = [generate(olmoe, prompt(batch=1), **beams).sequences.tolist() for _ in range(2)]
    with recorded(olmoe) as playing:
        found = [generate(olmoe, prompt(batch=1), **beams).sequences.tolist() for _ in range(2)]
        assert found == expected
        assert playing.recorder.num_recorded <= 2, "one for each cache"
        assert playing.graphs.num_held == 0


# --- a capture that fails ---------------------------------------------------------------------


def test_a_model_that_waits_for_the_device_is_launched_and_says_so_once(caplog: Any) -> None:
    model = random_model(tiny_config("olmoe"))
    model.set_experts_implementation("eager")  # asks which experts were hit
    expected = launched(model, prompt(batch=1))
    with recorded(model) as playing:
        for _ in range(2):
            assert_same(generate(model, prompt(batch=1)), expected)
    assert playing.recorder.num_recorded == 0
    (notice,) = playing.graphs.notices
    assert notice.startswith(
        "no CUDA graph is made of a token's forward, its kernels are launched one by one: "
    )
    assert "the model waits for" in notice
    assert [record.message for record in caplog.records if record.name == "sidestage"].count(notice) == 1


class Refusing(Tape):
    """Runs the work half, and fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error

    def record(self, work: Callable[[], dict[str, torch.Tensor]]) -> Any:
        if self.error:
            error, self.error = self.error, None
            raise error
        return super().record(work)


def test_a_failed_capture_falls_back_and_leaves_nothing_half_recorded(olmoe: Model) -> None:
    expected = launched(olmoe, prompt(batch=1))
    with recorded(olmoe, Refusing(RuntimeError("operation not permitted\nby CUDA"))) as playing:
        for _ in range(2):
            assert_same(generate(olmoe, prompt(batch=1)), expected)
        assert playing.recorder.num_recorded == 0
        assert playing.graphs.num_held == 0
        assert playing.runner.told == ["recording", "recorded"]
        (notice,) = playing.graphs.notices
        assert notice.endswith("one by one: operation not permitted")


def test_ctrl_c_during_a_capture_goes_through_and_the_next_one_is_made(olmoe: Model) -> None:
    expected = launched(olmoe, prompt(batch=1))
    with recorded(olmoe, Refusing(KeyboardInterrupt())) as playing:
        with pytest.raises(KeyboardInterrupt):
            generate(olmoe, prompt(batch=1))
        assert_same(generate(olmoe, prompt(batch=1)), expected)
        assert playing.recorder.num_recorded == 1
        assert playing.graphs.notices == []


class Keeping(torch.nn.Module):
    """A part of a model with a tensor of its own, which a prompt, or every forward, replaces."""

    def __init__(self, inner: torch.nn.Module, every_time: bool) -> None:
        super().__init__()
        self.inner = inner
        self.every_time = every_time
        self.kept = torch.zeros(())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.every_time:
            self.kept = self.kept + 1
        elif hidden.shape[1] > 1:
            self.kept = hidden.mean()
        return self.inner(hidden) + self.kept


@pytest.mark.parametrize("every_time", [False, True])
def test_a_tensor_that_the_model_replaces_is_not_the_recorded_one(every_time: bool) -> None:
    model = tiny("olmoe")
    keeping = Keeping(model.model.norm, every_time)
    model.model.norm = keeping

    def twice() -> list[torch.Tensor]:
        cache = static_cache(model)
        keeping.kept = torch.zeros(())
        first = own_loop(model, cache)
        cache.reset()
        return first + own_loop(model, cache)

    expected = twice()
    with recorded(model) as playing:
        assert all_equal(twice(), expected)
        assert playing.recorder.num_recorded == (1 if every_time else 2)
        assert ("keeps a tensor (kept)" in "".join(playing.graphs.notices)) == every_time


# --- how long a recording lives ---------------------------------------------------------------


def test_a_recording_goes_with_its_cache(olmoe: Model) -> None:
    with recorded(olmoe) as playing:
        output = generate(olmoe, prompt(batch=1))
        keys = weakref.ref(output.past_key_values.layers[0].keys)
        assert playing.graphs.num_held == 1
        del output
        assert playing.graphs.num_held == 0
        assert keys() is None, "its memory too"


def test_recordings_are_bounded_and_the_one_that_was_not_used_goes(olmoe: Model) -> None:
    token = prompt(batch=1, length=1)
    with recorded(olmoe, max_recordings=2) as playing, torch.no_grad():

        def begun() -> StaticCache:
            cache = static_cache(olmoe)
            for _ in range(4):
                olmoe(token, past_key_values=cache)
            return cache

        first, second = begun(), begun()
        olmoe(token, past_key_values=first)
        third = begun()
        assert (playing.graphs.num_held, playing.recorder.num_recorded) == (2, 3)
        olmoe(token, past_key_values=first)
        olmoe(token, past_key_values=third)
        assert playing.recorder.num_recorded == 3
        olmoe(token, past_key_values=second)
        assert (playing.graphs.num_held, playing.recorder.num_recorded) == (2, 4)


def test_closing_drops_every_recording(olmoe: Model) -> None:
    with recorded(olmoe) as playing:
        output = generate(olmoe, prompt(batch=1))
        playing.graphs.close()
        assert playing.graphs.num_held == 0
        before = playing.recorder.num_replayed
        assert generate(olmoe, prompt(batch=1)).sequences.tolist() == output.sequences.tolist()
        assert playing.recorder.num_replayed == before


def test_the_recordings_keep_no_model_alive() -> None:
    model = tiny("olmoe")
    graphs = TokenGraphs(Tape(), FakeRunner())
    graphs.take_over(model)
    end = prepare(model)
    output = generate(model, prompt(batch=1))
    assert graphs.num_held == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert graphs.num_held == 1 and output is not None
    end()


# --- beside the others ------------------------------------------------------------------------


def test_the_runner_is_told_of_every_recording_and_every_replay(olmoe: Model) -> None:
    with recorded(olmoe) as playing:
        generate(olmoe, padded())
        num_replays = NUM_NEW - 1 - NUM_FIRST
        assert playing.runner.told == [
            "recording",
            "recorded",
            *["replaying", "replayed", "following"] * num_replays,
        ]


def test_passes_are_announced_whether_recorded_or_not(olmoe: Model) -> None:
    begun: list[tuple[int, bool]] = []
    with recorded(olmoe) as playing:
        Passes(lambda num_tokens, is_new: begun.append((num_tokens, is_new))).guard(olmoe)
        generate(olmoe, prompt(batch=1))
        assert playing.recorder.num_replayed > 0
    assert begun == [(9, True), *[(1, False)] * (NUM_NEW - 1)]


def test_a_forward_that_is_recorded_looks_like_itself(olmoe: Model) -> None:
    before = list(inspect.signature(olmoe.forward).parameters)
    with recorded(olmoe):
        assert list(inspect.signature(olmoe.forward).parameters) == before


def test_while_somebody_watches_the_host_runs_every_token(olmoe: Model) -> None:
    expected = launched(olmoe, prompt(batch=1))
    with recorded(olmoe) as playing:
        generate(olmoe, prompt(batch=1))
        before = playing.recorder.num_replayed
        playing.runner.is_watched = True
        assert_same(generate(olmoe, prompt(batch=1)), expected)
        assert playing.recorder.num_replayed == before
        playing.runner.is_watched = False
        assert_same(generate(olmoe, prompt(batch=1)), expected)
        assert playing.recorder.num_replayed > before
