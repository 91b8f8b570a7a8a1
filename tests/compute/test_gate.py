"""Gate lookahead and router probabilities on real models."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.stock_layers import stock_layers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compute.discovery import MoeLayer
from compute.predictors.gate import GateLookahead
from compute.router_probs import RouterProbs

NUM_TOKENS = 384
#: The model card's recall of the actual top-4, by target layer, mean of five domains.
CARD = {1: [0.531, 0.698, 0.773, 0.795, 0.783], 2: [0.474, 0.640, 0.706, 0.688]}


@pytest.fixture(scope="module")
def model(shipped_model: Path) -> PreTrainedModel:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def layers(model: PreTrainedModel) -> list[MoeLayer]:
    return stock_layers(model)


@pytest.fixture(scope="module")
def input_ids(shipped_model: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    text = (shipped_model / "README.md").read_text() + "Once upon a time there was a king. " * 40
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids[:, :NUM_TOKENS]
    return ids


class Listener:
    """Asks the gate in every layer's turn, and remembers what the routers then chose."""

    def __init__(self, layers: list[MoeLayer], gate: GateLookahead) -> None:
        self.predicted: dict[tuple[int, int], list[int]] = {}
        self.chosen: dict[int, Tensor] = {}
        self._gate = gate
        self._hooks = [
            layer.experts.register_forward_pre_hook(self._hook(layer.index), prepend=True) for layer in layers
        ]

    def _hook(self, layer: int):  # type: ignore[no-untyped-def]
        def note(experts: object, args: Sequence[Tensor]) -> None:
            self.chosen[layer] = args[1]
            for prediction in self._gate.predict(layer, None, []):
                self.predicted[layer, prediction.layer] = prediction.experts

        return note

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._gate.close()


@torch.no_grad()
def test_recall_is_near_the_model_card_s(
    model: PreTrainedModel, layers: list[MoeLayer], input_ids: Tensor
) -> None:
    listener = Listener(layers, gate := GateLookahead(layers, lookahead=2))
    found: dict[tuple[int, int], list[float]] = {}
    cache = None
    for position in range(input_ids.shape[1]):
        gate.begin_pass(1, position == 0)
        cache = model(input_ids[:, position : position + 1], past_key_values=cache).past_key_values
        for (layer, target), experts in listener.predicted.items():
            actual = set(listener.chosen[target].tolist()[0])
            recall = len(actual & set(experts)) / len(actual)
            found.setdefault((target - layer, target), []).append(recall)
    listener.close()
    for ahead, expected in CARD.items():
        for target, card in enumerate(expected, start=ahead):
            recall = sum(found[ahead, target]) / len(found[ahead, target])
            assert recall == pytest.approx(card, abs=0.09), (ahead, target)


@torch.no_grad()
def test_predictions_go_to_the_layers_ahead_and_never_beyond_the_last(
    model: PreTrainedModel, layers: list[MoeLayer], input_ids: Tensor
) -> None:
    listener = Listener(layers, GateLookahead(layers, lookahead=2))
    model(input_ids[:, :1])
    listener.close()
    expected = [(layer, layer + ahead) for layer in range(6) for ahead in (1, 2) if layer + ahead < 6]
    assert sorted(listener.predicted) == expected
    assert all(len(set(experts)) == 4 for experts in listener.predicted.values())


@torch.no_grad()
def test_many_tokens_predictions_are_ordered_by_how_many_want_the_expert(
    model: PreTrainedModel, layers: list[MoeLayer], input_ids: Tensor
) -> None:
    gate = GateLookahead(layers, lookahead=1)
    residual = torch.randn(2, 20, model.config.hidden_size)
    (prediction,) = gate.predict(2, residual, [])
    index = layers[3].router(layers[3].norm(residual).view(40, -1))[2]  # type: ignore[misc]
    counts = torch.bincount(index.flatten(), minlength=32)
    ordered = counts[prediction.experts].tolist()
    assert ordered == sorted(ordered, reverse=True)
    assert sorted(prediction.experts) == index.unique().tolist()


@torch.no_grad()
def test_one_token_s_experts_are_ordered_by_logit(layers: list[MoeLayer], model: PreTrainedModel) -> None:
    residual = torch.randn(1, 1, model.config.hidden_size)
    (prediction,) = GateLookahead(layers, lookahead=1).predict(0, residual, [])
    logits = layers[1].router(layers[1].norm(residual))[0][0]  # type: ignore[misc]
    assert prediction.experts == logits.topk(4).indices.tolist()


@torch.no_grad()
def test_no_hook_of_anybody_sees_the_gate_s_questions(
    model: PreTrainedModel, layers: list[MoeLayer], input_ids: Tensor
) -> None:
    calls: list[object] = []
    assert layers[2].router is not None
    hook = layers[2].router.register_forward_hook(lambda *_: calls.append(1))
    listener = Listener(layers, GateLookahead(layers, lookahead=2))
    model(input_ids[:, :3])
    listener.close()
    hook.remove()
    assert len(calls) == 1


def test_a_layer_without_a_usable_gate_is_skipped_with_its_reason(layers: list[MoeLayer]) -> None:
    lame = MoeLayer(3, "layers.3", layers[3].experts, None, None, "its router needs more than hidden states")
    gate = GateLookahead([*layers[:3], lame, *layers[4:]], lookahead=2)
    predictions = gate.predict(2, torch.randn(1, 1, 192), [])
    assert [prediction.layer for prediction in predictions] == [4]
    assert gate.notices == ["no speculative gate for MoE layer 3: its router needs more than hidden states"]
    gate.close()


@torch.no_grad()
def test_a_closed_gate_leaves_no_hook(model: PreTrainedModel, layers: list[MoeLayer]) -> None:
    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())

    before = hooks()
    gate, probs = GateLookahead(layers, lookahead=1), RouterProbs(layers)
    assert hooks() == before + 5 + 6
    for listener in (gate, probs):
        listener.close()
        listener.close()
    assert hooks() == before


def test_a_lookahead_of_none_is_refused(layers: list[MoeLayer]) -> None:
    with pytest.raises(ValueError, match=r"lookahead.* is 0; allowed is 1 or more"):
        GateLookahead(layers, lookahead=0)


@torch.no_grad()
def test_router_probs_are_the_softmax_of_what_the_router_said(
    model: PreTrainedModel, layers: list[MoeLayer], input_ids: Tensor
) -> None:
    probs = RouterProbs(layers)
    assert probs.of_tokens(2) is None and probs.mean(2) is None
    heard: list[Tensor] = []
    assert layers[2].router is not None
    hook = layers[2].router.register_forward_hook(lambda m, args, output: heard.append(output[0]))
    model(input_ids[:, :7])
    hook.remove()
    of_tokens, mean = probs.of_tokens(2), probs.mean(2)
    probs.close()
    assert of_tokens is not None and mean is not None
    assert torch.allclose(of_tokens, torch.softmax(heard[0].float(), -1))
    assert mean.shape == (32,) and mean.dtype.name == "float32"
    assert mean.sum() == pytest.approx(1.0, abs=1e-3)
