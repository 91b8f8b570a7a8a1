"""The summary line and the JSON object."""

import json

import pytest

from launch.summary import CONTRACT, as_json, summary_lines

RESULT: dict[str, object] = {
    **dict.fromkeys(CONTRACT, 0),
    "new_tokens": 42,
    "ttft_s": 0.5,
    "tokens_per_second": 11.8,
    "lookups": 100,
    "hits": 81,
    "late": 12,
    "misses": 7,
    "stall_s": 0.56,
    "generate_s": 4.0,
    "arrangement": "direct",
    "slots": 48,
    "policy": "lru",
    "lookahead": 1,
    "prefetch_issued": 10,
    "prefetch_used": 6,
    "bytes_read": 2**20,
}


def test_the_summary_tells_what_one_wants_to_know() -> None:
    first, second = summary_lines(RESULT)
    assert first == "42 tok, 11.8 tok/s, first after 0.50 s, experts 81% hit 12% late 7% miss, stalled 14%"
    assert second == "direct, 48 slots, lru, lookahead 1: 6 of 10 prefetches used, 1.0 MiB read"


def test_one_token_has_no_decode_rate() -> None:
    assert summary_lines({**RESULT, "new_tokens": 1, "tokens_per_second": None})[0].startswith("1 tok, first")


def test_bytes_over_a_link_are_told_where_there_is_one() -> None:
    assert summary_lines({**RESULT, "bytes_transferred": 2**21})[1].endswith("2.0 MiB over the link")


def test_json_begins_with_the_names_of_the_contract() -> None:
    names = list(json.loads(as_json({**RESULT, "seed": 3})))
    assert names[: len(CONTRACT)] == list(CONTRACT)
    assert "seed" in names


def test_a_missing_name_is_a_defect_and_not_silence() -> None:
    with pytest.raises(KeyError):
        as_json({name: 0 for name in CONTRACT if name != "hits"})
