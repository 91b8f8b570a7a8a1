"""`make fuzz`: one target for a while, from its corpus. Guided by coverage where atheris is installed.

`python tests/fuzz/fuzz.py TARGET [SECONDS]`. Bytes that break something are written into the
corpus, so that the suite replays them from then on; what only reached new code lies in build/fuzz.
"""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.mutate import mutated

CORPUS = Path(__file__).parent / "corpus"
REACHED = Path(__file__).parents[2] / "build" / "fuzz"


def main() -> None:
    target, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    REACHED.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_RUNTIME_DIR"] = str(REACHED)  # a fuzzer ends without tidying up
    try:
        import atheris
    except ImportError:
        print(f"{target}: mutating for {seconds:g} s (pip install -e '.[fuzz]' for coverage guidance)")
        return mutate(target, seconds)
    with atheris.instrument_imports(include=["protocol", "loader", "compute"]):
        from support.fuzz_targets import TARGETS

        for seed in (CORPUS / target).iterdir():  # what is imported on the way is instrumented too
            TARGETS[target](seed.read_bytes())
    arguments = [f"-max_total_time={seconds:.0f}", "-max_len=65536", "-timeout=20", "-rss_limit_mb=2048"]
    artefacts = f"-artifact_prefix={CORPUS / target}/found-"
    (REACHED / target).mkdir(parents=True, exist_ok=True)
    folders = [str(REACHED / target), str(CORPUS / target)]  # what is new goes into the first
    atheris.Setup([sys.argv[0], *arguments, artefacts, *folders], TARGETS[target])
    atheris.Fuzz()
    return None


def mutate(target: str, seconds: float) -> None:
    """Without guidance: mutations of the corpus, counted."""
    from support.fuzz_targets import TARGETS

    seeds = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    rng = random.Random()
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        data = mutated(rng.choice(seeds), rng, rng.choice(seeds))
        count += 1
        try:
            TARGETS[target](data)
        except BaseException:
            name = f"found-{hashlib.sha1(data).hexdigest()[:12]}"
            (CORPUS / target / name).write_bytes(data)
            print(f"{target}: broken by {CORPUS / target / name}")
            raise
    print(f"{target}: {count} inputs, none broke it")


if __name__ == "__main__":
    main()
