"""Predictors are found by name, with options and together; what is wrong is one sentence."""

import subprocess
import sys

import pytest

from compute.predictors import KNOWN, named, parse
from compute.predictors.base import Predictor, RoutingShape
from compute.predictors.previous_token import PreviousToken
from compute.predictors.spatio_temporal import SpatioTemporal

SHAPE = RoutingShape(num_layers=4, num_experts=8, top_k=2)


def built(spec: str, lookahead: int = 1) -> Predictor:
    predictor = named(spec, SHAPE, lookahead, moe_layers=[])
    assert predictor is not None
    return predictor


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_is_built_and_calls_itself_so(name: str) -> None:
    predictor = built(name, lookahead=2)
    assert (predictor.name, predictor.lookahead, predictor.notices) == (name, 2, [])
    predictor.close()
    predictor.close()


def test_none_is_no_predictor() -> None:
    assert named("none", SHAPE, 1) is None
    assert parse("none").is_none


def test_options_follow_their_name() -> None:
    spec = parse("gate+extra=2+st-moe+history=0.8+blend=1")
    assert spec.members == (("gate", {"extra": 2}), ("st-moe", {"history": 0.8, "blend": 1}))
    assert spec.rule == "union"


def test_a_question_mark_before_an_option_means_the_same() -> None:
    assert parse("gate?extra=2") == parse("gate+extra=2")


def test_several_names_are_asked_together() -> None:
    combined = built("previous-token+tokens=2+st-moe+combine=ranks")
    assert combined.name == "previous-token+tokens=2+st-moe+combine=ranks"
    assert parse("previous-token+st-moe+combine=ranks").rule == "ranks"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("oracle", "'oracle'; allowed: gate, none, previous-token, st-moe"),
        ("", "''; allowed: gate, none"),
        ("gate+none", "several but none joined by +"),
        ("none+extra=2", "'none'; allowed"),
        ("extra=2", "begins with an option"),
        ("gate+width=2", 'predictor "gate" has no option "width"; its options are extra, percentile'),
        ("gate+lookahead=2", 'no option "lookahead"'),
        ("gate+combine=ranks", 'no option "combine"'),
        ("gate+st-moe+combine=mean", "combine is 'mean'; allowed: union, ranks"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_built(spec: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(spec)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gate+extra=-1", "extra is -1"),
        ("gate+percentile=100", "percentile is 100"),
        ("gate+extra=1+percentile=50", "pass one of them"),
        ("previous-token+tokens=0", "tokens is 0"),
        ("st-moe+blend=1.5", "blend is 1.5"),
        ("st-moe+extra=-3", "extra is -3"),
        ("st-moe+history=much", "cannot be built"),
    ],
)
def test_a_wrong_value_is_refused(spec: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r'predictor "[a-z-]+" cannot be built') as caught:
        built(spec)
    assert expected in str(caught.value)


@pytest.mark.parametrize("predictor_class", [PreviousToken, SpatioTemporal])
def test_a_lookahead_of_nothing_is_no_predictor_s(predictor_class: type) -> None:
    with pytest.raises(ValueError, match="lookahead is 0; allowed is 1 or more"):
        predictor_class(SHAPE, 0)


def test_a_gate_that_can_neither_be_asked_nor_looked_up_is_refused() -> None:
    with pytest.raises(ValueError, match="the trace holds no predictions of the gate"):
        named("gate", SHAPE, 1)


def test_taking_a_spec_apart_imports_no_torch() -> None:
    probe = (
        "import sys, compute.predictors as p; print('numpy' in sys.modules); "
        "p.parse('gate+extra=2+st-moe+previous-token'); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\nFalse\n"
