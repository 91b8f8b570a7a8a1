"""Look ahead: after a layer-step, what is worth being fetched for the layers to come.

The predictor names experts, the planner says for how many there is room. Asks for nothing itself.
"""

from compute.predictors.base import Predictor
from compute.predictors.combined import Combined
from compute.predictors.gate import GateLookahead
from compute.predictors.scored import Score, Scored
from compute.prefetch import Plan, PrefetchPlanner
from compute.residency import Residency
from protocol.manifest import Manifest


class LookAhead:
    """Owns `predictor`, scored. `gate`: the one in it that asks the routers of later layers, if any."""

    def __init__(
        self, predictor: Predictor, planner: PrefetchPlanner, residency: Residency, manifest: Manifest
    ) -> None:
        self.gate = gate_in(predictor)
        self._predictor = Scored(predictor)
        self._planner = planner
        self._residency = residency
        self._manifest = manifest

    @property
    def name(self) -> str:
        return self._predictor.name

    @property
    def lookahead(self) -> int:
        return self._predictor.lookahead

    @property
    def score(self) -> Score:
        return self._predictor.score

    @property
    def notices(self) -> list[str]:
        """What cannot be predicted, and why nothing is prefetched."""
        reason = self._planner.idle_reason(self._residency)
        return [*self._predictor.notices, reason] if reason else list(self._predictor.notices)

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._predictor.begin_pass(num_tokens, is_new_sequence)

    def plan(self, layer: int, keys: list[int], clock: int) -> Plan | None:
        """For the layers after `layer`, whose step `clock` uses `keys`; None for nothing."""
        if self._residency.num_used == self._manifest.num_keys:
            return None
        first_key = layer * self._manifest.num_experts
        chosen = [key - first_key for key in keys]
        self._predictor.observe(layer, chosen)
        if not self._planner.may_ask(self._residency, clock):
            return None
        predictions = self._predictor.predict(layer, None, chosen)
        return self._planner.plan(predictions, layer, clock, self._residency) if predictions else None

    def close(self) -> None:
        self._predictor.close()


def gate_in(predictor: Predictor | None) -> GateLookahead | None:
    """The gate among the predictors of a spec."""
    members = predictor.predictors if isinstance(predictor, Combined) else [predictor]
    return next((member for member in members if isinstance(member, GateLookahead)), None)
