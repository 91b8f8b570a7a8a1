"""A checkpoint, one expert at a time: its tensors as the model's experts module would hold them.

For checkpoints that store experts one by one and for fused ones. What feeds no expert is dense and
left as it is. At any time one expert is in memory. Knows nothing of quantization or of stores.
"""

from pathlib import Path

import torch

from loader.anatomy import Anatomy, study
from loader.recipes import Recipe, sort_entries
from loader.source import Source, find_source
from loader.tensors import TORCH_DTYPES, TensorEntry, TensorReader, read_entries
from protocol.errors import ModelError


class Checkpoint:
    """An open checkpoint. Experts are named by key = layer * num_experts + expert, as everywhere."""

    def __init__(self, source: Source, anatomy: Anatomy) -> None:
        """Reads headers only. Raises ModelError when the weights are not those of the config."""
        self.source = source
        self.anatomy = anatomy
        found = sort_entries(anatomy, _all_entries(source))
        #: what feeds no expert, in the checkpoint's own names
        self.dense: list[TensorEntry] = found.dense
        self._recipes = found.recipes
        for layer, recipes in self._recipes.items():
            _check_complete(layer, recipes, anatomy)
        #: dtype of each expert parameter in the files
        self.dtypes: dict[str, torch.dtype] = {p.name: self._dtype(p.name) for p in anatomy.parameters}
        self.reader = TensorReader()

    @classmethod
    def open(cls, model: str | Path) -> "Checkpoint":
        """The checkpoint in a folder or on the hub. Raises ModelError with a sentence."""
        source = find_source(model)
        return cls(source, study(source.folder))

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.reader.close()

    @property
    def num_keys(self) -> int:
        return len(self.anatomy.layers) * self.anatomy.num_experts

    @property
    def dtype(self) -> str:
        """The dtype that the model is meant to run in: the config's, else that of the experts."""
        return self.anatomy.dtype or str(next(iter(self.dtypes.values()))).removeprefix("torch.")

    def expert(self, key: int) -> dict[str, torch.Tensor]:
        """The expert's tensors by parameter name, in the anatomy's order, without the expert dimension."""
        layer_index, expert = divmod(key, self.anatomy.num_experts)
        layer = self.anatomy.layers[layer_index]
        cooked: dict[str, torch.Tensor] = {}
        for recipe in self._recipes[layer]:
            cooked |= recipe.cook(self.reader, expert, self.anatomy)
        tensors: dict[str, torch.Tensor] = {}
        for parameter in self.anatomy.parameters:
            tensor = cooked[f"{layer}.{parameter.name}"]
            if tensor.shape != (1, *parameter.shape):
                raise ModelError(
                    f"{layer}.{parameter.name}: one expert is {tuple(tensor.shape[1:])} in the checkpoint "
                    f"and {parameter.shape} in the model: weights and config.json differ"
                )
            tensors[parameter.name] = tensor[0]
        return tensors

    def _dtype(self, name: str) -> torch.dtype:
        """The one dtype of a parameter in all layers, refused when there are several or an odd one."""
        recipes = [r for layer, rs in self._recipes.items() for r in rs if f"{layer}.{name}" in r.targets]
        dtypes = set[str]().union(*(recipe.dtypes for recipe in recipes))
        if len(dtypes) != 1 or not dtypes <= set(TORCH_DTYPES):
            raise ModelError(
                f"the experts' {name} is stored as {', '.join(sorted(dtypes))}: "
                f"one dtype of {', '.join(TORCH_DTYPES)} is needed"
            )
        return TORCH_DTYPES[dtypes.pop()]


def _all_entries(source: Source) -> list[TensorEntry]:
    return [entry for path in source.weights for entry in read_entries(path).values()]


def _check_complete(layer: str, recipes: list[Recipe], anatomy: Anatomy) -> None:
    found = {target for recipe in recipes for target in recipe.targets}
    for parameter in anatomy.parameters:
        if f"{layer}.{parameter.name}" not in found:
            raise ModelError(
                f"the checkpoint holds nothing for {layer}.{parameter.name}: weights and config.json differ"
            )
    for recipe in recipes:
        recipe.check(anatomy.num_experts)
