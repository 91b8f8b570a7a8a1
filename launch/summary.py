"""What a run did, for people and for scripts. Pure: a result in, lines or JSON out."""

import json
from collections.abc import Mapping

from protocol.units import format_size

Result = Mapping[str, object]

#: Names that scripts rely on, in this order; further ones follow.
CONTRACT = (
    "text",
    "token_ids",
    "prompt_tokens",
    "new_tokens",
    "ttft_s",
    "tokens_per_second",
    "lookups",
    "hits",
    "late",
    "misses",
    "hit_rate",
    "prefetch_issued",
    "prefetch_used",
    "prefetch_wasted_bytes",
    "miss_recall",
    "stall_s",
    "bytes_read",
    "bytes_transferred",
    "evictions",
    "arrangement",
    "arrangement_reason",
    "policy",
    "predictor",
    "lookahead",
    "slots",
    "frames",
    "bits",
    "model_type",
    "expert_bytes_total",
    "compute_parameter_bytes",
)

_HOW_READ = {"direct": " straight from disk", "page cache": " through the page cache"}


def as_json(result: Result) -> str:
    """One JSON object on one line. Raises KeyError when a name of the contract is missing."""
    ordered = {name: result[name] for name in CONTRACT}
    return json.dumps({**ordered, **result})


def summary_lines(result: Result) -> list[str]:
    """Two lines: what one wants to know, and what it rests on."""
    return [status_line(result), _traffic(result)]


def status_line(result: Result) -> str:
    """`42 tok, 11.8 tok/s, first after 0.10 s, experts 81% hit 12% late 7% miss, stalled 14%`."""
    return ", ".join([_speed(result), experts_shares(result), _stall(result)])


def _speed(result: Result) -> str:
    rate = _number(result, "tokens_per_second")
    ttft = _number(result, "ttft_s")
    speed = f", {rate:.1f} tok/s" if rate else ""
    first = f", first after {ttft:.2f} s" if ttft is not None else ""
    return f"{result['new_tokens']} tok{speed}{first}"


def experts_shares(result: Result) -> str:
    """`experts 81% hit 12% late 7% miss`."""
    lookups = _number(result, "lookups")
    if not lookups:
        return "no experts asked for"
    shares = [(name, (_number(result, name) or 0) / lookups) for name in ("hits", "late", "misses")]
    words = {"hits": "hit", "late": "late", "misses": "miss"}
    return "experts " + " ".join(f"{share:.0%} {words[name]}" for name, share in shares)


def _stall(result: Result) -> str:
    seconds = _number(result, "generate_s")
    share = (_number(result, "stall_s") or 0) / seconds if seconds else 0
    return f"stalled {share:.0%}"


def _traffic(result: Result) -> str:
    issued = _number(result, "prefetch_issued") or 0
    used = _number(result, "prefetch_used") or 0
    prefetch = f"{used:.0f} of {issued:.0f} prefetches used" if issued else "no prefetch"
    moved = _number(result, "bytes_transferred") or 0
    link = f", {format_size(moved)} over the link" if moved else ""
    chosen = f"{result['arrangement']}, {result['slots']} slots, {result['policy']}"
    how = _HOW_READ.get(str(result.get("reads")), "")
    read = format_size(_number(result, "bytes_read") or 0)
    return f"{chosen}, lookahead {result['lookahead']}: {prefetch}, {read} read{how}{link}"


def _number(result: Result, name: str) -> float | None:
    value = result.get(name)
    return value if isinstance(value, int | float) else None
