"""The compute process of `sidestage run`: takes one Job, writes the text, answers with the result.

`python -P -m launch.generate --job-fd N --answer-fd N --text-fd N --ready-fd N --lifeline-fd N`.
Its answer is one JSON object: {"result": {...}}, {"error": "sentence"} or {"interrupted": true}.
Knows the loader's endpoint, never its process.
"""

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from launch.job import Job
from protocol.child import Lifeline, report_ready
from protocol.errors import SidestageError
from protocol.timeline import Timeline

if TYPE_CHECKING:
    from compute import Offloaded
    from launch.config import RunConfig
    from launch.narrator import Narrator

Result = dict[str, object]


def main() -> int:
    """Do the job; the exit code is 0 unless there is no result."""
    fds = compute_fds("launch.generate").parse_args()
    with os.fdopen(fds.text_fd, "w", encoding="utf-8", errors="replace") as text:
        status = do_job(fds, lambda job: _perform(job, text, lambda: report_ready(fds.ready_fd, {})))
        _close_quietly(text)
    return status


def compute_fds(program: str) -> argparse.ArgumentParser:
    """The arguments that every compute process gets from its supervisor."""
    parser = argparse.ArgumentParser(prog=program)
    for name in ("job", "answer", "text", "ready", "lifeline"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    return parser


def do_job(fds: argparse.Namespace, perform: Callable[[Job], Result]) -> int:
    """Read the Job, `perform` it, and answer with its result or a sentence; the exit code."""
    Lifeline(fds.lifeline_fd).watch(lambda: os._exit(1))
    answer = _answer(fds.job_fd, perform)
    with os.fdopen(fds.answer_fd, "w") as pipe:
        json.dump(answer, pipe)
    return 0 if "result" in answer else 1


def _answer(job_fd: int, perform: Callable[[Job], Result]) -> Result:
    try:
        import compute.offloaded  # noqa: F401 - seconds of imports, while the loader starts

        with os.fdopen(job_fd) as pipe:
            job = Job.from_json(pipe.read())
        return {"result": perform(job)}
    except (SidestageError, ValueError) as error:
        return {"error": str(error)}
    except KeyboardInterrupt:
        return {"interrupted": True}
    except Exception as error:  # noqa: BLE001 - the supervisor tells the user; the trace goes to stderr
        if type(error).__name__ == "OutOfMemoryError":
            return {
                "error": "the device ran out of memory while it computed: pass fewer --slots, or less --vram"
            }
        traceback.print_exc()
        return {"error": f"the compute process failed: {type(error).__name__}: {error}"}


def _perform(job: Job, text: TextIO, on_loaded: Callable[[], None]) -> Result:
    """Load, generate, close, report. Raises what offload and generate raise."""
    timeline = Timeline("compute") if job.timeline else None
    with offload_for(job, timeline) as offloaded:
        on_loaded()
        result = _generate(job, offloaded, text)
        result |= offloaded.report()
    if timeline is not None and job.timeline is not None:
        timeline.write(Path(job.timeline))
    return result


def offload_for(job: Job, timeline: Timeline | None = None) -> "Offloaded":
    """The model that `job` names, with its settings. Raises what `offload` raises."""
    return offload_as(job, job.store or None, connect=job.endpoint, timeline=timeline)


def offload_as(
    said: "Job | RunConfig",
    model: str | Path | None,
    *,
    connect: str | None = None,
    ram: int | None = None,
    direct_io: str = "auto",
    timeline: Timeline | None = None,
) -> "Offloaded":
    """`model` with the settings that `said` has of it and of its cache. Raises what `offload` raises."""
    from compute import offload

    _quieten()
    return offload(
        model,
        connect=connect,
        ram=ram,
        direct_io=direct_io,
        timeline=timeline,
        slots=said.slots,
        vram=said.vram,
        stage=said.stage,
        arrangement=said.arrangement,
        policy=said.policy,
        predictor=said.predictor,
        lookahead=said.lookahead,
        dtype=said.dtype,
        device=said.device,
        link=said.link,
        threads=said.threads,
        bits=said.bits,
        group=said.group,
        fast=said.fast,
        timeout=said.timeout,
    )


def _generate(job: Job, offloaded: "Offloaded", text: TextIO) -> Result:
    import torch
    from transformers import StoppingCriteriaList

    from launch.narrator import Narrator
    from launch.sampling import check_length, context_of, generation_keywords

    model, tokenizer = offloaded.model, offloaded.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: a prompt cannot be read; use offload() from Python")
    inputs = tokenizer(job.prompt, return_tensors="pt").to(model.device)
    prompt_tokens = int(inputs["input_ids"].shape[1])
    check_length(prompt_tokens, job.max_new_tokens, context_of(model))
    torch.manual_seed(job.seed)
    narrator = Narrator(tokenizer, text if job.streams else None)
    _drain_on_interrupt(narrator)
    output = model.generate(
        **inputs,
        **generation_keywords(job),
        streamer=narrator,
        stopping_criteria=StoppingCriteriaList([narrator.stops]),
    )
    token_ids = output[0, prompt_tokens:].tolist()
    return {
        "text": tokenizer.decode(token_ids, skip_special_tokens=True),
        "token_ids": token_ids,
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(token_ids),
        "ttft_s": narrator.ttft_s,
        "tokens_per_second": narrator.tokens_per_second,
        "generate_s": narrator.lasted_s,
        "is_cut_short": narrator.wants_to_stop,
        "seed": job.seed,
    }


def _drain_on_interrupt(narrator: "Narrator") -> None:
    """From now on Ctrl-C lets the current token end; before, it is a KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        narrator.wants_to_stop = True

    signal.signal(signal.SIGINT, stop)


def _quieten() -> None:
    """Progress bars belong on terminals."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _close_quietly(text: TextIO) -> None:
    """Close the text's fd although its reader may have gone."""
    try:
        text.close()
    except BrokenPipeError:
        return  # what was not written has no reader


if __name__ == "__main__":
    sys.exit(main())
