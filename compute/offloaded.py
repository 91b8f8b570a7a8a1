"""`offload`: a stock transformers model whose experts live in another process. And its handle.

The way in for applications and notebooks: no signal handler outlives a pass, and nothing is left
behind when the handle is closed, when model and handle are forgotten, or when the process ends.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compute import policies
from compute.assembly import Parts, assemble
from compute.cache_folder import Quantization
from compute.discovery import MoeLayer
from compute.passes import Passes
from compute.patience import timeout_setting
from compute.recording import Destination, recording
from compute.settings import Settings, Size, layers_ahead, rate_of, size_of
from compute.skeleton import parameter_bytes
from compute.stage import Stage

Report = dict[str, int | float | str | None]


class Offloaded:
    """An offloaded model: `model, tokenizer = offload(...)`, or `with offload(...) as offloaded`.

    The loader stops with `close`, with the end of the `with` block, when neither the handle nor
    the model is referenced any more, or with the process; a fork of it never stops it.
    """

    def __init__(self, parts: Parts, opened: ExitStack, timeout_s: float) -> None:
        self.model: PreTrainedModel = parts.model
        self.tokenizer: PreTrainedTokenizerBase | None = parts.tokenizer
        self.stage: Stage = parts.stage
        self.moe_layers: tuple[MoeLayer, ...] = tuple(parts.moe_layers)
        self.store: Path = parts.store
        #: Sentences that the user should read; they have been logged as warnings.
        self.notices: tuple[str, ...] = parts.notices
        self._facts: Report = {
            "arrangement_reason": parts.arrangement_reason,
            "stage": parts.stage_number,
            "slots_reason": parts.budget.reason,
            "bits": parts.manifest.layout.bits,
            "model_type": parts.manifest.model_type,
            "expert_bytes_total": parts.manifest.expert_bytes_total,
            "compute_parameter_bytes": parameter_bytes(parts.model),
        }
        self._graphs = parts.graphs
        self._passes = parts.passes
        self._finalizer = weakref.finalize(parts.model, _close, parts.passes, opened, timeout_s, os.getpid())

    @property
    def is_closed(self) -> bool:
        return not self._finalizer.alive

    def report(self) -> Report:
        """What cache, prefetcher and link did so far, and what was chosen, by the JSON contract's names.

        After `close` the counters are the last ones. While another thread runs the model they may be
        some layer-steps behind a device that decodes by itself.
        """
        with self._passes.idle() as is_idle:
            if is_idle:
                self.stage.follow()
        graphs = {"graph_replays": self._graphs.num_replayed} if self._graphs else {}
        return {**self.stage.report(), **self._facts, **graphs}

    def close(self) -> None:
        """Stop the loader, if it is ours, and let go of it, if it is not. Idempotent.

        A `generate` that is under way ends with an error. The model raises from then on.
        """
        self._finalizer()

    def __iter__(self) -> Iterator[PreTrainedModel | PreTrainedTokenizerBase | None]:
        yield self.model
        yield self.tokenizer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def offload(
    model: str | os.PathLike[str] | None = None,
    *,
    ram: Size | None = None,
    slots: int | None = None,
    vram: Size | None = None,
    arrangement: str = "auto",
    link: Size | None = None,
    policy: str = policies.DEFAULT,
    predictor: str = "gate",
    lookahead: int | None = None,
    bits: str | int | None = None,
    group: int | None = None,
    fast: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    connect: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    timeline: Destination = None,
    direct_io: str = "auto",
    stage: int = 1,
) -> Offloaded:
    """Offload the experts of `model`: a checkpoint's folder, a hub id, or a store.

    A checkpoint is converted once (`bits` 4 in groups of 64 unless said otherwise) and kept in the
    cache folder. Settings are named and mean what they do on the command line; sizes are written
    like "2GiB", rates like "40MB/s". `connect` is the endpoint of a running loader; then `model` may
    be left out. `timeout` is in seconds (else SIDESTAGE_TIMEOUT, else 30). `timeline`: a file for the
    trace of both processes, or a Timeline that the caller writes.

    Raises ValueError for a wrong setting; ModelError, StoreError, MemoryBudgetError, RefusedError,
    LoaderLostError, each with a sentence.
    """
    settings = Settings(
        quantization=Quantization(None if bits is None else str(bits), group, fast),
        ram=size_of("--ram", ram),
        slots=slots,
        vram=size_of("--vram", vram),
        arrangement=arrangement,
        link=rate_of("--link", link),
        policy=policy,
        predictor=predictor,
        lookahead=layers_ahead(predictor, lookahead),
        dtype=dtype,
        device=device,
        threads=threads,
        connect=None if connect is None else os.fspath(connect),
        direct_io=direct_io,
        stage=stage,
    )
    timeout_s = timeout_setting(timeout)
    with ExitStack() as opened:
        name = None if model is None else os.fspath(model)
        spans = opened.enter_context(recording(timeline))
        parts = assemble(name, settings, timeout_s, spans, opened)
        return Offloaded(parts, opened.pop_all(), timeout_s)


def _close(passes: Passes, opened: ExitStack, timeout_s: float, owner: int) -> None:
    """End what the process `owner` opened; a fork of it only forgets. Holds no reference to the model."""
    if os.getpid() == owner:
        passes.close(timeout_s)
        opened.close()
