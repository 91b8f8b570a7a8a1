"""`sidestage trace record`: a model runs over prompts or a text, and its routing becomes a trace file.

Everything is in this process but the loader. The trace appears whole or not at all.
"""

import json as json_text
import logging
import os
import secrets
import sys
from contextlib import closing
from dataclasses import replace
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from launch.config import RunConfig
from launch.lab.config import RecordConfig
from launch.lab.progress import progress
from launch.output import write_json
from launch.plan import SHIPPED_MODEL
from launch.sampling import check_length, context_of, generation_keywords
from launch.summary import summary_lines
from protocol.manifest import Manifest
from protocol.units import format_size

if TYPE_CHECKING:
    from compute import Offloaded
    from compute.predictors.recorder import PredictionRecorder
    from compute.trace import Json, Trace
    from compute.trace_recorder import TraceRecorder

#: A window of --text is the model's context, but no longer than this.
LONGEST_WINDOW = 2048
_MAX_SEED = 2**31

#: What the live cache counted, told beside the trace and in it.
LIVE = (
    "lookups",
    "hits",
    "late",
    "misses",
    "policy",
    "predictor",
    "lookahead",
    "slots",
    "bits",
    "model_type",
)


def record_trace(config: RecordConfig) -> None:
    """Do what `config` says. Raises SidestageError or ValueError with a sentence."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow the loader down
    for sentence in config.run.ignored():
        sys.stderr.write(sentence + "\n")
    text = _read(config.prompts or config.text or "")
    if not text.strip():
        raise ValueError(f"{config.prompts or config.text} is empty: there is nothing to record")
    with closing(_offload(config.run)) as offloaded:
        started_s = perf_counter()
        manifest = Manifest.read(offloaded.store)
        recorder, foreseen = _recorders(offloaded, manifest, config)
        seed = secrets.randbelow(_MAX_SEED) if config.run.seed is None else config.run.seed
        if config.text is None:
            prompts = [line for line in text.splitlines() if line.strip()]
            _continue_prompts(offloaded, recorder, prompts, config.run, seed)
        else:
            _force_text(offloaded, recorder, text, config)
        report: dict[str, Json] = {
            **offloaded.report(),
            "generate_s": perf_counter() - started_s,
            "seed": seed,
        }
    live: dict[str, Json] = {name: report[name] for name in LIVE}
    meta = _meta(config, manifest, seed, live)
    trace = recorder.trace(meta, keeps_passes=config.passes != "split" or config.text is None)
    if foreseen is not None:
        foreseen.close()
        trace = replace(trace, predicted=foreseen.predicted())
    _finish(config, trace, report)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def _offload(run: RunConfig) -> "Offloaded":
    from launch.generate import offload_as

    return offload_as(run, run.model or SHIPPED_MODEL, ram=run.ram, direct_io=run.direct_io)


def _recorders(
    offloaded: "Offloaded", manifest: Manifest, config: RecordConfig
) -> "tuple[TraceRecorder, PredictionRecorder | None]":
    """They watch from now on, with their ears at the routers and, for --predicted, a gate of their own."""
    from compute.predictors.base import RoutingShape
    from compute.predictors.recorder import PredictionRecorder
    from compute.router_probs import RouterProbs
    from compute.trace_recorder import TraceRecorder

    layers, stage, top_k = offloaded.moe_layers, offloaded.stage, manifest.top_k
    recorder = TraceRecorder(manifest.num_layers, manifest.num_experts, config.probs)
    stage.router_probs = stage.router_probs or RouterProbs(layers)
    stage.observers.append(recorder.observe)
    ahead = min(config.predicted, manifest.num_layers - 1)
    if ahead == 0:
        return recorder, None
    shape = RoutingShape(manifest.num_layers, manifest.num_experts, top_k)
    # As many again as a token uses, so that a widened gate can be replayed as well.
    foreseen = PredictionRecorder(layers, shape, ahead, extra=min(top_k, manifest.num_experts - top_k))
    stage.observers.append(foreseen.observe)
    return recorder, foreseen


def _continue_prompts(
    offloaded: "Offloaded", recorder: "TraceRecorder", prompts: list[str], run: RunConfig, seed: int
) -> None:
    """Each prompt as `sidestage run --seed SEED` would continue it; the last token goes nowhere."""
    import torch

    model, tokenizer = offloaded.model, _tokenizer(offloaded)
    inputs = [tokenizer(prompt, return_tensors="pt").to(model.device) for prompt in prompts]
    for given in inputs:
        check_length(given["input_ids"].shape[1], run.max_new_tokens, context_of(offloaded.model))
    with progress("recording prompts") as show:
        for place, given in enumerate(inputs):
            torch.manual_seed(seed)
            output = model.generate(**given, **generation_keywords(run))
            recorder.end_sequence(output[0, :-1].tolist(), num_given=given["input_ids"].shape[1])
            show(place + 1, len(prompts))


def _force_text(offloaded: "Offloaded", recorder: "TraceRecorder", text: str, config: RecordConfig) -> None:
    """The text's tokens, window by window; each window is a sequence of its own."""
    import torch

    tokens: list[int] = _tokenizer(offloaded)(text, verbose=False)["input_ids"]
    tokens = tokens[: config.tokens]
    width = _window(config.window, context_of(offloaded.model))
    with progress("recording tokens") as show, torch.inference_mode():
        for first in range(0, len(tokens), width):
            window = tokens[first : first + width]
            size = 1 if config.passes == "token" else len(window)
            _pass_through(offloaded, window, size)
            recorder.end_sequence(window, num_given=len(window))
            show(recorder.num_tokens, len(tokens))


def _pass_through(offloaded: "Offloaded", window: list[int], size: int) -> None:
    """One sequence, `size` tokens a pass."""
    import torch

    model, past = offloaded.model, None
    # No logits are wanted; a model that can leave them out makes one row.
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    for first in range(0, len(window), size):
        part = torch.tensor([window[first : first + size]], device=model.device)
        past = model(part, past_key_values=past, use_cache=True, **few).past_key_values


def _tokenizer(offloaded: "Offloaded"):  # type: ignore[no-untyped-def]
    if offloaded.tokenizer is None:
        raise ValueError("the model has no tokenizer: its text cannot be read")
    return offloaded.tokenizer


def _window(asked: int | None, context: int | None) -> int:
    if asked is None:
        return min(context or LONGEST_WINDOW, LONGEST_WINDOW)
    if context is not None and asked > context:
        raise ValueError(f"--window is {asked}, but the model's context holds {context}: pass fewer")
    return asked


def _meta(config: RecordConfig, manifest: Manifest, seed: int, live: "dict[str, Json]") -> "dict[str, Json]":
    run = config.run
    kind = "teacher-forced text" if config.text else "0 prompts (prefill), 1 generated (decode)"
    meta: dict[str, Json] = {
        "model": Path(run.model).name if run.model else "tiny-moe (shipped with sidestage)",
        "source": "sidestage trace record",
        "input": Path(config.text or config.prompts or "").name,
        "phase": kind,
        "scores": "softmax over the router's logits, of the chosen; not renormalised",
        "licence": None,
        "expert_bytes": manifest.layout.stride,
        "live": live,
    }
    if config.text:
        return meta | {"passes": config.passes}
    sampling: dict[str, Json] = {
        "max_new_tokens": run.max_new_tokens,
        "temperature": run.temperature,
        "top_p": run.top_p,
        "repetition_penalty": run.repetition_penalty,
        "seed": None if run.is_greedy else seed,
    }
    return meta | sampling


def _finish(config: RecordConfig, trace: "Trace", report: "dict[str, Json]") -> None:
    from compute.trace_file import write

    out = Path(config.out)
    write(out, trace)
    num_decode = int(trace.phase.sum())
    facts: dict[str, Json] = {
        "trace": str(out),
        "tokens": trace.num_tokens,
        "prefill_tokens": trace.num_tokens - num_decode,
        "decode_tokens": num_decode,
        "sequences": int(trace.sequence[-1]) + 1,
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
        "bytes": out.stat().st_size,
    }
    if config.run.json is not None:
        write_json(config.run.json, json_text.dumps({**facts, **report}))
    for line in summary_lines({**report, "new_tokens": trace.num_tokens}):
        sys.stderr.write(line + "\n")
    sys.stderr.write(
        f"{out}: {trace.num_tokens} tokens of {facts['sequences']} sequences, {trace.num_layers} layers of "
        f"{trace.num_experts} experts, top {trace.top_k}; {format_size(out.stat().st_size)}\n"
    )
