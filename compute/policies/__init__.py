"""Eviction policies: one file each; `named` finds them.

A spec is a known name ("lru"), a file's class ("path/to/file.py:Class") or an importable class
("package.module:Class"), each with options if need be: "lfu+decay=0.95+reset=true". Importing
this package imports no policy, and no numpy.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from compute.policies.base import CacheShape, EvictionPolicy

#: Every policy we ship: name -> "module:Class", imported when asked for.
KNOWN: dict[str, str] = {
    "lru": "compute.policies.lru:Lru",
    "lfu": "compute.policies.lfu:Lfu",
    "lfu-aged": "compute.policies.lfu_aged:LfuAged",
    "lfru": "compute.policies.lfru:Lfru",
    "hybrid": "compute.policies.hybrid:Hybrid",
    "least-stale": "compute.policies.least_stale:LeastStale",
    "llru": "compute.policies.llru:Llru",
    "hobbit": "compute.policies.hobbit:Hobbit",
    "score-ewma": "compute.policies.score_ewma:ScoreEwma",
    "heat": "compute.policies.heat:Heat",
    "sieve": "compute.policies.sieve:Sieve",
    "s3-fifo": "compute.policies.s3_fifo:S3Fifo",
    "arc": "compute.policies.arc:Arc",
    "reuse-sketch": "compute.policies.reuse_sketch:ReuseSketch",
    "reuse-distance": "compute.policies.reuse_distance:ReuseDistance",
    "reuse-distance-probs": "compute.policies.reuse_distance_probs:ReuseDistanceProbs",
    "belady": "compute.policies.belady:Belady",
    "belady-bypass": "compute.policies.belady_bypass:BeladyBypass",
}

#: What a run takes when nothing is said; docs/policies.md tells why.
DEFAULT = "reuse-distance"

#: Those of KNOWN that must be told the future: a replay can use them, a run cannot.
OFFLINE: frozenset[str] = frozenset({"belady", "belady-bypass"})

#: What a policy must have; see `compute.policies.base.EvictionPolicy`.
REQUIRED = ("needs_probs", "begin_pass", "on_access", "on_insert", "on_evict", "choose_victims")

Option = bool | int | float | str
Steps = Sequence[Sequence[int]]


def named(spec: str, shape: CacheShape, future: Steps | None = None) -> EvictionPolicy:
    """Build the policy of `spec` for a cache of `shape`.

    `future`: the keys of every layer-step to come, for a policy that says `needs_future`.
    Raises ValueError (one sentence) for an unknown name, a wrong option, or a broken user's file.
    """
    name, options = _split(spec)
    policy_class = find(spec)
    given: dict[str, Option | Steps] = {**options}
    _check_options(name, policy_class, options)
    if getattr(policy_class, "needs_future", False):
        if future is None:
            raise ValueError(
                f'policy "{name}" must know the future, which only a replay of a trace does: '
                "use it with `sidestage simulate`, or name another one"
            )
        given["future"] = future
    build = cast("Callable[..., EvictionPolicy]", policy_class)
    try:
        return build(shape, **given)
    except Exception as error:
        raise ValueError(f'policy "{spec}" cannot be built: {told(error)}') from error


def find(spec: str) -> type:
    """The class that `spec` names, checked to be a policy; its options are not looked at."""
    name, _ = _split(spec)
    target = KNOWN.get(name, name)
    module_name, colon, class_name = target.rpartition(":")
    if not colon:
        raise ValueError(
            f'no policy is called "{name}"; known are {", ".join(KNOWN)}, '
            "and your own as path/to/file.py:Class or package.module:Class"
        )
    policy_class = getattr(_module(module_name), class_name, None)
    if not isinstance(policy_class, type):
        raise ValueError(f'{module_name} has no class "{class_name}": name the class of your policy')
    missing = [word for word in REQUIRED if not hasattr(policy_class, word)]
    if missing:
        raise ValueError(
            f'"{name}" is no eviction policy, it lacks {", ".join(missing)}: '
            "see EvictionPolicy in compute/policies/base.py"
        )
    return policy_class


def _module(name: str) -> ModuleType:
    """The module of that name or file, freshly executed if it is a file."""
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        spec = importlib.util.spec_from_file_location(f"policy_file_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise ValueError(f'the policy\'s module "{name}" cannot be imported: {told(error)}') from error


def _split(spec: str) -> tuple[str, dict[str, Option]]:
    """("lfu", {"decay": 0.95}) of "lfu+decay=0.95"."""
    name, *parts = re.split(r"\+(?=[A-Za-z_]\w*=)", spec)
    return name, {key: _value(text) for key, _, text in (part.partition("=") for part in parts)}


def _value(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_options(name: str, policy_class: type, options: dict[str, Option]) -> None:
    parameters = list(inspect.signature(policy_class).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.name != "future"]
    for option in options:
        if option not in allowed:
            choice = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f'policy "{name}" has no option "{option}"; {choice}')


def told(error: Exception) -> str:
    """The error in a few words, with the user's line where it is known."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else _last_line(error)
    where = f" (line {line})" if line else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    is_sentence = isinstance(error, ValueError | FileNotFoundError)
    return f"{text}{where}" if is_sentence else f"{type(error).__name__}: {text}{where}"


def _last_line(error: Exception) -> int | None:
    """The line where the error was raised, if that is in a file given by path."""
    trace, found = error.__traceback__, None
    while trace:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("policy_file_"):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
