"""Tokens never move: the same greedy tokens out of every arrangement, policy, lookahead and slot count.

One compute process (this one), one loader per store, a client per cell of the matrix.
"""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from compute import offload
from compute.loader_process import OwnedLoader, start_loader
from loader.convert import convert
from protocol.manifest import Manifest

ARRANGEMENTS = ("direct", "emulated")
POLICIES = ("lru", "lfu-aged", "reuse-distance")
LOOKAHEADS = (0, 1, 2)
TOP_K, NUM_KEYS = 4, 192
SLOTS = (TOP_K, TOP_K + 1, NUM_KEYS // 4, NUM_KEYS)

PROMPT = "Once upon a time there was a king who"
BATCH = ["The old woman", "KING RICHARD:\nNow is the winter of our", "def __init__(self, name"]

Tokens = tuple[list[list[int]], list[list[int]]]
Cell = tuple[str, str, int, int]


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Greedy token ids of one prompt, and of a left-padded batch of three."""
    tokenizer.padding_side = "left"
    found = []
    for prompts, num_new in (([PROMPT], 12), (BATCH, 6)):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        out = model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            eos_token_id=None,
        )
        found.append(out.tolist())
    return found[0], found[1]


def run_cell(endpoint: str, store: Path, cell: Cell) -> tuple[Tokens, dict[str, object]]:
    arrangement, policy, lookahead, slots = cell
    with offload(
        store,
        connect=endpoint,
        arrangement=arrangement,
        policy=policy,
        lookahead=lookahead,
        slots=slots,
        threads=1,
    ) as offloaded:
        assert offloaded.tokenizer is not None
        return greedy(offloaded.model, offloaded.tokenizer), offloaded.report()


def serve(store: Path) -> OwnedLoader:
    return start_loader(store, num_frames=NUM_KEYS + 8)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_tokens_are_identical_over_the_whole_product_at_4_bit(store_4bit: Path, one_thread: None) -> None:
    with serve(store_4bit) as loader:
        reference, _ = run_cell(loader.endpoint, store_4bit, ("direct", "lru", 0, NUM_KEYS))
        assert len(reference[0][0]) > 12
        for cell in product(ARRANGEMENTS, POLICIES, LOOKAHEADS, SLOTS):
            tokens, report = run_cell(loader.endpoint, store_4bit, cell)
            assert tokens == reference, f"{cell} wrote other tokens"
            assert report["arrangement"] == cell[0]
            assert report["slots"] == cell[3]
            assert report["lookups"] == report["hits"] + report["late"] + report["misses"]  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["8", "3", "2"])
def test_tokens_are_identical_over_pairs_at_other_bits(
    bits: str, shipped_model: Path, tmp_path: Path, one_thread: None
) -> None:
    store = tmp_path / "store"
    convert(str(shipped_model), store, bits=bits, group=64, fast=True)
    with serve(store) as loader:
        reference, _ = run_cell(loader.endpoint, store, ("direct", "lru", 0, NUM_KEYS))
        for cell in (("direct", "lfu-aged", 2, TOP_K), ("emulated", "reuse-distance", 1, NUM_KEYS // 4)):
            assert run_cell(loader.endpoint, store, cell)[0] == reference, f"{bits} bit: {cell}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tokens_equal_stock_transformers_without_quantization(
    dtype: str, shipped_model: Path, store_none: Path, one_thread: None
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(
        shipped_model, dtype=getattr(torch, dtype), experts_implementation="grouped_mm"
    )
    cells = (
        ("direct", "lru", 1, TOP_K),
        ("direct", "lru", 0, NUM_KEYS),
        ("emulated", "reuse-distance", 2, 48),
    )
    with serve(store_none) as loader:
        for arrangement, policy, lookahead, slots in cells:
            with offload(
                store_none,
                connect=loader.endpoint,
                arrangement=arrangement,
                policy=policy,
                lookahead=lookahead,
                slots=slots,
                dtype=dtype,
                threads=1,
            ) as offloaded:
                assert offloaded.tokenizer is not None
                tokens = greedy(offloaded.model, offloaded.tokenizer)
                assert tokens == greedy(stock, offloaded.tokenizer)


def test_the_compute_process_holds_no_expert_parameter(store_4bit: Path) -> None:
    manifest = Manifest.read(store_4bit)
    with offload(store_4bit, slots=48) as offloaded:
        held = {name for name, _ in offloaded.model.named_parameters()}
        experts = [name for name in held if ".experts." in name]
        assert not experts
        report = offloaded.report()
        dense = sum(p.numel() * p.element_size() for p in offloaded.model.parameters())
        assert report["compute_parameter_bytes"] == dense
        assert report["expert_bytes_total"] == manifest.expert_bytes_total
