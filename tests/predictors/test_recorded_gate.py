"""What the gate foresees goes into a trace, survives its file, and comes back as it was said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.stock_layers import stock_layers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from compute.discovery import MoeLayer
from compute.layer_steps import layer_steps
from compute.predictors.base import Prediction, RoutingShape
from compute.predictors.gate import GateLookahead
from compute.predictors.recorded import Recorded, RecordedGate
from compute.predictors.recorder import PredictionRecorder
from compute.trace import Trace
from compute.trace_file import read, write

SHAPE = RoutingShape(6, 32, 4)
EXTRA = 3
#: Tokens of each pass: a prompt, and what follows.
PASSES = (17, 1, 1, 2, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def model(shipped_model: Path) -> PreTrainedModel:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def layers(model: PreTrainedModel) -> list[MoeLayer]:
    return stock_layers(model)


class Heard:
    """What live gates said in every pass, and the trace that was recorded meanwhile."""

    def __init__(self, model: PreTrainedModel, layers: list[MoeLayer]) -> None:
        self.recorder = PredictionRecorder(layers, SHAPE, lookahead=2, extra=EXTRA)
        self.gates = {
            "narrow": GateLookahead(layers, 2),
            "wide": GateLookahead(layers, 2, extra=EXTRA),
            "above": GateLookahead(layers, 1, percentile=80),
        }
        self.said: dict[str, list[list[Prediction]]] = {name: [] for name in self.gates}
        self.experts: list[list[Tensor]] = [[] for _ in layers]
        hooks = [
            layer.experts.register_forward_pre_hook(self._hook(layer.index), prepend=True) for layer in layers
        ]
        ids = torch.randint(0, 2048, (1, sum(PASSES)), generator=torch.Generator().manual_seed(1))
        cache, first = None, 0
        with torch.no_grad():
            for size in PASSES:
                cache = model(ids[:, first : first + size], past_key_values=cache).past_key_values
                first += size
        for listener in (*hooks, *self.gates.values(), self.recorder):
            listener.remove() if hasattr(listener, "remove") else listener.close()

    def _hook(self, layer: int):  # type: ignore[no-untyped-def]
        def note(experts: object, args: Sequence[Tensor]) -> None:
            self.experts[layer].append(args[1])
            self.recorder.observe(layer, args[1], args[2], None)
            for name, gate in self.gates.items():
                self.said[name].append(gate.predict(layer, None, []))

        return note

    def trace(self) -> Trace:
        experts = torch.stack([torch.cat(chosen) for chosen in self.experts], 1)
        return Trace(
            experts.to(torch.int16).numpy(),
            np.zeros(sum(PASSES), dtype=np.uint8),
            np.zeros(sum(PASSES), dtype=np.int32),
            32,
            pass_number=np.repeat(np.arange(len(PASSES)), PASSES).astype(np.int32),
            predicted=self.recorder.predicted(),
        )


@pytest.fixture(scope="module")
def heard(model: PreTrainedModel, layers: list[MoeLayer]) -> Heard:
    return Heard(model, layers)


def replayed(trace: Trace, lookahead: int, **options: float) -> list[list[Prediction]]:
    """What the recorded gate says in every layer-step."""
    recorded = Recorded.of(steps := layer_steps(trace))
    assert recorded is not None
    gate = RecordedGate(recorded, SHAPE, lookahead, **options)  # type: ignore[arg-type]
    said = []
    for each in steps.passes():
        gate.begin_pass(each.num_tokens, each.is_new_sequence)
        said += [gate.predict(step.layer, None, []) for step in each.steps]
    return said


def test_a_replay_s_gate_says_what_the_live_one_said_prefill_included(heard: Heard, tmp_path: Path) -> None:
    write(tmp_path / "t.npz", heard.trace())
    trace = read(tmp_path / "t.npz")
    assert replayed(trace, 2) == heard.said["narrow"]
    assert replayed(trace, 2, extra=EXTRA) == heard.said["wide"]
    assert replayed(trace, 1, percentile=80) == heard.said["above"]


def test_a_wider_gate_names_the_narrow_one_s_experts_first(heard: Heard) -> None:
    sizes = np.repeat(PASSES, SHAPE.num_layers)
    for num_tokens, narrow, wide in zip(sizes, heard.said["narrow"], heard.said["wide"], strict=True):
        for few, many in zip(narrow, wide, strict=True):
            assert set(few.experts) <= set(many.experts)
            if num_tokens == 1:
                assert many.experts[:4] == few.experts and len(many.experts) == 4 + EXTRA


def test_where_no_gate_looked_the_trace_says_none(heard: Heard) -> None:
    predicted = heard.recorder.predicted()
    assert predicted.shape == (sum(PASSES), 6, 2, 4 + EXTRA)
    assert (predicted[:, 0] == -1).all() and (predicted[:, 1, 1] == -1).all()
    assert (predicted[:, 1:, 0] >= 0).all() and (predicted[:, 2:, 1] >= 0).all()


def test_a_lookahead_beyond_the_model_is_refused(layers: list[MoeLayer]) -> None:
    with pytest.raises(ValueError, match="6 layers ahead in a model of 6: allowed is 1 to 5"):
        PredictionRecorder(layers, SHAPE, lookahead=6)


def test_a_closed_recorder_leaves_no_hook(model: PreTrainedModel, layers: list[MoeLayer]) -> None:
    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    recorder = PredictionRecorder(layers, SHAPE, 1)
    assert hooks() == before + 5
    recorder.close()
    recorder.close()
    assert hooks() == before


SMALL = np.full((2, 3, 1, 2), -1, dtype=np.int64)
SMALL[:, 1:, 0] = [0, 3]


def spoilt(place: tuple[int, int, int, int], value: int) -> np.ndarray:
    array = SMALL.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (SMALL[:1], "(1, 3, 1, 2)"),
        (SMALL[..., 0], "(2, 3, 1)"),
        (np.repeat(SMALL, 3, axis=2), "lookahead below 3"),
        (np.repeat(SMALL, 3, axis=3), "up to 4 experts"),
        (SMALL[:, :, :0], "(2, 3, 0, 2)"),
        (spoilt((0, 1, 0, 0), 4), "0 to 3"),
        (spoilt((0, 1, 0, 0), -2), "from -2"),
        (spoilt((0, 1, 0, 0), 1 << 20), "beyond int16"),
        (spoilt((0, 0, 0, 0), 1), "1 layers before one of the first 1 layers"),
        (spoilt((0, 1, 0, 0), 3), "twice"),
        (SMALL.astype(np.float32), "float32"),
    ],
)
def test_wrong_predictions_in_a_file_are_refused(
    tmp_path: Path, predicted: np.ndarray, expected: str
) -> None:
    path = tmp_path / "t.npz"
    meta = np.array('{"n_experts": 4}')
    np.savez(path, experts=np.zeros((2, 3, 2), np.int16), meta=meta, predicted=predicted)
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        read(path)
    assert expected in str(caught.value)


def test_the_first_tokens_of_a_trace_keep_their_predictions(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, experts=np.zeros((2, 3, 2), np.int16), meta=np.array('{"n_experts": 4}'), predicted=SMALL)
    predicted = read(path).first(1).predicted
    assert predicted is not None and np.array_equal(predicted, SMALL[:1])
