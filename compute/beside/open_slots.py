"""Open slots: those on offer to the device, for the experts that it misses, and those that cool.

A lent slot is offered, in the order of a ring that the device takes from, or it cools: steps that
looked before its expert left may read it still. Offered slots need not cool, for the device itself
fills them, after those steps and by a table without that expert (`Resolver`).
"""

from collections import deque
from collections.abc import Iterable

from compute.arrays import IntArray
from compute.beside.lending import LendingResidency
from compute.beside.table import DeviceSlotTable
from compute.beside.words import PUSHED, DeviceWords


class OpenSlots:
    """Keeps `num_offered` slots on offer and `num_spare` free for guesses, as far as there are slots.

    `num_wanted`: how many must be empty after a step for that; none has to be where every expert has one.
    """

    def __init__(
        self,
        words: DeviceWords,
        table: DeviceSlotTable,
        residency: LendingResidency,
        num_offered: int,
        num_spare: int,
        num_keys: int,
    ) -> None:
        assert num_offered <= len(words.opened)
        self.num_wanted = num_offered + num_spare if residency.num_slots < num_keys else 0
        self._num_offered, self._num_spare = num_offered, num_spare
        self._ring: IntArray = words.opened.numpy()
        self._control: IntArray = words.control.numpy()
        self._table = table
        self._residency = residency
        self._offered: deque[int] = deque()
        #: (slot, epoch that a step must have read before the step after which it is cold)
        self._cooling: deque[tuple[int, int]] = deque()
        self.put(())

    def take(self) -> int:
        """The slot that the device has taken: the one that was offered first."""
        return self._offered.popleft()

    def put(self, slots: Iterable[int]) -> None:
        """LENT slots that hold nobody any more; and free ones beside them while too few are on offer."""
        for slot in slots:
            if len(self._offered) < self._num_offered:
                self._offer(slot)
            else:
                self._cooling.append((slot, self._table.epoch))
        while len(self._offered) < self._num_offered and self._residency.num_free > self._num_spare:
            self._offer(self._residency.lend())

    def cool(self, epoch: int) -> None:
        """A step behind one that has read `epoch` was posted: slots that waited for it are free."""
        while self._cooling and self._cooling[0][1] <= epoch:
            self._residency.take_back(self._cooling.popleft()[0])

    def _offer(self, slot: int) -> None:
        """The address first, then the count: the device reads them the other way round."""
        num_pushed = int(self._control[PUSHED])
        self._ring[num_pushed % len(self._ring)] = self._table.address_of(slot)
        self._control[PUSHED] = num_pushed + 1
        self._offered.append(slot)
