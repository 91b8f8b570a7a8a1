"""The queue: who is read next, and that nobody waits for ever."""

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loader.queue import FetchQueue, TicketId

A, B, C = 0, 1, 2


def keys_in_order(queue: FetchQueue) -> list[int]:
    keys = []
    while (job := queue.take()) is not None:
        keys.append(job[0])
    return keys


def test_demand_overtakes_prefetch_whatever_the_deadlines() -> None:
    queue = FetchQueue()
    queue.add(TicketId(A, 1), key=10, deadline=0, is_demand=False)
    queue.add(TicketId(A, 2), key=11, deadline=99, is_demand=True)
    assert keys_in_order(queue) == [11, 10]


def test_the_earliest_deadline_goes_first_then_the_order_of_asking() -> None:
    queue = FetchQueue()
    for ticket, (key, deadline) in enumerate([(10, 5), (11, 3), (12, 5), (13, 3)]):
        queue.add(TicketId(A, ticket), key, deadline, is_demand=False)
    assert keys_in_order(queue) == [11, 13, 10, 12]


def test_a_promoted_prefetch_is_a_demand() -> None:
    queue = FetchQueue()
    queue.add(TicketId(A, 1), 10, 0, is_demand=False)
    queue.add(TicketId(A, 2), 11, 0, is_demand=False)
    queue.add(TicketId(A, 3), 12, 0, is_demand=True)
    assert queue.promote(TicketId(A, 2))
    assert keys_in_order(queue) == [12, 11, 10]


def test_promoting_a_demand_does_not_cost_it_its_place() -> None:
    queue = FetchQueue()
    queue.add(TicketId(A, 1), 10, 0, is_demand=True)
    queue.add(TicketId(A, 2), 11, 0, is_demand=True)
    assert queue.promote(TicketId(A, 1))
    assert keys_in_order(queue) == [10, 11]


def test_a_cancelled_ticket_is_not_taken() -> None:
    queue = FetchQueue()
    queue.add(TicketId(A, 1), 10, 0, is_demand=True)
    assert queue.cancel(TicketId(A, 1))
    assert not queue.cancel(TicketId(A, 1))
    assert not queue.promote(TicketId(A, 1))
    assert queue.take() is None and len(queue) == queue.num_keys == 0


def test_tickets_on_one_key_leave_together_when_the_first_is_due() -> None:
    queue = FetchQueue()
    assert not queue.add(TicketId(A, 1), 10, 7, is_demand=False)
    queue.add(TicketId(A, 2), 11, 0, is_demand=True)
    queue.add(TicketId(A, 3), 12, 1, is_demand=True)
    assert queue.add(TicketId(B, 1), 10, 0, is_demand=True)
    assert queue.take() == (11, [TicketId(A, 2)])
    assert queue.take() == (10, [TicketId(A, 1), TicketId(B, 1)])
    assert queue.take() == (12, [TicketId(A, 3)])


def test_cancelling_one_of_two_tickets_leaves_the_other() -> None:
    queue = FetchQueue()
    queue.add(TicketId(A, 1), 10, 0, is_demand=True)
    queue.add(TicketId(B, 1), 10, 9, is_demand=False)
    queue.cancel(TicketId(A, 1))
    assert queue.awaits(10)
    assert queue.take() == (10, [TicketId(B, 1)])


def test_clients_take_turns_because_their_clocks_differ() -> None:
    queue = FetchQueue()
    for ticket in range(3):
        queue.add(TicketId(A, ticket), ticket, deadline=ticket, is_demand=True)
    for ticket in range(2):
        queue.add(TicketId(B, ticket), 10 + ticket, deadline=1000 + ticket, is_demand=True)
    assert keys_in_order(queue) == [0, 10, 1, 11, 2]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 4))
def test_no_client_waits_longer_than_one_round(loads: list[int], late: int) -> None:
    """However much the others ask for, a newcomer's demand is read within one turn of each."""
    queue = FetchQueue()
    ticket = 0
    for client, load in enumerate(loads):
        for _ in range(load):
            ticket += 1
            queue.add(TicketId(client, ticket), key=ticket, deadline=0, is_demand=True)
    for _ in range(late):
        queue.take()
    queue.add(TicketId(99, 1), key=0, deadline=10**9, is_demand=True)
    taken = [queue.take() for _ in range(len(loads) + 1)]
    assert any(job is not None and job[0] == 0 for job in taken)


@dataclass
class Asked:
    key: int
    deadline: int
    is_demand: bool
    order: int


class QueueAgainstAList(RuleBasedStateMachine):
    """The queue against a plain list that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FetchQueue()
        self.asked: dict[TicketId, Asked] = {}
        self.num_asked = 0

    def count(self) -> int:
        self.num_asked += 1
        return self.num_asked

    @rule(
        client=st.integers(0, 2),
        ticket=st.integers(1, 20),
        key=st.integers(0, 6),
        deadline=st.integers(0, 3),
        is_demand=st.booleans(),
    )
    def add(self, client: int, ticket: int, key: int, deadline: int, is_demand: bool) -> None:
        identity = TicketId(client, ticket)
        if identity in self.asked:
            return
        is_coalesced = any(asked.key == key for asked in self.asked.values())
        assert self.queue.add(identity, key, deadline, is_demand) == is_coalesced
        self.asked[identity] = Asked(key, deadline, is_demand, self.count())

    @rule(client=st.integers(0, 2), ticket=st.integers(1, 20))
    def promote(self, client: int, ticket: int) -> None:
        asked = self.asked.get(TicketId(client, ticket))
        assert self.queue.promote(TicketId(client, ticket)) == (asked is not None)
        if asked is not None and not asked.is_demand:
            asked.is_demand, asked.order = True, self.count()

    @rule(client=st.integers(0, 2), ticket=st.integers(1, 20))
    def cancel(self, client: int, ticket: int) -> None:
        was_waiting = self.asked.pop(TicketId(client, ticket), None) is not None
        assert self.queue.cancel(TicketId(client, ticket)) == was_waiting

    @rule()
    @precondition(lambda self: self.asked)
    def take(self) -> None:
        job = self.queue.take()
        assert job is not None
        key, tickets = job
        expected = {identity for identity, asked in self.asked.items() if asked.key == key}
        assert set(tickets) == expected and len(tickets) == len(expected)
        demands = [asked for asked in self.asked.values() if asked.is_demand]
        urgent = demands or list(self.asked.values())
        firsts: dict[int, Asked] = {}
        by_client = defaultdict(list)
        for identity, asked in self.asked.items():
            if asked in urgent:
                by_client[identity.client].append(asked)
        for client, waiting in by_client.items():
            firsts[client] = min(waiting, key=lambda a: (a.deadline, a.order))
        assert key in {asked.key for asked in firsts.values()}
        for identity in tickets:
            del self.asked[identity]

    @invariant()
    def sizes_agree(self) -> None:
        assert len(self.queue) == len(self.asked)
        assert self.queue.num_keys == len({asked.key for asked in self.asked.values()})
        assert all(identity in self.queue for identity in self.asked)


QueueAgainstAList.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestQueueAgainstAList = QueueAgainstAList.TestCase
