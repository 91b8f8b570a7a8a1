"""Writes the corpus: for each target good bytes to start from and bad ones that were met or thought of.

`python tests/fuzz/make_corpus.py`. Files are named TARGET/NAME; the suite replays all of them.
"""

import io
import json
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import msgpack
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fuzz_targets import GEOMETRY
from support.golden_messages import GOLDEN
from support.synthetic_store import make_store

from protocol.arena import MAGIC
from protocol.codec import encode
from protocol.messages import Goodbye

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    cases = {
        **codec_cases(),
        **arena_cases(),
        **store_cases(),
        **config_cases(),
        **trace_cases(),
        **unit_cases(),
    }
    for name, data in cases.items():
        place = CORPUS / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def codec_cases() -> dict[str, bytes]:
    good = {f"codec/good-{type(message).__name__.lower()}": encode(message) for message, _ in GOLDEN}
    return good | {
        "codec/empty": b"",
        "codec/array-of-4-billion": b"\xdd\xff\xff\xff\xff\x0b",
        "codec/binary-of-4-billion": b"\x92\x14\xc6\xff\xff\xff\xff",
        "codec/map-of-4-billion": b"\xdf\xff\xff\xff\xff",
        "codec/nested-50000": b"\x91" * 50_000,
        "codec/extension-type": b"\x92\x14\xd4\x00\x00",
        "codec/timestamp": b"\x92\x14\xd6\xff\x00\x00\x00\x00",
        "codec/bool-for-int": msgpack.packb([20, True]),
        "codec/float-for-int": msgpack.packb([20, 1.0]),
        "codec/unhashable-choice": msgpack.packb([1, 1, 4, "", ["word"], -1]),
        "codec/map-for-choice": msgpack.packb([1, 1, 4, "", {"word": 1}, -1]),
        "codec/bad-utf8": b"\x92\x03\xa2\xff\xfe",
        "codec/trailing": encode(Goodbye()) + b"\x00",
        "codec/int-keyed-map": b"\x81\x01\x02",
        "codec/the-biggest-number": msgpack.packb([20, 2**64 - 1]),
    }


def arena_cases() -> dict[str, bytes]:
    def header(*geometry: int) -> bytes:
        return struct.pack("<7Q", MAGIC, *geometry, 0, 0)

    good = header(*GEOMETRY.as_ints())
    return {
        "arena/good": good.ljust(GEOMETRY.total_bytes, b"\0"),
        "arena/empty": b"",
        "arena/short": good[:20],
        "arena/header-only": good,
        "arena/no-magic": bytes(4096),
        "arena/huge": header(2**20 - 1, 2**52, 64, 2**20),
        "arena/overflowing": header(2**20 - 1, 2**63 - 2**12, 64, 2**20).ljust(8192, b"\0"),
        "arena/odd-frame-bytes": header(2, 4097, 1, 4).ljust(8192, b"\0"),
        "arena/zero-frames": header(0, 4096, 1, 4).ljust(8192, b"\0"),
    }


def store_cases() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), 1, 2, 1, stride_kib=4)
        good = (Path(folder) / "manifest.json").read_bytes()
        shard = next(Path(folder).glob("*.safetensors")).read_bytes()
    body = json.loads(good)

    def changed(**entries: object) -> bytes:
        return json.dumps({**body, **entries}).encode()

    def head(text: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if length is None else length) + text

    record = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    return {
        "manifest/good": good,
        "manifest/empty": b"",
        "manifest/no-object": b"[1]",
        "manifest/nested": b"[" * 100_000,
        "manifest/bad-utf8": b'{"schema": "\xff"}',
        "manifest/infinite": changed(num_experts=float("inf")),
        "manifest/nan-checksums": changed(checksums=[float("nan")] * 2),
        "manifest/infinite-checksums": changed(checksums=[float("inf")] * 2),
        "manifest/path-out": changed(shards=[{**body["shards"][0], "file": "../x.safetensors"}]),
        "manifest/nul-in-path": changed(shards=[{**body["shards"][0], "file": "a\0.safetensors"}]),
        "manifest/huge-number": changed(num_experts=10**400),
        "manifest/number-of-5000-digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "manifest/layers-is-a-number": changed(layers=7),
        "manifest/layout-is-null": changed(layout=None),
        "manifest/surrogate": changed(source="\ud800"),
        "safetensors/good": shard[:4096],
        "safetensors/empty": b"",
        "safetensors/short": b"\x01\x02",
        "safetensors/endless-header": head(b"{}", 2**63),
        "safetensors/no-object": head(b"[]"),
        "safetensors/no-json": head(b"{{"),
        "safetensors/nested": head(b'{"a":' * 20_000),
        "safetensors/record-is-a-number": head(b'{"a":3}'),
        "safetensors/offsets-backwards": head(record.replace(b"[0,4]", b"[4,0]")) + bytes(4),
        "safetensors/offsets-beyond": head(record.replace(b"[0,4]", b"[0,99999]")) + bytes(4),
        "safetensors/offsets-negative": head(record.replace(b"[0,4]", b"[-4,0]")) + bytes(4),
        "safetensors/offsets-are-words": head(record.replace(b"[0,4]", b'["0","4"]')) + bytes(4),
        "safetensors/shape-negative": head(record.replace(b"[4]", b"[-4]")) + bytes(4),
        "safetensors/shape-is-a-word": head(record.replace(b"[4]", b'"four"')) + bytes(4),
        "safetensors/unknown-dtype": head(record.replace(b"U8", b"Q4")) + bytes(4),
        "safetensors/dtype-is-a-list": head(record.replace(b'"U8"', b"[]")) + bytes(4),
        "safetensors/bad-utf8": head(b'{"\xff":1}'),
    }


def config_cases() -> dict[str, bytes]:
    return {
        "config/good": b'{"model_type": "olmoe"}',
        "config/empty": b"",
        "config/list": b"[]",
        "config/nested": b"[" * 100_000,
        "config/bad-utf8": b"\xff\xfe",
        "config/number-of-5000-digits": b'{"a": ' + b"9" * 5000 + b"}",
    }


def trace_cases() -> dict[str, bytes]:
    def archive(**members: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as zipped:
            for name, data in members.items():
                zipped.writestr(zipfile.ZipInfo(f"{name}.npy"), data)  # of no date: always the same bytes
        return file.getvalue()

    def array(values: object) -> bytes:
        file = io.BytesIO()
        np.save(file, np.asarray(values), allow_pickle=True)
        return file.getvalue()

    def encrypted(data: bytes) -> bytes:
        """Every member claims to be: bit 0 of the flags, locally and in the directory."""
        changed = bytearray(data)
        for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = changed.find(mark)
            while place >= 0:
                changed[place + flags] |= 1
                place = changed.find(mark, place + 4)
        return bytes(changed)

    experts = array(np.zeros((3, 2, 1), np.int16))
    meta = array(np.frombuffer(b'{"n_experts": 4}', np.uint8))
    good = archive(experts=experts, meta=meta)
    return {
        "trace/good": good,
        "trace/empty": b"",
        "trace/no-zip": b"PK\x03\x04 and nothing",
        "trace/cut": good[: len(good) // 2],
        "trace/pickle": archive(experts=array(np.array([{}], object)), meta=meta),
        "trace/deep-header": archive(experts=b"\x93NUMPY\x01\x00\xff\x0f" + b"(" * 4095),
        "trace/huge-shape": archive(experts=experts.replace(b"(3, 2, 1)", b"(3, 2, 99999999)"), meta=meta),
        "trace/negative-shape": archive(experts=experts.replace(b"(3, 2, 1)", b"(-3,2, 1)"), meta=meta),
        "trace/encrypted": encrypted(good),
        "trace/no-meta": archive(experts=experts),
        "trace/nested-meta": archive(experts=experts, meta=array(np.frombuffer(b"[" * 50_000, np.uint8))),
    }


def unit_cases() -> dict[str, bytes]:
    texts = (
        "40MB/s",
        "1.5GiB",
        "4096",
        "",
        "-1",
        "1e9",
        "٣MB",
        "9" * 400,
        "9" * 5000 + "GB/s",
        "NaN",
        "0/s",
        "1//s",
    )
    return {f"units/{number}": text.encode() for number, text in enumerate(texts)}


if __name__ == "__main__":
    main()
