"""Checked: a policy whose answers are held to the contract, as the live slot table holds them.

For a user's own in a replay, which trusts the policies that are shipped. Knows who is resident
from what the policy itself is told.
"""

from collections.abc import Container, Sequence
from typing import cast

from compute.policies.base import AdmissionPolicy, EvictionPolicy, FloatArray
from compute.policies.contract import choose_admitted, choose_victims


class Checked:
    """Passes everything on to `policy`. Raises ValueError where it names an expert that it must not."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.needs_probs = policy.needs_probs
        self.needs_whole_probs = getattr(policy, "needs_whole_probs", False)
        self._policy = policy
        self._resident: set[int] = set()
        if hasattr(policy, "on_step"):
            self.on_step = policy.on_step
        if hasattr(policy, "choose_admitted"):
            self._admission = cast(AdmissionPolicy, policy)
            self.choose_admitted = self._choose_admitted

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._policy.begin_pass(num_tokens, is_new_sequence)

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        self._policy.on_access(layer, keys, probs)

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._resident.add(key)
        self._policy.on_insert(key, is_speculative)

    def on_evict(self, key: int) -> None:
        self._resident.remove(key)
        self._policy.on_evict(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        return choose_victims(self._policy, count, self._residents_in(held), self._resident)

    def _choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        return choose_admitted(self._admission, missing, num_free, self._residents_in(held))

    def _residents_in(self, held: Container[int]) -> set[int]:
        return {key for key in self._resident if key in held}
