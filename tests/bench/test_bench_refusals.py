"""What `sidestage bench` refuses before anything is built or started."""

from pathlib import Path

import pytest
from support.cli import call

REFUSALS = [
    (("launch/model", "--shape", "olmoe-1b-7b"), "MODEL and --shape both name a model"),
    (("--shape", "olmoe-7b"), "--shape is 'olmoe-7b'; allowed: deepseek-v2-lite, gpt-oss-20b, mixtral-8x7b"),
    (("--layers", "2"), "--layers cuts a --shape"),
    (("--shape", "olmoe-1b-7b", "--layers", "17"), "--layers is 17; olmoe-1b-7b has 16 layers"),
    (("--shape", "deepseek-v2-lite", "--layers", "1"), "1 of them without experts: pass 2 to 27"),
    (("--arms", "resident,vllm"), "--arms names 'vllm'; allowed: resident, offload, oracle"),
    (("--arms", "offload,offload"), "names an arm twice"),
    (("--arms", "oracle"), "pass --routing T.npz"),
    (("--routing", "nowhere.npz"), "--routing nowhere.npz: there is no such file"),
    (("--slots", "9", "--ram", "1GiB"), "--slots and --ram both say"),
    (("--gate-recall", "1.5"), "--gate-recall is 1.5; allowed is 0 to 1"),
    (("--repeat", "0"), "--repeat is 0; it must be at least 1"),
    (("--tg", "0"), "--tg is 0"),
    (("--lookahead", "-1"), "--lookahead is -1"),
    (("--policy", "belady"), "--policy belady needs the future"),
    (("--rate", "fast"), "--rate: 'fast' is not a rate"),
    (("--json", "nowhere/out.json"), "the folder"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSALS)
def test_a_wrong_wish_is_refused_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "bench", *arguments)
    assert answer.code == 1
    assert sentence in answer.err
    assert answer.err.count("\n") == 1


def test_stock_arms_need_a_checkpoint(store_4bit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "bench", store_4bit, "--arms", "resident,transformers")
    assert answer.code == 1
    assert "is a store, stock transformers needs the checkpoint" in answer.err


def test_arms_that_do_not_fit_together_are_refused(
    store_4bit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.bench.bench.available_memory_bytes", lambda: 6 * 2**20)
    answer = call(capsys, "bench", store_4bit, "--arms", "resident,offload")
    assert answer.code == 1
    assert "together (resident 4.5 MiB, offload 2.3 MiB), 6.0 MiB are free: name fewer --arms" in answer.err
