"""As many bytes as the link takes: demands for fresh slots, one after the other, over a pinned transport."""

import time

from support.pinned_play import PinnedPlay, filled_arena

from compute.transports.base import Order
from compute.transports.cuda_link import CHUNK_BYTES
from compute.transports.driver import Driver

NUM_FRAMES = 48
_NUM_SLOTS = 24
_NUM_COMING = 12


def transport_speed(driver: Driver, blob_bytes: int, num_blobs: int, chunk_bytes: int = CHUNK_BYTES) -> float:
    """Bytes a second that reached slots, by the host's clock, while demands were never short."""
    with filled_arena(NUM_FRAMES, blob_bytes) as arena:
        play = PinnedPlay(driver, arena, _NUM_SLOTS, chunk_bytes=chunk_bytes)
        play.transport.start()
        try:
            _pass(play, _NUM_SLOTS)
            started_s = time.perf_counter()
            _pass(play, num_blobs)
            lasted_s = time.perf_counter() - started_s
            for slot, key in play.there.items():
                play.check(slot, key)
            return num_blobs * blob_bytes / lasted_s
        finally:
            play.transport.close()


def _pass(play: PinnedPlay[Driver], num_blobs: int) -> None:
    """`num_blobs` experts through the slots, the one that has been there longest leaving first."""
    num_asked = num_landed = 0
    while num_landed < num_blobs:
        order = Order()
        while len(play.coming) + len(order.demand) < _NUM_COMING and num_asked < num_blobs:
            if len(play.coming) + len(play.there) + len(order.demand) == _NUM_SLOTS:
                slot = next(iter(play.there))
                order.evicted.append((play.there.pop(slot), slot))
            else:
                taken = {*play.coming, *play.there, *(slot for _, slot in order.demand)}
                slot = next(slot for slot in range(_NUM_SLOTS) if slot not in taken)
            order.demand.append((num_asked % NUM_FRAMES, slot))
            num_asked += 1
        if order:
            play.submit(order)
        landed = play.transport.wait([*play.coming]).landed
        for slot in landed:
            play.there[slot] = play.coming.pop(slot)
        num_landed += len(landed)
