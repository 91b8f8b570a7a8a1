"""`sidestage trace record`: what the file holds, and what is refused before a model is loaded."""

from pathlib import Path

import numpy as np
import pytest
from support.cli import assert_refused, call
from support.tiny_stores import make_tiny_store

from compute.trace_file import read

Capture = pytest.CaptureFixture[str]

COMMON = ("--temperature", "0", "--max-new-tokens", "6", "--threads", "1", "--slots", "24")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Once upon a time\n\nThe king of the sea\n")
    return path


def test_prompts_become_a_pass_of_prefill_and_a_pass_for_each_token(
    capsys: Capture, store_none: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.npz"
    answer = call(
        capsys,
        "trace",
        "record",
        store_none,
        "--prompts",
        prompts,
        *COMMON,
        "--probs",
        "--out",
        out,
        "--json",
        "-",
    )
    trace, told = read(out), answer.json
    assert (told["sequences"], told["tokens"]) == (2, trace.num_tokens)
    assert told["prefill_tokens"] + told["decode_tokens"] == trace.num_tokens
    assert trace.pass_number is not None and trace.token_id is not None
    for number in range(2):
        mine = trace.sequence == number
        is_prefill = trace.phase[mine] == 0
        assert len(set(trace.pass_number[mine][is_prefill].tolist())) == 1
        assert np.count_nonzero(~is_prefill) == 5
        assert len(set(trace.pass_number[mine][~is_prefill].tolist())) == 5
    assert trace.meta["n_experts"] == 32 and trace.meta["expert_bytes"] == 73728


def test_scores_are_the_routers_probabilities_of_the_chosen(
    capsys: Capture, store_none: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.npz"
    call(capsys, "trace", "record", store_none, "--prompts", prompts, *COMMON, "--probs", "--out", out)
    trace = read(out)
    assert trace.probs is not None and trace.scores is not None and trace.probs.dtype == np.float16
    assert np.allclose(trace.probs.astype(np.float32).sum(-1), 1.0, atol=2e-3)
    chosen = np.take_along_axis(trace.probs, trace.experts.astype(np.int64), -1)
    assert np.array_equal(chosen, trace.scores)
    assert np.array_equal(np.sort(trace.probs, -1)[..., -4:], np.sort(trace.scores, -1))


def test_a_recording_lets_the_gate_be_replayed(
    capsys: Capture, store_none: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.npz"
    call(capsys, "trace", "record", store_none, "--prompts", prompts, *COMMON, "--out", out)
    asked = ("--capacity", "0.5", "--policy", "lru", "--predictor", "gate", "--lookahead", "2", "--jobs", "1")
    (told,) = call(capsys, "simulate", out, *asked, "--json", "-").json["results"]
    assert told["prefetch_issued"] > 0
    assert told["prediction_recall"] > 0.4


def test_a_text_can_be_forced_through_at_once_and_written_token_by_token(
    capsys: Capture, store_none: Path, tmp_path: Path
) -> None:
    text, at_once, split = (tmp_path / name for name in ("text.txt", "window.npz", "split.npz"))
    text.write_text("The wolf came to the door of the house, and he knocked. " * 3)
    for out, passes in ((at_once, "window"), (split, "split")):
        asked = ("--text", text, "--window", "16", "--tokens", "40", "--passes", passes, "--predicted", "0")
        call(capsys, "trace", "record", store_none, "--threads", "1", *asked, "--out", out)
    one, other = read(at_once), read(split)
    assert one.pass_number is not None and one.pass_number.tolist() == [0] * 16 + [1] * 16 + [2] * 8
    assert other.pass_number is None and other.predicted is None
    assert np.array_equal(one.experts, other.experts)
    assert one.sequence.tolist() == one.pass_number.tolist()
    assert not one.phase.any()


def test_what_cannot_be_recorded_is_refused(capsys: Capture, prompts: Path, tmp_path: Path) -> None:
    out, empty, binary = (tmp_path / name for name in ("t.npz", "empty.txt", "binary.txt"))
    empty.write_text(" \n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, words in (
        ((), ("--prompts FILE", "--text FILE")),
        (("--prompts", prompts, "--text", prompts), ("--prompts FILE", "--text FILE")),
        (("--prompts", tmp_path / "nowhere.txt"), ("nowhere.txt", "cannot be read")),
        (("--prompts", empty), ("empty.txt", "empty")),
        (("--text", binary), ("binary.txt", "UTF-8")),
        (("--prompts", prompts, "--window", "9"), ("--window", "--text")),
        (("--text", prompts, "--passes", "word"), ("--passes", "token, window, split")),
        (("--text", prompts, "--tokens", "0"), ("--tokens is 0",)),
        (("--prompts", prompts, "--policy", "belady"), ("belady", "future")),
        (("--prompts", prompts, "--predicted", "-1"), ("--predicted is -1",)),
    ):
        assert_refused(call(capsys, "trace", "record", *arguments, "--out", out), *words)
    assert_refused(
        call(capsys, "trace", "record", "--prompts", prompts, "--out", tmp_path), "--out", "folder"
    )
    assert not out.exists()


def test_a_window_beyond_the_context_is_refused(
    capsys: Capture, store_none: Path, prompts: Path, tmp_path: Path
) -> None:
    asked = ("--text", prompts, "--window", "513", "--threads", "1", "--out", tmp_path / "t.npz")
    assert_refused(call(capsys, "trace", "record", store_none, *asked), "context holds 512")
    assert not (tmp_path / "t.npz").exists()


def test_a_model_without_a_tokenizer_is_refused(capsys: Capture, prompts: Path, tmp_path: Path) -> None:
    _, store = make_tiny_store("olmoe", tmp_path)
    asked = ("--prompts", prompts, "--threads", "1", "--out", tmp_path / "t.npz")
    assert_refused(call(capsys, "trace", "record", store, *asked), "no tokenizer")
