"""A policy of the user's own, in one file outside the package: the recipe of docs/policies.md."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.cli import call, run

from compute.trace import Trace
from compute.trace_file import write

Capture = pytest.CaptureFixture[str]

DOCUMENT = Path(__file__).parents[2] / "docs" / "policies.md"

BROKEN = """
class Broken:
    needs_probs = False
    def __init__(self, shape): self._resident = []
    def begin_pass(self, num_tokens, is_new_sequence): pass
    def on_access(self, layer, keys, probs): pass
    def on_insert(self, key, is_speculative): self._resident.append(key)
    def on_evict(self, key): self._resident.remove(key)
    def choose_victims(self, count, held):
        return VICTIMS
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The spec of the document's example."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert 35 <= len(example.splitlines()) <= 50
    (tmp_path / "windowed_lfu.py").write_text(example)
    return f"{tmp_path / 'windowed_lfu.py'}:WindowedLfu"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    experts = np.argsort(rng.gumbel(size=(200, 3, 8)) + np.linspace(0, 2, 8))[:, :, :2]
    zeros = np.zeros(200, np.int32)
    write(tmp_path / "t.npz", Trace(experts.astype(np.int16), zeros.astype(np.uint8), zeros, 8))
    return tmp_path / "t.npz"


def test_it_is_replayed_with_and_without_options(capsys: Capture, own: str, trace: Path) -> None:
    asked = ("--capacity", "0.5", "--policy", f"lru,{own},{own}+window=2", "--jobs", "1", "--json", "-")
    lru, wide, narrow = call(capsys, "simulate", trace, *asked).json["results"]
    assert [wide["policy"], narrow["policy"]] == [own, f"{own}+window=2"]
    assert wide["gap_closed"] > 0 == lru["gap_closed"]
    assert wide["hits"] != narrow["hits"]


def test_it_serves_a_run(own: str, store_none: Path) -> None:
    common = ("--temperature", "0", "--max-new-tokens", "4", "--threads", "1", "--slots", "24", "--json", "-")
    told = run("run", store_none, *common, "--policy", own).json
    assert told["policy"] == own and told["evictions"] > 0 and told["new_tokens"] == 4


@pytest.mark.parametrize(
    ("victims", "words"),
    [
        ("[99]", ("Broken.choose_victims named [99]", "distinct resident experts")),
        ("[self._resident[0], self._resident[0]]", ("Broken.choose_victims", "distinct")),
        ("[k for k in held][:count]", ("Broken.choose_victims", "outside `held`")),
        ("{}[0]", ("Broken", "KeyError", "line 10")),
    ],
)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_broken_one_is_refused_with_a_sentence(
    capsys: Capture, tmp_path: Path, trace: Path, victims: str, words: tuple[str, ...], jobs: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.replace("VICTIMS", victims))
    asked = ("--capacity", "0.5", "--policy", f"{tmp_path / 'broken.py'}:Broken", "--jobs", jobs)
    answer = call(capsys, "simulate", trace, *asked)
    assert answer.code == 1 and "Traceback" not in answer.err
    assert all(word in answer.err.strip().splitlines()[-1] for word in words), answer.err


def test_every_known_policy_has_its_row_in_the_document() -> None:
    from compute.policies import KNOWN

    rows = re.findall(r"^\| `([\w-]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(KNOWN) <= set(rows)
