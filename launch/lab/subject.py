"""A trace as `simulate` sees it: its sizes, and what is settled about it before it is replayed."""

from dataclasses import dataclass
from pathlib import Path

from compute.budget import NUM_TRANSIT
from compute.layer_steps import LayerSteps, layer_steps
from compute.replay import Scope, num_slots_of
from compute.timing_model import Link
from compute.trace_file import read
from launch.lab.advice import Cache, Seen
from launch.lab.config import DEFAULT_CAPACITIES, SimulateConfig
from protocol.units import format_size


@dataclass(frozen=True, slots=True)
class Subject:
    """One trace. `capacities` are the fractions to replay, `link` None when none was stated."""

    path: Path
    num_layers: int
    num_experts: int
    top_k: int
    seen: Seen
    capacities: tuple[float, ...]
    link: Link | None
    has_whole_probs: bool

    @property
    def label(self) -> str:
        return self.path.stem

    @property
    def words(self) -> str:
        """What it is, in one line."""
        return (
            f"{self.label}: {self.seen.num_tokens} tokens, {self.num_layers} layers of {self.num_experts} "
            f"experts, top {self.top_k}"
        )

    def cache(self, slots: int) -> Cache:
        return Cache(self.num_layers, self.num_experts, self.top_k, slots)


def subject_of(trace: str, config: SimulateConfig) -> Subject:
    """Read the trace, and check what `config` asks of it. Raises ValueError with a sentence."""
    whole = read(Path(trace))
    steps = layer_steps(whole if config.tokens is None else whole.first(config.tokens))
    blob_bytes = config.blob_bytes or _positive(whole.meta.get("expert_bytes"))
    capacities = config.capacities or DEFAULT_CAPACITIES
    if config.ram is not None:
        capacities = (_capacity_of(config.ram, _needed(blob_bytes, "--ram", trace), steps),)
    for capacity in capacities:
        _check_slots(capacity, steps, Scope(config.scope), trace)
    link = None
    if config.link is not None and config.layer_us is not None:
        link = Link(config.link, _needed(blob_bytes, "--link", trace), config.layer_us)
    return Subject(
        path=Path(trace),
        num_layers=steps.num_layers,
        num_experts=steps.num_experts,
        top_k=steps.top_k,
        seen=Seen(steps.trace.num_tokens, len(steps.layer), steps.num_lookups),
        capacities=capacities,
        link=link,
        has_whole_probs=steps.has_whole_probs,
    )


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _needed(blob_bytes: int | None, option: str, trace: str) -> int:
    if blob_bytes is None:
        raise ValueError(
            f"{option} needs --blob-bytes SIZE, the size of one expert: trace {trace} does not say it"
        )
    return blob_bytes


def _capacity_of(ram: int, blob_bytes: int, steps: LayerSteps) -> float:
    """The fraction of the experts that a run with `--ram` gives slots: some are for those who pass."""
    num_keys = steps.num_layers * steps.num_experts
    room = ram // blob_bytes
    slots = num_keys if room >= num_keys else room - NUM_TRANSIT
    if slots < steps.top_k:
        raise ValueError(
            f"--ram {format_size(ram)} holds {room} experts of {format_size(blob_bytes)}; a token uses "
            f"{steps.top_k} at once and {NUM_TRANSIT} places are for experts that pass: pass a larger --ram"
        )
    return slots / num_keys


def _check_slots(capacity: float, steps: LayerSteps, scope: Scope, trace: str) -> None:
    slots = num_slots_of(capacity, steps, scope)
    if slots < steps.top_k:
        whose = "" if scope is Scope.GLOBAL else " for each layer"
        raise ValueError(
            f"--capacity {capacity:g} of trace {trace} is {slots} slots{whose}, but a token uses "
            f"{steps.top_k} experts at once: pass a larger --capacity"
        )
