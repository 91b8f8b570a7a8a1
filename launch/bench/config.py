"""What `sidestage bench` was asked to do, checked before anything is built or started."""

from dataclasses import dataclass
from pathlib import Path

from compute.cache_folder import Quantization
from compute.cuda_presence import has_cuda
from compute.policies import DEFAULT, OFFLINE, find
from launch.bench import shapes
from launch.bench.arms import arm_of
from loader import direct_io


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Sizes in bytes, rates in bytes a second. None: not said. Raises ValueError with a sentence.

    `arms` () means: all that need neither a trace nor a checkpoint to be made.
    """

    model: str | None = None
    shape: str | None = None
    layers: int | None = None
    routing: str | None = None
    slots: int | None = None
    ram: int | None = None
    arms: tuple[str, ...] = ()
    pp: int = 64
    tg: int = 32
    repeat: int = 3
    gate_recall: float = 0.75
    seed: int = 0
    device: str = "cpu"
    bits: str | None = None
    group: int | None = None
    lookahead: int = 1
    link: int | None = None
    rate: int | None = None
    policy: str = DEFAULT
    direct_io: str = "auto"
    threads: int | None = None
    timeout: float | None = None
    json: str | None = None

    def __post_init__(self) -> None:
        self._check_subject()
        self._check_arms()
        for name, value in (("--pp", self.pp), ("--tg", self.tg), ("--repeat", self.repeat)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; it must be at least 1")
        if self.lookahead < 0:
            raise ValueError(f"--lookahead is {self.lookahead}; it must be 0 (off) or more")
        if not 0 <= self.gate_recall <= 1:
            raise ValueError(f"--gate-recall is {self.gate_recall:g}; allowed is 0 to 1")
        direct_io.check_choice(self.direct_io)
        self._check_policy()
        self._check_device()

    @property
    def quantization(self) -> Quantization:
        return Quantization(self.bits, self.group)

    def _check_subject(self) -> None:
        if self.model is not None and self.shape is not None:
            raise ValueError("MODEL and --shape both name a model: leave one of them out")
        if self.layers is not None and self.shape is None:
            raise ValueError("--layers cuts a --shape, a model keeps all of its layers: leave it out")
        if self.shape is not None:
            shapes.config_of(self.shape, self.layers)
        if self.routing is not None and not Path(self.routing).is_file():
            raise ValueError(f"--routing {self.routing}: there is no such file")
        if self.slots is not None and self.ram is not None:
            raise ValueError(
                "--slots and --ram both say how many experts have a place: leave one of them out"
            )

    def _check_arms(self) -> None:
        arms = [arm_of(name, self.lookahead) for name in self.arms]
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"--arms {','.join(self.arms)} names an arm twice")
        oracles = [arm for arm in arms if arm.kind == "oracle"]
        if oracles and self.routing is None:
            raise ValueError(
                "the arm oracle knows what a trace recorded: pass --routing T.npz, or leave it out"
            )
        if any(arm.lookahead == 0 for arm in oracles):
            raise ValueError("the arm oracle looks ahead: pass --lookahead 1 or more, or leave it out")

    def _check_device(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"--device is {self.device!r}; allowed: cpu, cuda")
        if self.device == "cpu":
            staged = [name for name in self.arms if arm_of(name, self.lookahead).stage > 1]
            if staged:
                raise ValueError(f"--arms {staged[0]} names a stage of a CUDA device: pass --device cuda too")
            return
        if self.link is not None or self.rate is not None:
            raise ValueError(
                "--link and --rate stand in for a device and a disk; with --device cuda experts cross the "
                "real link, out of host memory: leave them out"
            )
        if self.ram is not None:
            raise ValueError("--ram does not bound what is resident on a CUDA device: pass --slots")
        if not has_cuda():
            raise ValueError("--device is 'cuda', and there is no CUDA device here: use cpu")

    def _check_policy(self) -> None:
        if self.policy in OFFLINE:
            raise ValueError(f"--policy {self.policy} needs the future: it runs in `simulate` only")
        find(self.policy)
