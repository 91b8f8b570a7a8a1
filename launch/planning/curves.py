"""Hit-rate curves: how often LRU finds an expert in its slot, by the fraction of experts with a slot.

Shipped ones were derived from recorded routing by `python -m launch.planning.curves TYPE=TRACE...`,
which prints the file anew. A model without a curve of its own gets the most similar model's.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

#: Fractions of the experts at which a curve is kept.
POINTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """Hit rates at each `capacity`, rising; `num_tokens` were recorded. `name` is for people.

    `cold` counts an expert's very first use, which every cache misses, as a miss; `warm` does not
    count it at all. What a long run sees lies between them; a long trace tells them hardly apart.
    """

    name: str
    model_type: str
    num_layers: int
    num_experts: int
    top_k: int
    num_tokens: int
    capacity: tuple[float, ...]
    cold: tuple[float, ...]
    warm: tuple[float, ...]

    def at(self, fraction: float) -> tuple[float, float]:
        """(cold, warm) when that fraction of the experts has a slot, interpolated; nothing hits at 0."""
        places = (0.0, *self.capacity)
        cold, warm = (float(np.interp(fraction, places, (0.0, *rates))) for rates in (self.cold, self.warm))
        return cold, warm


def shipped_curves() -> list[Curve]:
    """Those that were measured."""
    text = files("launch.planning").joinpath("curves.json").read_text(encoding="utf-8")
    return [_curve(entry) for entry in json.loads(text)]


def _curve(entry: dict[str, Any]) -> Curve:
    rates = {name: tuple(entry[name]) for name in ("capacity", "cold", "warm")}
    return Curve(**{**entry, **rates})


def most_similar(curves: Sequence[Curve], model_type: str, num_experts: int, top_k: int) -> Curve:
    """The curve of a model of the same type, else of the nearest share and number of experts."""

    def distance(curve: Curve) -> tuple[bool, float]:
        share = math.log(curve.top_k / curve.num_experts) - math.log(top_k / num_experts)
        number = math.log(curve.num_experts) - math.log(num_experts)
        return curve.model_type != model_type, abs(share) + abs(number)

    return min(curves, key=distance)


def curve_of(trace: str, model_type: str) -> Curve:
    """The curve of a recorded trace. Raises ValueError with a sentence."""
    from compute.layer_steps import layer_steps
    from compute.replay import replay
    from compute.stack_distance import stack_distances
    from compute.trace_file import read

    recorded = read(Path(trace))
    steps = layer_steps(recorded)
    distances = stack_distances(steps)
    num_keys = steps.num_layers * steps.num_experts
    warm = max(distances.num_lookups - distances.num_cold, 1)
    capacity, num_hits = [], []
    for point in POINTS:
        slots = max(round(point * num_keys), steps.top_k)
        exact = slots >= distances.least_slots
        hits = distances.hits(slots) if exact else replay(steps, "lru", slots).hits
        capacity.append(round(slots / num_keys, 5))
        num_hits.append(hits)
    return Curve(
        name=Path(trace).stem,
        model_type=model_type,
        num_layers=steps.num_layers,
        num_experts=steps.num_experts,
        top_k=steps.top_k,
        num_tokens=recorded.num_tokens,
        capacity=tuple(capacity),
        cold=tuple(round(hits / distances.num_lookups, 4) for hits in num_hits),
        warm=tuple(round(min(hits / warm, 1.0), 4) for hits in num_hits),
    )


def main(traces: Sequence[str]) -> None:
    """Print the file of the shipped curves, a line each, from `TYPE=TRACE` for each of them."""
    named = [trace.partition("=") for trace in traces]
    lines = ",\n".join(json.dumps(asdict(curve_of(path, kind))) for kind, _, path in named)
    sys.stdout.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
