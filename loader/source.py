"""Where a checkpoint lies: a local folder, or a hub id through huggingface_hub's own cache.

Finds the folder, the safetensors files that the model is made of, and an identity that changes
when any of them does. Reads no tensor. HF_HUB_OFFLINE and HF_HOME mean what they always mean.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelError
from protocol.manifest import MANIFEST_FILE

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
#: What a store takes along beside the weights: names in the checkpoint's root.
_COMPANIONS = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "*.tiktoken",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's files. `name` is the hub id or the folder's name; `identity` is 16 hex digits."""

    name: str
    folder: Path
    weights: tuple[Path, ...]
    identity: str

    def companions(self) -> list[Path]:
        """Config, tokenizer, chat template and licence files, relative to the folder."""
        found = {path for pattern in _COMPANIONS for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.folder) for path in found)


def is_store(model: str | Path) -> bool:
    """Whether `model` names the folder of a store."""
    return (Path(model) / MANIFEST_FILE).is_file()


def find_source(model: str | Path) -> Source:
    """The checkpoint called `model`. Raises ModelError with a sentence when there is none."""
    folder = local_folder(model)
    if folder:
        return _local(folder.name, folder)
    return _local(str(model), _from_hub(str(model)))


def local_folder(model: str | Path) -> Path | None:
    """The folder called `model`; None when only a hub could have it. Raises ModelError for a file."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"{model} is a file, not a model: name the folder that holds its {CONFIG_FILE}")
    if str(model).startswith(("/", ".", "~")):
        raise ModelError(f"there is no folder {model}: give the folder of a checkpoint or store, or a hub id")
    return None


def hub_folder(model: str, patterns: Iterable[str]) -> Path:
    """A folder with the config and the files named so, from the hub or its local cache.

    Raises ModelError when there is none, or no config in it.
    """
    folder = _snapshot(model, [CONFIG_FILE, *patterns])
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{model} on the hub is not a model: it has no {CONFIG_FILE}")
    return folder


def read_config(folder: Path) -> dict[str, object]:
    """`config.json` as it is. Raises ModelError when it is missing or damaged."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is damaged: not a JSON object")
    return config


def _local(name: str, folder: Path) -> Source:
    read_config(folder)
    weights = tuple(folder / file for file in _weight_files(folder))
    for path in weights:
        if not path.is_file():
            raise ModelError(f"{folder} is incomplete: {path.name} is missing, download it again")
    return Source(name, folder, weights, _identity(folder, weights))


def _weight_files(folder: Path) -> list[str]:
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    try:
        index = json.loads((folder / INDEX_FILE).read_text())
        files = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no safetensors weights ({_WEIGHTS} or {INDEX_FILE}): only safetensors is read"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / INDEX_FILE} is damaged: {error!r}") from error
    if not files or any(not isinstance(file, str) or Path(file).name != file for file in files):
        raise ModelError(f"{folder / INDEX_FILE} is damaged: its weight_map must name files beside it")
    return files


def _identity(folder: Path, weights: tuple[Path, ...]) -> str:
    digest = hashlib.blake2b((folder / CONFIG_FILE).read_bytes(), digest_size=8)
    for path in weights:
        stat = path.stat()
        digest.update(f"\0{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _from_hub(model: str) -> Path:
    """The snapshot's folder: first what describes the model, then exactly the weights it names."""
    companions = [pattern for pattern in _COMPANIONS if "/" not in pattern]
    folder = hub_folder(model, [*companions, INDEX_FILE])
    weights = _weight_files(folder) if (folder / INDEX_FILE).is_file() else [_WEIGHTS]
    return hub_folder(model, [*companions, INDEX_FILE, *weights])


def _snapshot(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except HFValidationError:
        raise ModelError(
            f"there is no model {model!r}: give a checkpoint's or a store's folder, or a hub id like org/name"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"there is no folder {model!r}, and the hub has no such model within reach: {reason}"
        ) from error
