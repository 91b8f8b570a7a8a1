"""What `sidestage plan` was asked, checked before anything is looked at."""

from dataclasses import dataclass

from compute.cache_folder import Quantization


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Sizes in bytes, rates in bytes a second. None: not said. Raises ValueError with a sentence.

    `vram` and `ram` mean what they mean to `run`: memory for slots on a CUDA device, and for the
    arena. `compute` is how many bytes of weights the device works through in a second.
    """

    model: str
    vram: int | None = None
    ram: int | None = None
    slots: int | None = None
    context: int | None = None
    link: int | None = None
    compute: int | None = None
    bits: str | None = None
    group: int | None = None
    threads: int | None = None
    trace: str | None = None
    save: str | None = None
    json: str | None = None

    def __post_init__(self) -> None:
        if self.slots is not None and self.vram is not None:
            raise ValueError("--slots and --vram both say how many experts are resident: pass one of them")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"--slots is {self.slots}; it must be at least the model's top-k")
        if self.ram == 0 or self.vram == 0:
            raise ValueError("--ram and --vram must be above 0: write a size like 900MiB or 2GiB")
        if self.context is not None and self.context < 1:
            raise ValueError(f"--context is {self.context}; it must be at least 1 token")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; it must be at least 1")
        if self.save == "-":
            raise ValueError("--save writes a file for `sidestage run --config`: name one, such as run.toml")

    @property
    def quantization(self) -> Quantization:
        return Quantization(self.bits, self.group)
