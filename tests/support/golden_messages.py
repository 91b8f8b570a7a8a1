"""One message of every kind, and its bytes: what protocol version 1 looks like on the wire."""

from protocol.messages import (
    Dropped,
    Fault,
    Fetch,
    Goodbye,
    Hello,
    Knock,
    Message,
    Ready,
    Refused,
    Release,
    Report,
    Reported,
    Request,
    Shutdown,
    Snapshot,
    Staged,
    Stats,
    Stopped,
    Welcome,
)

GOLDEN: list[tuple[Message, str]] = [
    (Knock(1, 300, "ab", "word", -1), "960101cd012ca26162a4776f7264ff"),
    (
        Welcome(1, 2, 3, b"\x01\x02", "ipc:///b", "ab", "/s", (16, 4096, 8, 64)),
        "9902010203c4020102a86970633a2f2f2f62a26162a22f739410cd10000840",
    ),
    (Refused("no"), "9203a26e6f"),
    (Hello(2, (64, 65)), "930a02924041"),
    (
        Fetch((Request(64, 5, 7),), (Request(65, 6, 8),), (66,), (67,), (68,), (9,)),
        "970b919340050791934106089142914391449109",
    ),
    (Release((64,)), "920c9140"),
    (Snapshot(5), "920d05"),
    (Goodbye(), "910e"),
    (Shutdown(), "910f"),
    (Report("lru", ("hits",), (7,), b"\x80"), "9510a36c727591a4686974739107c40180"),
    (Ready(3), "921403"),
    (Staged((64 << 40 | 2 << 20 | 1,)), "921591cf0000400000200001"),
    (Dropped((64,)), "92169140"),
    (Stats(5, ("reads",), (1,)), "94170591a572656164739101"),
    (Fault("store", "x", (64,)), "9418a573746f7265a1789140"),
    (Stopped("x"), "9219a178"),
    (
        Reported(2, 300, 4, -1, "lru", ("hits",), (7,), b"\x80"),
        "991a02cd012c04ffa36c727591a4686974739107c40180",
    ),
]
