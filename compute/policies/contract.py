"""The contract between a slot table and its policy, checked where the policy answers.

A policy may be a user's own: what it answers is used only when it is what was asked for.
"""

from collections.abc import Sequence, Set

from compute.policies.base import AdmissionPolicy, EvictionPolicy


def choose_victims(policy: EvictionPolicy, count: int, held: Set[int], resident: Set[int]) -> list[int]:
    """Up to `count` of `resident` outside `held`. Raises ValueError when the policy names others."""
    victims = policy.choose_victims(count, held)
    distinct = set(victims)
    is_legal = len(distinct) == len(victims) <= count and held.isdisjoint(distinct)
    if not is_legal or not distinct <= resident:
        raise ValueError(
            f"{type(policy).__name__}.choose_victims named {victims} when asked for {count}: "
            f"it must name up to {count} distinct resident experts outside `held`"
        )
    return victims


def choose_admitted(
    policy: AdmissionPolicy, missing: Sequence[int], num_free: int, held: Set[int]
) -> list[int]:
    """Those of `missing` that shall get a slot. Raises ValueError when the policy names others."""
    admitted = policy.choose_admitted(missing, num_free, held)
    distinct = set(admitted)
    if len(distinct) < len(admitted) or not distinct.issubset(missing):
        raise ValueError(
            f"{type(policy).__name__}.choose_admitted named {admitted} out of {missing}: "
            "it must name distinct experts of those"
        )
    return admitted
