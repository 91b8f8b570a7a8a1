"""Advice: which policy, how many slots and how far to look ahead, and why. Pure: figures in, words out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from compute.policies import KNOWN, OFFLINE
from compute.timing_model import Link, Moved, timing

#: Hit rates nearer than this are equal: the policy that KNOWN names first, the simpler one, is taken.
TIE = 0.001
#: A prefetch that could not gain more than this is not worth its wrong guesses.
LEAST_GAIN = 1.05
#: A longer lookahead must gain more than this.
WORTH_A_LAYER = 1.01
#: Layers ahead beyond which the gate guesses too much.
FARTHEST = 4


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache that is asked about, in a model of `num_layers` x `num_experts` that uses `top_k`."""

    num_layers: int
    num_experts: int
    top_k: int
    slots: int

    @property
    def num_keys(self) -> int:
        return self.num_layers * self.num_experts


@dataclass(frozen=True, slots=True)
class Seen:
    """How much was replayed."""

    num_tokens: int
    num_steps: int
    num_lookups: int


@dataclass(frozen=True, slots=True)
class Advice:
    """What to pass to `sidestage run`, and the reason in one sentence."""

    capacity: float
    slots: int
    policy: str
    lookahead: int
    reason: str

    def as_json(self) -> dict[str, str | int | float]:
        return asdict(self)


def advise(
    cache: Cache,
    hit_rates: Mapping[str, float],
    seen: Seen,
    link: Link | None,
    rate_of: Mapping[int, float] | None = None,
) -> Advice:
    """From each policy's hit rate in a replay of what was `seen`.

    `rate_of`: the best policy's modelled tokens per second by lookahead, 0 among them, where
    prefetch was replayed.

    Raises ValueError where no policy is one that a run can use.
    """
    policy = best_policy(hit_rates)
    num_misses = round((1 - hit_rates[policy]) * seen.num_lookups)
    missed = Moved(seen.num_tokens, seen.num_steps, num_misses)
    lookahead, why = _lookahead(cache, missed, link) if rate_of is None else _fastest(rate_of)
    reason = f"{_why_policy(policy, hit_rates, cache)}, and {why}"
    return Advice(cache.slots / cache.num_keys, cache.slots, policy, lookahead, reason)


def best_policy(hit_rates: Mapping[str, float]) -> str:
    """The one that hits most, of those that a run can use. Raises ValueError when there is none."""
    usable = {name: rate for name, rate in hit_rates.items() if name not in OFFLINE}
    if not usable:
        raise ValueError("none of the policies is one that a run can use: name lru, or all")
    names = list(KNOWN)
    order = sorted(usable, key=lambda name: names.index(name) if name in names else len(names))
    best = max(usable.values())
    return next(name for name in order if usable[name] >= best - TIE)


def _why_policy(policy: str, hit_rates: Mapping[str, float], cache: Cache) -> str:
    rate = hit_rates[policy]
    others = [
        f"{name} {hit_rates[name]:.1%}" for name in ("lru", "belady") if name in hit_rates and name != policy
    ]
    beside = f" ({', '.join(others)})" if others else ""
    if cache.slots == cache.num_keys:
        return f"with a slot for every expert each policy hits {rate:.1%}"
    usable = sum(name not in OFFLINE for name in hit_rates)
    best = max(hit_rates[name] for name in hit_rates if name not in OFFLINE)
    first = f"of the {usable} policies replayed {policy} hits most" if usable > 1 else f"{policy} hits"
    if usable > 1 and best > rate:
        first = f"none of the {usable} policies replayed hits clearly more than {policy}"
    return f"{first} with {cache.slots} of {cache.num_keys} slots, {rate:.1%}{beside}"


def _lookahead(cache: Cache, missed: Moved, link: Link | None) -> tuple[int, str]:
    """How many layers to look ahead, and why."""
    if cache.slots == cache.num_keys:
        return 0, "there is nothing to prefetch"
    if cache.slots <= cache.top_k:
        return 0, f"prefetch needs more slots than the {cache.top_k} that a token uses at once"
    if link is None:
        return 1, "one layer ahead is where the gate sees best (a stated --link would say more)"
    times = timing(missed, link)
    gain = times.serial_s / times.bound_s if times.bound_s > 0 else 1.0
    if gain < LEAST_GAIN:
        what = "the link is the limit" if times.bound_s > times.total_s - times.stall_s else "stalls are rare"
        return 0, f"{what}: looking ahead could gain {gain - 1:.0%} at most"
    if times.bound_s > times.total_s - times.stall_s:
        return (
            1,
            f"the link is the limit: prefetch can hide no more than the compute, a gain of {gain - 1:.0%}",
        )
    wanted = math.ceil(link.blob_s / link.layer_s)
    lookahead = max(1, min(wanted, FARTHEST, cache.num_layers - 1))
    layers = "layer" if lookahead == 1 else "layers"
    return lookahead, (
        f"an expert takes {link.blob_s * 1e6:.0f} us over the link and a layer computes {link.layer_us:.0f}: "
        f"{lookahead} {layers} ahead can hide it, for a gain of up to {gain - 1:.0%}"
    )


def _fastest(rate_of: Mapping[int, float]) -> tuple[int, str]:
    """The shortest lookahead of those that are as good as the fastest."""
    best = min(ahead for ahead, rate in rate_of.items() if rate * WORTH_A_LAYER >= max(rate_of.values()))
    others = ", ".join(f"{rate:.1f} with {ahead}" for ahead, rate in rate_of.items() if ahead != best)
    return best, f"in the replay a lookahead of {best} gives {rate_of[best]:.1f} tok/s ({others})"


def mean_rates(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each policy's mean over several traces."""
    return {name: sum(each[name] for each in rates) / len(rates) for name in rates[0]}
