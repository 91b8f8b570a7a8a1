"""Transit: the slots through which experts pass that a layer-step needs but does not admit.

A slot's life: free -> coming -> arrived -> free. The transport learns that an expert left from the
next order, without a message of its own.
"""


class Transit:
    """Slots `first` to `first + count - 1` of the transport."""

    __slots__ = ("_arrived", "_first", "_free", "_key_in", "_left")

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._free = list(range(first + count - 1, first - 1, -1))
        self._key_in: dict[int, int] = {}
        self._arrived: set[int] = set()
        self._left: list[tuple[int, int]] = []

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def is_busy(self) -> bool:
        return bool(self._key_in)

    @property
    def coming(self) -> list[int]:
        """Slots whose expert is on its way."""
        return [slot for slot in self._key_in if slot not in self._arrived]

    def owns(self, slot: int) -> bool:
        return slot >= self._first

    def key_in(self, slot: int) -> int:
        return self._key_in[slot]

    def enter(self, key: int) -> int:
        """A slot for `key`, to be asked for."""
        slot = self._free.pop()
        self._key_in[slot] = key
        return slot

    def arrive(self, slot: int) -> None:
        """The expert in `slot` is there."""
        self._arrived.add(slot)

    def leave(self, slot: int) -> None:
        """The expert in `slot` is not needed any more; its bytes stay until the next order."""
        self._arrived.remove(slot)
        self._left.append((self._key_in.pop(slot), slot))
        self._free.append(slot)

    def leave_all(self) -> None:
        """Whoever arrived for a layer-step that was broken off leaves."""
        for slot in list(self._arrived):
            self.leave(slot)

    def take_left(self) -> list[tuple[int, int]]:
        """(key, slot) of those that left since the last call: the next order's `evicted` begins with them."""
        left, self._left = self._left, []
        return left
