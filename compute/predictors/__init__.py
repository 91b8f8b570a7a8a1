"""Predictors: one file each; `named` finds them.

A spec is a name with options if need be ("gate", "gate+extra=2"; "gate?extra=2" means the same),
or several of them, asked together: "gate+st-moe+history=0.8", "gate+st-moe+combine=ranks".
Importing this package imports no predictor, no numpy and no torch.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from compute.discovery import MoeLayer
    from compute.predictors.base import Predictor, RoutingShape
    from compute.predictors.recorded import Recorded

#: Every predictor we ship: name -> "module:Class", imported when asked for.
KNOWN: dict[str, str] = {
    "gate": "compute.predictors.gate:GateLookahead",
    "previous-token": "compute.predictors.previous_token:PreviousToken",
    "st-moe": "compute.predictors.spatio_temporal:SpatioTemporal",
}

#: The name that means: nothing is predicted.
NONE = "none"

#: In a replay there are no gates to be asked, but perhaps their answers in the trace.
_GATE_IN_REPLAY = "compute.predictors.recorded:RecordedGate"

#: What the builder gives; the other parameters of a class are its options.
_GIVEN = ("moe_layers", "recorded", "shape", "lookahead")

Option = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec taken apart: `members` are (name, options), `rule` says how they are combined."""

    members: tuple[tuple[str, dict[str, Option]], ...]
    rule: str

    @property
    def is_none(self) -> bool:
        return self.members == ((NONE, {}),)


def parse(spec: str) -> Spec:
    """Take `spec` apart. Raises ValueError (one sentence) for an unknown name or option."""
    members: list[tuple[str, dict[str, Option]]] = []
    for part in re.split(r"[+?]", spec):
        option, is_given, text = part.partition("=")
        if not is_given:
            members.append((part, {}))
        elif members:
            members[-1][1][option] = _value(text)
        else:
            raise ValueError(f'predictor "{spec}" begins with an option: write a name before it')
    rule = "union"
    for name, options in members:
        if len(members) > 1:
            rule = str(options.pop("combine", rule))
        _check(name, options, is_alone=len(members) == 1)
    _check_rule(rule)
    return Spec(tuple(members), rule)


def named(
    spec: str,
    shape: RoutingShape,
    lookahead: int,
    *,
    moe_layers: Sequence[MoeLayer] | None = None,
    recorded: Recorded | None = None,
) -> Predictor | None:
    """Build the predictor of `spec`, which becomes its name; None for "none".

    The gate asks the live `moe_layers`; in a replay it is `recorded`. Raises ValueError (one
    sentence) for an unknown name, a wrong option, or a gate that can be neither asked nor looked up.
    """
    parsed = parse(spec)
    if parsed.is_none:
        return None
    built = [
        _build(name, options, shape, lookahead, moe_layers, recorded) for name, options in parsed.members
    ]
    predictor = built[0]
    if len(built) > 1:
        from compute.predictors.combined import Combined

        predictor = Combined(built, parsed.rule)
    predictor.name = spec
    return predictor


def _build(
    name: str,
    options: dict[str, Option],
    shape: RoutingShape,
    lookahead: int,
    moe_layers: Sequence[MoeLayer] | None,
    recorded: Recorded | None,
) -> Predictor:
    target = KNOWN[name]
    given: tuple[object, ...] = (shape, lookahead)
    if name == "gate" and moe_layers is not None:
        given = (moe_layers, lookahead)
    elif name == "gate":
        if recorded is None:
            raise ValueError(
                "the trace holds no predictions of the gate, which needs the model: record it again "
                "with the gate's predictions, or name previous-token or st-moe"
            )
        target, given = _GATE_IN_REPLAY, (recorded, shape, lookahead)
    build = cast("Callable[..., Predictor]", _class(target))
    try:
        return build(*given, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f'predictor "{name}" cannot be built: {error}') from error


def _check(name: str, options: dict[str, Option], is_alone: bool) -> None:
    if name == NONE and is_alone and not options:
        return
    if name not in KNOWN:
        raise ValueError(
            f"there is no predictor {name!r}; allowed: {', '.join(('gate', NONE, *list(KNOWN)[1:]))}, "
            f"and several but {NONE} joined by +"
        )
    allowed = [option for option in inspect.signature(_class(KNOWN[name])).parameters if option not in _GIVEN]
    for option in options:
        if option not in allowed:
            raise ValueError(
                f'predictor "{name}" has no option "{option}"; its options are {", ".join(allowed)}'
            )


def _check_rule(rule: str) -> None:
    from compute.predictors.combined import RULES

    if rule not in RULES:
        raise ValueError(f"combine is {rule!r}; allowed: {', '.join(RULES)}")


def _class(target: str) -> type:
    module, _, name = target.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _value(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
