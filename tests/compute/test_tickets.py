"""Tickets: numbers, places and the quota."""

import pytest

from compute.tickets import TicketBook


def book(num_tickets: int = 64, quota: int = 4) -> TicketBook[str]:
    return TicketBook(num_tickets, quota)


def test_a_ticket_is_asked_held_and_released() -> None:
    tickets = book()
    request = tickets.ask(9, 3, is_demand=True)
    tickets.hold(request.ticket, "lease")
    assert tickets.release(request.ticket) == "lease"
    assert tickets.num_open == 0 and tickets.room == 4


def test_no_more_tickets_than_the_quota_are_open() -> None:
    tickets = book(quota=2)
    tickets.ask(0, 0, is_demand=False)
    tickets.ask(1, 0, is_demand=False)
    with pytest.raises(AssertionError, match="quota"):
        tickets.ask(2, 0, is_demand=True)


def test_a_dropped_ticket_makes_room() -> None:
    tickets = book(quota=1)
    request = tickets.ask(5, 0, is_demand=False)
    tickets.cancel([request.ticket])
    assert tickets.drop(request.ticket).is_cancelled
    assert tickets.room == 1


def test_promotion_takes_a_cancellation_back() -> None:
    tickets = book()
    request = tickets.ask(5, 0, is_demand=False)
    tickets.cancel([request.ticket])
    tickets.promote([request.ticket])
    asked = tickets.asked[request.ticket]
    assert asked.is_demand and not asked.is_cancelled and asked.was_cancelled


@pytest.mark.parametrize("quota", [0, 65])
def test_a_quota_beyond_the_arena_is_refused(quota: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        book(64, quota)


@pytest.mark.parametrize("num_tickets", [1 << 16, 1 << 20])
def test_numbers_wrap_to_sequence_one_and_never_repeat_at_once(num_tickets: int) -> None:
    tickets: TicketBook[str] = TicketBook(num_tickets, quota=1)
    seen: dict[int, int] = {}
    tickets._next.clear()
    tickets._next.append(num_tickets + 7)
    for _ in range(3 * (1 << 24) // num_tickets):
        request = tickets.ask(0, 0, is_demand=True)
        assert 0 < request.ticket < 1 << 24
        assert request.ticket >> (num_tickets.bit_length() - 1) >= 1
        place = tickets.place(request.ticket)
        assert seen.get(place) != request.ticket
        seen[place] = request.ticket
        tickets.drop(request.ticket)
    assert set(seen) == {7}
