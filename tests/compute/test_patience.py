"""Timeouts, what counts as hung, and how often an owned loader is restarted."""

import pytest

from compute.patience import HUNG_S, MAX_RESTARTS_IN_VAIN, Patience, RestartBudget, Verdict, timeout_setting


def test_the_timeout_is_what_was_given_then_the_environment_then_30(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTAGE_TIMEOUT", raising=False)
    assert timeout_setting() == 30
    monkeypatch.setenv("SIDESTAGE_TIMEOUT", "7.5")
    assert timeout_setting() == 7.5
    assert timeout_setting(2) == 2


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_no_time_is_refused_by_its_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTAGE_TIMEOUT", text)
    with pytest.raises(ValueError, match="SIDESTAGE_TIMEOUT"):
        timeout_setting()


def test_a_loader_that_turns_is_waited_for_until_the_timeout() -> None:
    patience = Patience(10)
    patience.note_progress(100, turns=0)
    assert [patience.judge(100 + second, turns=second) for second in (1, 5, 9)] == [Verdict.WAIT] * 3
    assert patience.judge(110.1, turns=11) is Verdict.OVER


def test_a_loop_that_stands_still_for_half_the_timeout_is_hung() -> None:
    patience = Patience(3)
    patience.note_progress(100, turns=0)
    assert patience.judge(101, turns=4) is Verdict.WAIT
    assert patience.judge(102.4, turns=4) is Verdict.WAIT
    assert patience.judge(102.6, turns=4) is Verdict.HUNG


def test_a_long_timeout_does_not_make_a_hung_loader_wait_longer() -> None:
    patience = Patience(600)
    patience.note_progress(100, turns=0)
    assert patience.judge(100.1 + HUNG_S, turns=0) is Verdict.HUNG
    assert patience.judge(100.1 + HUNG_S, turns=1) is Verdict.WAIT


def test_progress_starts_the_count_again() -> None:
    patience = Patience(10)
    patience.note_progress(100, turns=0)
    patience.note_progress(109, turns=0)
    assert patience.judge(109 + HUNG_S - 0.1, turns=0) is Verdict.WAIT


def test_restarts_come_slower_and_end() -> None:
    budget = RestartBudget()
    pauses = [budget.pause_s(num_staged=3) for _ in range(MAX_RESTARTS_IN_VAIN)]
    assert pauses[0] == 0 and pauses == sorted(pauses, key=lambda pause: pause or 0)
    assert budget.pause_s(num_staged=3) is None


def test_a_staged_expert_makes_every_restart_good_again() -> None:
    budget = RestartBudget()
    for num_staged in range(3 * MAX_RESTARTS_IN_VAIN):
        assert budget.pause_s(num_staged) == 0
