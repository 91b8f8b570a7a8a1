"""Stage: one MoE layer-step after the other, from routed rows to combined outputs.

Owns the order of things within a step and the running clock, nothing else: the supply gets
experts to where they can be computed, the kernel computes them, predictor and planner look
ahead. What it answers never depends on timing, order of arrival, slots, policy or prefetch.
"""

import time
from collections.abc import Callable

from torch import Tensor, nn

from compute.beside.beside import Beside
from compute.hit_path import HitPath
from compute.kernels.base import ExpertKernel, GroupKernel
from compute.look_ahead import LookAhead
from compute.policies.base import FloatArray
from compute.residency import Access, Residency
from compute.router_probs import RouterProbs
from compute.rows import Rows, group
from compute.stage_figures import Figures, StageFigures
from compute.supply import Supply
from compute.transports.base import AddressedTransport, Transport
from compute.undivided import Undivided
from protocol.errors import LoaderLostError, StoreError
from protocol.manifest import Manifest
from protocol.timeline import Timeline

#: (layer, index [T, K], weights [T, K], the router's distribution [T, num_experts] or None)
Observer = Callable[[int, Tensor, Tensor, Tensor | None], None]


class Stage:
    """Runs the MoE layers of one model. Called from one thread at a time.

    `observers` are called in each layer-step; they see the router's distribution where
    `router_probs` is set. An error of loader or store is final: it is repeated from then on.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        residency: Residency,
        transport: Transport,
        kernel: ExpertKernel,
        look_ahead: LookAhead | None = None,
        timeline: Timeline | None = None,
        router_probs: RouterProbs | None = None,
        policy_name: str = "",
    ) -> None:
        _check_transit(manifest, residency, transport)
        self.observers: list[Observer] = []
        #: (layer, number of tokens) of each layer-step, when it is over
        self.listeners: list[Callable[[int, int], None]] = []
        #: Takes small layer-steps, unless somebody observes, and lets the device run them by itself.
        self.beside: Beside | None = None
        #: A layer-step: residency, transport and policy agree before and after it.
        self.undivided = Undivided()
        self.router_probs = router_probs
        self._manifest = manifest
        self._residency = residency
        self._transport = transport
        self._kernel = kernel
        self._group_kernel = kernel if isinstance(kernel, GroupKernel) else None
        self._hit_path: HitPath | None = None
        if isinstance(kernel, GroupKernel) and isinstance(transport, AddressedTransport) and not timeline:
            self._hit_path = HitPath(kernel, transport)
        self._ahead = look_ahead
        self._timeline = timeline
        self.supply = Supply(residency, transport, timeline)
        policy_name = policy_name or type(residency.policy).__name__
        self._figures = StageFigures(
            manifest, residency, self.supply, transport, look_ahead, kernel.name, policy_name
        )
        self._pass_number = 0
        self._clock = 0
        self._failure: LoaderLostError | StoreError | None = None

    # --- a pass and its layers ----------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        """A forward pass over `num_tokens` tokens (of all sequences of a batch) begins."""
        self._check_sound()
        with self.undivided:
            self._begin_pass(num_tokens, is_new_sequence)

    def _begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._pass_number += 1
        if self.beside:
            clock = self._pass_number * self._manifest.num_layers
            self.beside.begin_pass(clock, num_tokens, is_new_sequence)
        else:
            self.note_pass(num_tokens, is_new_sequence)

    def note_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        """Tell policy and predictor that the steps of another pass follow."""
        self._residency.policy.begin_pass(num_tokens, is_new_sequence)
        if self._ahead:
            self._ahead.begin_pass(num_tokens, is_new_sequence)

    def tell(self, layer: int, num_tokens: int) -> None:
        """A layer-step is over."""
        for listen in self.listeners:
            listen(layer, num_tokens)

    def run_layer(
        self, module: nn.Module, layer: int, hidden: Tensor, index: Tensor, weights: Tensor
    ) -> Tensor:
        """hidden [T, H], index int64 [T, K], weights [T, K] -> [T, H], in hidden's dtype.

        Raises ModelError for an index that is no expert, LoaderLostError, StoreError.
        """
        if not len(hidden):
            return hidden
        self._check_sound()
        try:
            with self.undivided:
                return self._run(module, layer, hidden, index, weights)
        except (LoaderLostError, StoreError) as error:
            self._failure = error
            raise

    def _check_sound(self) -> None:
        """Raise again what was final."""
        if self._failure:
            raise type(self._failure)(*self._failure.args) from self._failure
        self.supply.check_whole()

    def _run(self, module: nn.Module, layer: int, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The device's way, the short way for one token whose experts are all there, else the long way."""
        if self.beside:
            if self.beside.takes(len(index)):
                if self.beside.is_over(layer):  # an inner module of the model was called by itself
                    self._begin_pass(len(index), is_new_sequence=False)
                return self.beside.run_layer(module, layer, hidden, index, weights)
            self.beside.catch_up()
        self._clock = self._pass_number * self._manifest.num_layers + layer
        probs = None
        if self.router_probs and self._residency.policy.needs_probs:
            probs = self.router_probs.mean(layer)
        self.supply.settle_arrivals(self._clock)
        if self._hit_path and len(index) == 1:
            combined = self._run_hits(self._hit_path, module, layer, hidden, index, weights, probs)
            if combined is not None:
                return combined
        return self._run_any(module, layer, hidden, index, weights, probs)

    def _run_hits(
        self,
        hit_path: HitPath,
        module: nn.Module,
        layer: int,
        hidden: Tensor,
        index: Tensor,
        weights: Tensor,
        probs: FloatArray | None,
    ) -> Tensor | None:
        """[1, H]; None, with nothing done, unless the token's experts are distinct and resident."""
        num_experts = self._manifest.num_experts
        chosen = index.numpy()[0] + layer * num_experts
        slots = self._residency.slots_of(chosen)
        if slots is None:
            return None
        keys = sorted(chosen.tolist())
        is_sound = layer * num_experts <= keys[0] and keys[-1] < (layer + 1) * num_experts
        if not is_sound or len(set(keys)) < len(keys):
            return None
        self.supply.hit(layer, keys, self._clock, probs)
        self._look_ahead(layer, keys)
        combined = hit_path.run(module, slots, hidden, weights)
        self._show(layer, index, weights)
        return combined

    def _run_any(
        self,
        module: nn.Module,
        layer: int,
        hidden: Tensor,
        index: Tensor,
        weights: Tensor,
        probs: FloatArray | None,
    ) -> Tensor:
        """Ask for what is missing, look ahead while it flies, compute what is there, then what lands.

        A call of a kernel costs as much as a small expert: what landed during the look ahead joins the hits.
        """
        started_ns = time.monotonic_ns() if self._timeline else 0
        num_experts = self._manifest.num_experts
        rows = group(hidden, index, weights, layer * num_experts, num_experts)
        access, delivery = self.supply.request(layer, rows, self._clock, probs)
        self._look_ahead(layer, rows.keys)
        self._compute(module, rows, access.hits + self.supply.collect(delivery), hidden, weights)
        for there in self.supply.deliver(delivery):
            self._compute(module, rows, there, hidden, weights)
        self._show(layer, index, weights)
        combined = rows.combine()
        if self._timeline:
            self._note_step(self._timeline, started_ns, layer, access)
        return combined

    def _look_ahead(self, layer: int, keys: list[int]) -> None:
        """Prefetch for the layers to come, as far as there is room for guesses."""
        if self._ahead and (plan := self._ahead.plan(layer, keys, self._clock)):
            self.supply.guess(plan, keys, self._clock)

    def _compute(
        self, module: nn.Module, rows: Rows, there: list[tuple[int, int]], hidden: Tensor, weights: Tensor
    ) -> None:
        """Run the experts of the (key, slot) pairs `there`: in one call, if the kernel can."""
        if not there:
            return
        if self._timeline:
            self._note_uses(self._timeline, [slot for _, slot in there])
        blob = self._transport.blob
        if self._group_kernel:
            first, places = rows.places([key for key, _ in there])
            addresses = [blob(slot).data_ptr() for _, slot in there]
            self._group_kernel.run_group(module, addresses, first, places, hidden, weights, rows.weighted())
            return
        for key, slot in there:
            rows.put(key, self._kernel(module, blob(slot), rows.of(key)))

    def _show(self, layer: int, index: Tensor, weights: Tensor) -> None:
        if self.observers:
            probs = self.router_probs.of_tokens(layer) if self.router_probs else None
            for observe in self.observers:
                observe(layer, index, weights, probs)
        self.tell(layer, len(index))

    # --- telling ------------------------------------------------------------------------------

    @property
    def notices(self) -> list[str]:
        """Sentences for the user: what cannot be predicted, and why nothing is prefetched."""
        return self._ahead.notices if self._ahead else []

    def report(self) -> Figures:
        """The counters of everything that ran so far, by their names in the JSON contract."""
        told = self.beside.report() if self.beside else {}
        clock = max(self._clock, self.beside.clock) if self.beside else self._clock
        return {**self._figures.report(clock, self._num_fetched), **told}

    def tally(self) -> dict[str, int]:
        """The counters that are here, by name: nobody is asked, nothing is waited for."""
        return self._figures.tally(self._pass_number, self._num_fetched)

    @property
    def _num_fetched(self) -> int:
        return self.beside.num_fetched if self.beside else 0

    def follow(self) -> None:
        """Count what the device has done by itself until now. Never waits."""
        if self.beside and self.supply.is_whole:
            with self.undivided:
                self.beside.follow()

    def resident_keys(self) -> set[int]:
        """Who is in a slot."""
        return self._residency.resident_keys()

    def close(self) -> None:
        """Let go of the model, and give every expert back. Idempotent."""
        if self._ahead:
            self._ahead.close()
        if self.router_probs:
            self.router_probs.close()
        self._transport.close()

    def _note_uses(self, timeline: Timeline, slots: list[int]) -> None:
        """The arrow that began with a landed expert's fetch ends at its first use."""
        for slot in self.supply.newly_landed.intersection(slots):
            self.supply.newly_landed.discard(slot)
            flow_id = self._transport.flow_of(slot)
            if flow_id is not None:
                timeline.flow("f", flow_id, "experts", time.monotonic_ns())

    def _note_step(self, timeline: Timeline, started_ns: int, layer: int, access: Access) -> None:
        num_misses = len(access.admitted) + len(access.passing)
        counts = {"hits": len(access.hits), "late": len(access.late), "misses": num_misses}
        timeline.span(
            f"layer {layer}", "experts", started_ns, time.monotonic_ns(), step=self._clock, **counts
        )


def _check_transit(manifest: Manifest, residency: Residency, transport: Transport) -> None:
    if residency.num_slots < manifest.num_keys and transport.num_transit < 1:
        raise ValueError(
            f"{residency.num_slots} slots for {manifest.num_keys} experts and no transit slot: "
            "at least 1 is needed for layer-steps that use more experts than there are slots"
        )
