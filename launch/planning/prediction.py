"""What `sidestage plan` would have said of a bench's arms: predicted beside measured.

Made from the store's config, the arm's slots and lookahead and the rate that the bench's bound takes;
the kernels are timed again, so the bench's own figures play no part. Imports torch.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compute.cache_folder import Quantization
from launch.planning.curves import curve_of
from launch.planning.forecast import Band, forecast
from launch.planning.proposal import hits_of, work_of
from launch.planning.speeds import suppose
from launch.planning.subject import subject_of
from protocol.errors import SidestageError

Figures = dict[str, Any]


def add_predictions(arms: Sequence[Figures], store: Path, routing: str | None) -> list[str]:
    """Put `predicted_tokens_per_second` beside our arms' figures; lines that compare the two.

    `routing`: the trace that the arms followed, else the hit rates are a similar model's.
    """
    ours = [each for each in arms if "error" not in each and each.get("slots")]
    if not ours:
        return []
    try:
        subject = subject_of(str(store), Quantization(), None)
    except SidestageError as error:
        return [f"plan: {error}"]
    rate = next((each["bytes_per_second"] for each in ours if "bytes_per_second" in each), None)
    speeds = suppose(subject, "cpu", rate and int(rate), None, ours[0].get("threads")).speeds
    recorded = curve_of(routing, subject.manifest.model_type) if routing else None
    lines = []
    for each in ours:
        hits = hits_of(subject, each["slots"], recorded)
        band = forecast(work_of(subject), speeds, hits.band, each["lookahead"]).tokens_per_second
        each["predicted_tokens_per_second"] = asdict(band)
        lines.append(_compared(each["arm"], band, each["tg_tokens_per_second"]))
    return lines


def _compared(arm: str, band: Band, measured: float) -> str:
    where = "within" if band.low <= measured <= band.high else "outside"
    return (
        f"{arm}: plan says {band.likely:.3g} tok/s ({band.low:.3g} to {band.high:.3g}), measured "
        f"{measured:.3g}: {where} the band, {measured / band.likely - 1:+.0%} of the likely"
    )
