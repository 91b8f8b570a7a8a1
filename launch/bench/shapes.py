"""Shapes: the real dimensions of known models, without their weights. One config a file in `shapes/`.

`--layers` cuts a shape after its first layers, dense ones counted.
"""

import json
from pathlib import Path

_FOLDER = Path(__file__).parent / "shapes"

Config = dict[str, object]


def names() -> list[str]:
    """Every shape there is."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def config_of(shape: str, num_layers: int | None = None) -> Config:
    """The config of `shape`, cut to `num_layers`. Raises ValueError with a sentence."""
    if shape not in names():
        raise ValueError(f"--shape is {shape!r}; allowed: {', '.join(names())}")
    config: Config = json.loads((_FOLDER / f"{shape}.json").read_text())
    if num_layers is None:
        return config
    most, dense = _count(config, "num_hidden_layers"), _count(config, "first_k_dense_replace")
    if not dense < num_layers <= most:
        raise ValueError(
            f"--layers is {num_layers}; {shape} has {most} layers, {dense} of them without experts: "
            f"pass {dense + 1} to {most}"
        )
    return {**config, "num_hidden_layers": num_layers}


def _count(config: Config, name: str) -> int:
    count = config.get(name, 0)
    assert isinstance(count, int)
    return count
