"""How a checkpoint's tensors become one expert's: transformers' own mapping, restricted to one expert.

The only file that touches that mapping, which is public in its modules but not documented: a test
compares every architecture with what transformers itself loads. Holds no tensor between calls.
"""

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from loader.anatomy import Anatomy
from loader.tensors import TensorEntry, TensorReader
from protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class Recipe:
    """What feeds `target`, a full parameter name: tensors by source pattern, experts ascending.

    A pattern has one tensor for each expert, or one tensor of them all. Without a converter the
    tensor is only renamed. A converter may make further parameters of the same module.
    """

    target: str
    converter: WeightConverter | None
    entries: dict[str, list[TensorEntry]] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        if self.converter is None:
            return [self.target]
        first, *others = self.converter.target_patterns
        return [self.target, *(self.target.replace(first, other) for other in others)]

    @property
    def dtypes(self) -> set[str]:
        return {entry.dtype for entries in self.entries.values() for entry in entries}

    def check(self, num_experts: int) -> None:
        """Raise ModelError unless every expert can be told from the others."""
        for entries in self.entries.values():
            is_fused = len(entries) == 1 and entries[0].shape[:1] == (num_experts,)
            if len(entries) != num_experts and not is_fused:
                raise ModelError(
                    f"{self.target} has {num_experts} experts in the model, but the checkpoint holds "
                    f"{len(entries)} tensors like {entries[0].name}: weights and config.json differ"
                )

    def cook(self, reader: TensorReader, expert: int, anatomy: Anatomy) -> dict[str, torch.Tensor]:
        """[1, ...] by full parameter name: what the model's parameter holds for this expert."""
        count = anatomy.num_experts
        picked = {
            pattern: self._pick(reader, found, expert, count) for pattern, found in self.entries.items()
        }
        if self.converter is None:
            (tensor,) = picked.values()
            return {self.target: tensor}
        converter = deepcopy(self.converter)
        for pattern, tensor in picked.items():
            converter.add_tensor(
                self.target, self.entries[pattern][0].name, pattern, lambda tensor=tensor: tensor
            )
        cooked = converter.convert(self.target, model=anatomy.model, config=anatomy.model.config)
        return {name: made[0] if isinstance(made, list) else made for name, made in cooked.items()}

    @staticmethod
    def _pick(
        reader: TensorReader, entries: list[TensorEntry], expert: int, num_experts: int
    ) -> torch.Tensor:
        if len(entries) == num_experts:
            return reader.read(entries[expert])
        return reader.read_row(entries[0], expert)


@dataclass(frozen=True, slots=True)
class Sorted:
    """Recipes by experts module, and the entries that feed no expert."""

    recipes: dict[str, list[Recipe]]
    dense: list[TensorEntry]


def sort_entries(anatomy: Anatomy, entries: Iterable[TensorEntry]) -> Sorted:
    """Give every entry to the expert parameter it feeds, or to the dense ones.

    Weights that the model's class says it never loads (a multi-token-prediction layer, for
    instance) go nowhere.
    """
    sorting = _Sorting(anatomy)
    for entry in sorted(entries, key=lambda entry: dot_natural_key(entry.name)):
        sorting.add(entry)
    return Sorted(sorting.by_layer(), sorting.dense)


class _Sorting:
    """The mapping at work. Renamings keep state, so entries come in transformers' order, once each."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.dense: list[TensorEntry] = []
        self._anatomy = anatomy
        self._prefix = anatomy.model.base_model_prefix
        self._state = anatomy.model.state_dict()
        mapping = get_model_conversion_mapping(anatomy.model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: c for c in self._converters for pattern in c.source_patterns}
        self._ignored = getattr(anatomy.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._recipes: dict[str, Recipe] = {}
        names = [parameter.name for parameter in anatomy.parameters]
        self._layer_of = {f"{layer}.{name}": layer for layer in anatomy.layers for name in names}

    def add(self, entry: TensorEntry) -> None:
        renamed, pattern = self._rename(entry.name)
        if renamed in self._layer_of:
            converter = self._by_pattern[pattern] if pattern else None
            recipe = self._recipes.setdefault(renamed, Recipe(renamed, converter))
            recipe.entries.setdefault(pattern or renamed, []).append(entry)
        elif renamed in self._state or not any(re.search(ignored, renamed) for ignored in self._ignored):
            self.dense.append(entry)

    def by_layer(self) -> dict[str, list[Recipe]]:
        recipes: dict[str, list[Recipe]] = {layer: [] for layer in self._anatomy.layers}
        for target, recipe in self._recipes.items():
            recipes[self._layer_of[target]].append(recipe)
        return recipes

    def _rename(self, name: str) -> tuple[str, str | None]:
        """(full parameter name, the converter's source pattern), as transformers' own loading does it."""
        renamed: tuple[str, str | None] = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._state
        )
        if renamed[0] not in self._state and name in self._state:
            renamed = rename_source_key(name, [], [], self._prefix, self._state)
        return renamed
