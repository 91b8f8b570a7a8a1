"""Policies are found by name, by file and by module; every mistake gets a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from compute.policies import KNOWN, OFFLINE, named
from compute.policies.base import CacheShape
from compute.policies.lfu import Lfu

SHAPE = CacheShape(num_layers=2, num_experts=4, top_k=2, num_slots=3)

MY_POLICY = '''
"""Evicts the highest key: a policy as a user would write it."""


class HighestKey:
    needs_probs = False

    def __init__(self, shape, lowest=0):
        self.resident = set()
        self.lowest = lowest

    def begin_pass(self, num_tokens, is_new_sequence):
        pass

    def on_access(self, layer, keys, probs):
        pass

    def on_insert(self, key, is_speculative):
        self.resident.add(key)

    def on_evict(self, key):
        self.resident.remove(key)

    def choose_victims(self, count, held):
        return sorted((k for k in self.resident if k not in held), reverse=True)[:count]
'''


def sentence(spec: str) -> str:
    with pytest.raises(ValueError) as caught:
        named(spec, SHAPE)
    return str(caught.value)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_is_built(name: str) -> None:
    assert named(name, SHAPE, future=[[0, 1], [4]]).choose_victims(1, set()) == []


def test_options_follow_the_name() -> None:
    policy = named("lfu+decay=5e-1+reset=true", SHAPE)
    assert isinstance(policy, Lfu)
    assert vars(policy).items() >= {"_decay": 0.5, "_reset": True}.items()


def test_names_are_known_without_numpy() -> None:
    code = "import sys; from compute.policies import KNOWN; assert 'numpy' not in sys.modules, 'numpy'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_policy_of_ones_own_is_found_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MY_POLICY)
    policy = named(f"{path}:HighestKey+lowest=1", SHAPE)
    for key in (2, 5, 7):
        policy.on_insert(key, False)
    assert policy.choose_victims(2, {7}) == [5, 2]


def test_a_policy_of_ones_own_is_found_in_its_module() -> None:
    assert isinstance(named("compute.policies.lfu:Lfu+decay=0.9", SHAPE), Lfu)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    told = sentence("lruu")
    assert '"lruu"' in told and all(name in told for name in KNOWN)


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_an_offline_policy_is_refused_where_there_is_no_future(name: str) -> None:
    assert "replay" in sentence(name)


def test_an_unknown_option_is_answered_with_the_allowed_ones() -> None:
    assert "decay, reset" in sentence("lfu+speed=3")
    assert "it has none" in sentence("lru+speed=3")


def test_a_wrong_option_says_what_is_allowed() -> None:
    assert "decay 3 is not within" in sentence("lfu+decay=3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1 +\n", "line 1"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
        ("\n\nraise RuntimeError('out of order')\n", "out of order (line 3)"),
        ("class Mine:\n    needs_probs = False\n", "lacks begin_pass, on_access"),
        ("Mine = 3\n", 'has no class "Mine"'),
        (MY_POLICY.replace("HighestKey", "Mine").replace("set()", "sett()"), "(line 9)"),
    ],
)
def test_a_broken_file_is_reported_with_a_sentence(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert told in sentence(f"{path}:Mine")


def test_a_missing_file_and_a_missing_module_are_named() -> None:
    assert "there is no such file" in sentence("no/such/file.py:Mine")
    assert "nowhere_at_all" in sentence("nowhere_at_all:Mine")
