"""The line between a chat and its compute process, and a chat that is told to end before it asks."""

import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from launch.chat.partner import Partner
from launch.chat.wire import Line
from launch.interrupts import Interrupts


@pytest.fixture
def ends() -> Iterator[tuple[Line, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs, closing(Line(ours)) as line:
        yield line, theirs


def test_an_object_that_comes_in_parts_is_received_once_it_is_whole(ends: tuple[Line, socket.socket]) -> None:
    line, partner = ends
    partner.sendall(b'{"text": "Once')
    assert list(line.receive()) == []
    partner.sendall(b'"}\n{"text": " upon"}\n')
    assert list(line.receive()) == [{"text": "Once"}, {"text": " upon"}]


@pytest.mark.parametrize("hear", [Line.receive, Line.__iter__])
def test_a_partner_who_goes_without_having_read_is_the_end_and_no_error(
    ends: tuple[Line, socket.socket], hear: Any
) -> None:
    line, partner = ends
    line.send(text="nobody reads this")
    partner.close()
    assert list(hear(line)) == []
    assert not line.send(text="nor this")


class _Told:
    """Interrupts as they stand after a SIGTERM."""

    def taken_signals(self) -> list[int]:
        return [signal.SIGTERM]


def test_sigterm_between_an_answer_and_the_next_question_is_not_forgotten() -> None:
    partner = object.__new__(Partner)
    partner.interrupts = cast(Interrupts, _Told())
    with pytest.raises(KeyboardInterrupt):
        partner.ask([], lambda text: None)
