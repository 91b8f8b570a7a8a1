"""What `sidestage run` was asked to do, checked before anything is started.

Owns the command line's settings; the rules between those that `offload` shares are `Settings`'.
Knows no model, no store and no device: what depends on one of those is checked where it is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compute.budget import ARRANGEMENTS
from compute.cache_folder import Quantization
from compute.patience import timeout_setting
from compute.policies import DEFAULT, OFFLINE, find
from compute.settings import Settings, Size, layers_ahead, rate_of, size_of

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The settings of one run, in the command line's words. None: not said.

    Sizes are bytes, `link` is bytes per second. Raises ValueError with a sentence.
    """

    model: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 200
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    bits: str | None = None
    group: int | None = None
    fast: bool = False
    arrangement: str = "auto"
    slots: int | None = None
    vram: int | None = None
    stage: int = 1
    ram: int | None = None
    policy: str = DEFAULT
    predictor: str = "gate"
    lookahead: int | None = None
    link: int | None = None
    connect: str | None = None
    timeout: float | None = None
    direct_io: str = "auto"
    json: str | None = None
    timeline: str | None = None

    def __post_init__(self) -> None:
        _check_choice("--device", self.device, DEVICES)
        _check_choice("--dtype", self.dtype, DTYPES)
        _check_choice("--arrangement", self.arrangement, ("auto", *ARRANGEMENTS))
        self._check_generation()
        self._check_budgets()
        self._check_shared_rules()
        _check_policy(self.policy)
        timeout_setting(self.timeout)

    @property
    def layers_ahead(self) -> int:
        """The lookahead that applies."""
        return layers_ahead(self.predictor, self.lookahead)

    @property
    def quantization(self) -> Quantization:
        """How the model shall be converted, or what its store is expected to be."""
        return Quantization(self.bits, self.group, self.fast)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_quiet(self) -> bool:
        """Whether stdout belongs to the JSON object alone."""
        return self.json == "-"

    def ignored(self) -> list[str]:
        """One sentence for each setting that has no effect beside the others."""
        pairs = (
            (self.is_greedy and self.top_p is not None, "--top-p has no effect at --temperature 0"),
            (self.is_greedy and self.seed is not None, "--seed has no effect at --temperature 0"),
            (self.bits == "none" and self.group is not None, "--group has no effect with --bits none"),
            (self.bits == "none" and self.fast, "--fast has no effect with --bits none"),
        )
        return [sentence for applies, sentence in pairs if applies]

    def _check_generation(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature is {self.temperature:g}; it must be 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"--repetition-penalty is {self.repetition_penalty:g}; it must be above 0")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed is {self.seed}; it must be 0 or more, below 2**63")

    def _check_budgets(self) -> None:
        if self.slots is not None and self.vram is not None:
            raise ValueError("--slots and --vram both say how many experts are resident: pass one of them")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"--slots is {self.slots}; it must be at least the model's top-k")
        if self.ram == 0:
            raise ValueError("--ram is 0; write a size like 900MiB or 2GiB")

    def _check_shared_rules(self) -> None:
        Settings(
            quantization=self.quantization,
            ram=self.ram,
            slots=self.slots,
            vram=self.vram,
            arrangement=self.arrangement,
            link=self.link,
            policy=self.policy,
            predictor=self.predictor,
            lookahead=self.layers_ahead,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            connect=self.connect,
            direct_io=self.direct_io,
            stage=self.stage,
        )


def run_config(words: Mapping[str, object]) -> RunConfig:
    """The config of an option's name -> its value, sizes and rates still as people write them."""
    sizes = {name: size_of(f"--{name}", _size(words.get(name))) for name in ("vram", "ram")}
    return RunConfig(**{**words, **sizes, "link": rate_of("--link", _size(words.get("link")))})  # type: ignore[arg-type]


def _size(word: object) -> Size | None:
    assert word is None or isinstance(word, int | str), f"{word!r} is no size"
    return word


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check_policy(spec: str) -> None:
    """A known name must be one that a run can use; a class of the user's is met when compute starts."""
    if ":" in spec:
        return
    find(spec)
    if spec.partition("+")[0] in OFFLINE:
        raise ValueError(f"--policy {spec} must know the future, which only a replay of a trace does")
