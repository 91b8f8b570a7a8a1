"""llru: of the oldest pass, the layer that is visited farthest in the future leaves first.

Rule: Cache Management for MoE (arXiv 2509.02408). Reconstructed from its description: the pass of
the last use first, then the layer's distance ahead of the one under way, then the order of use.
"""

from collections.abc import Container, Iterator, Sequence

from compute.policies.base import CacheShape, FloatArray


class Llru:
    needs_probs = False

    def __init__(self, shape: CacheShape) -> None:
        self._num_layers = shape.num_layers
        self._num_experts = shape.num_experts
        self._layer = 0
        self._pass = 0
        #: pass of the last use -> layer -> keys; ascending by pass, as passes only go forward.
        self._passes: dict[int, dict[int, dict[int, None]]] = {}
        self._pass_of: dict[int, int] = {}

    # --- observing ---------------------------------------------------------------------------

    def begin_pass(self, num_tokens: int, is_new_sequence: bool) -> None:
        self._pass += 1

    def on_step(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        self._layer = layer

    def on_access(self, layer: int, keys: Sequence[int], probs: FloatArray | None) -> None:
        for key in keys:
            if key in self._pass_of:
                self._take(key)
                self._put(key)

    def on_insert(self, key: int, is_speculative: bool) -> None:
        self._put(key)

    def on_evict(self, key: int) -> None:
        self._take(key)

    # --- asking ------------------------------------------------------------------------------

    def choose_victims(self, count: int, held: Container[int]) -> list[int]:
        victims: list[int] = []
        for key in self._in_turn():
            if key not in held:
                victims.append(key)
                if len(victims) == count:
                    break
        return victims

    def _in_turn(self) -> Iterator[int]:
        for layers in self._passes.values():
            for layer in sorted(layers, key=self._distance, reverse=True):
                yield from layers[layer]

    def _distance(self, layer: int) -> int:
        """Layer-steps until `layer` is visited again, a whole round for the one under way."""
        return (layer - self._layer - 1) % self._num_layers

    # --- edges -------------------------------------------------------------------------------

    def _put(self, key: int) -> None:
        layers = self._passes.setdefault(self._pass, {})
        layers.setdefault(key // self._num_experts, {})[key] = None
        self._pass_of[key] = self._pass

    def _take(self, key: int) -> None:
        number = self._pass_of.pop(key)
        layers, layer = self._passes[number], key // self._num_experts
        del layers[layer][key]
        if not layers[layer]:
            del layers[layer]
            if not layers:
                del self._passes[number]
