"""Child processes: ready or a sentence, always reaped, never left behind."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.child import Child
from protocol.errors import SidestageError

PRELUDE = """
import sys, time, os, signal
from protocol.child import Lifeline, report_error, report_ready
ready_fd, lifeline_fd = int(sys.argv[2]), int(sys.argv[4])
"""


def spawn(code: str, ready_timeout_s: float | None = 20.0) -> Child:
    return Child.spawn(
        [sys.executable, "-c", PRELUDE + code], name="the child", ready_timeout_s=ready_timeout_s
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_a_ready_child_reports_its_facts_and_stops_on_sigterm() -> None:
    with spawn("report_ready(ready_fd, {'port': 7}); time.sleep(60)") as child:
        assert child.wait_ready() == {"port": 7}
        assert child.poll() is None
        assert child.stop() == -signal.SIGTERM
    assert not is_alive(child.pid)


def test_the_childs_own_sentence_is_the_error() -> None:
    with spawn("report_error(ready_fd, 'no store here'); time.sleep(60)") as child:
        with pytest.raises(SidestageError, match=r"^no store here$"):
            child.wait_ready()
        assert child.poll() is not None


def test_a_child_that_dies_early_is_told_with_the_end_of_its_stderr() -> None:
    with (
        spawn("raise KeyError('the reason')") as child,
        pytest.raises(SidestageError, match=r"status 1 before it was ready(.|\n)*the reason"),
    ):
        child.wait_ready()


def test_a_child_that_is_killed_early_is_told_with_its_signal() -> None:
    with (
        spawn("os.kill(os.getpid(), signal.SIGKILL)") as child,
        pytest.raises(SidestageError, match="was killed by signal 9"),
    ):
        child.wait_ready()


def test_garbage_instead_of_a_report_is_an_error() -> None:
    with (
        spawn("os.write(ready_fd, b'[1]\\n'); time.sleep(60)") as child,
        pytest.raises(SidestageError, match="before it was ready"),
    ):
        child.wait_ready()


def test_a_child_that_is_never_ready_is_stopped_and_the_setting_named() -> None:
    with spawn("time.sleep(60)", ready_timeout_s=0.3) as child:
        with pytest.raises(SidestageError, match="SIDESTAGE_TIMEOUT"):
            child.wait_ready()
        assert child.poll() is not None


def test_a_program_that_is_not_there_is_an_error_without_a_leak() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child.spawn(["/nonexistent/program"], name="ghost")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_no_fd_stays_after_close() -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = spawn("report_ready(ready_fd, {}); time.sleep(60)")
    child.wait_ready()
    child.close()
    child.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_child_that_ignores_sigterm_is_killed_after_the_timeout() -> None:
    with spawn("signal.signal(15, signal.SIG_IGN); report_ready(ready_fd, {}); time.sleep(60)") as child:
        child.wait_ready()
        assert child.stop(timeout_s=0.2) == -signal.SIGKILL


def test_a_stopped_child_can_be_stopped_for_good() -> None:
    with spawn("signal.signal(15, lambda *_: None); report_ready(ready_fd, {}); time.sleep(60)") as child:
        child.wait_ready()
        child.send_signal(signal.SIGSTOP)
        assert child.stop(timeout_s=0.2) == -signal.SIGKILL


def test_the_pidfd_is_readable_once_the_child_has_died() -> None:
    with spawn("report_ready(ready_fd, {}); time.sleep(60)") as child:
        child.wait_ready()
        assert not select.select([child.pidfd], [], [], 0)[0]
        child.send_signal(signal.SIGKILL)
        assert select.select([child.pidfd], [], [], 10)[0]
        assert child.wait(10) == -signal.SIGKILL


def test_a_child_lives_in_a_session_of_its_own() -> None:
    with spawn("report_ready(ready_fd, {'session': os.getsid(0)}); time.sleep(60)") as child:
        assert child.wait_ready()["session"] == child.pid != os.getsid(0)


def test_a_fork_of_the_owner_cannot_stop_the_child() -> None:
    with spawn("report_ready(ready_fd, {}); time.sleep(60)") as child:
        child.wait_ready()
        fork = os.fork()
        if not fork:
            child.close()
            os._exit(0)
        os.waitpid(fork, 0)
        time.sleep(0.05)
        assert child.poll() is None


PARENT = f"""
import os, sys, time
from protocol.child import Child
code = {PRELUDE!r} + sys.argv[1]
child = Child.spawn([sys.executable, "-c", code], name="the child")
child.wait_ready()
if sys.argv[2] == "fork" and not os.fork():
    time.sleep(60)  # keeps the lifeline's pipe open
    os._exit(0)
print(child.pid, flush=True)
time.sleep(60)
"""
BY_THREAD = """
life = Lifeline(lifeline_fd)
life.watch(lambda: os._exit(0))
report_ready(ready_fd, {})
time.sleep(60)
"""
BY_POLL = """
import select
life = Lifeline(lifeline_fd)
assert not life.is_cut()
report_ready(ready_fd, {})
select.select(life.fds, [], [])
assert life.is_cut()
"""


@pytest.mark.parametrize("code", [BY_THREAD, BY_POLL], ids=["by thread", "by poll"])
@pytest.mark.parametrize("kept", ["plain", "fork"])
def test_a_child_sees_its_parent_die_even_when_a_fork_keeps_the_pipe(code: str, kept: str) -> None:
    argv = [sys.executable, "-c", PARENT, code, kept]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        parent.wait()
        wait_for_end(pid)
        os.killpg(parent.pid, signal.SIGKILL) if kept == "fork" else None
