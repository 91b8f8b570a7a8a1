"""The memory of a stress run's processes over time: flat, or it leaks.

Keeps a bounded number of windows of equal length; when they are full, neighbours are joined. Pure:
samples and times are passed in.
"""

from dataclasses import dataclass, field

#: A table of that many lines can be read.
MAX_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident bytes: of the run itself, of the loader, of the largest client. The arena counts in each."""

    run_bytes: int
    loader_bytes: int
    client_bytes: int

    @property
    def largest(self) -> int:
        return max(self.run_bytes, self.loader_bytes, self.client_bytes)

    def joined(self, other: "Sample") -> "Sample":
        """The larger of each."""
        return Sample(
            max(self.run_bytes, other.run_bytes),
            max(self.loader_bytes, other.loader_bytes),
            max(self.client_bytes, other.client_bytes),
        )


@dataclass(slots=True)
class MemoryCurve:
    """The largest sample of each window, oldest first."""

    window_s: float = 1.0
    windows: list[Sample] = field(default_factory=list)

    def note(self, at_s: float, sample: Sample) -> None:
        """`at_s`: seconds since the run began; never earlier than the last."""
        while at_s >= self.window_s * MAX_WINDOWS:
            self._halve()
        number = int(at_s / self.window_s)
        while len(self.windows) <= number:
            self.windows.append(sample)
        self.windows[number] = self.windows[number].joined(sample)

    @property
    def largest(self) -> int:
        return max((sample.largest for sample in self.windows), default=0)

    def as_json(self) -> list[dict[str, float | int]]:
        """One row a window: the second it ends at, and the largest of its samples."""
        return [
            {
                "until_s": round((number + 1) * self.window_s, 1),
                "run_bytes": sample.run_bytes,
                "loader_bytes": sample.loader_bytes,
                "client_bytes": sample.client_bytes,
            }
            for number, sample in enumerate(self.windows)
        ]

    def _halve(self) -> None:
        pairs = [self.windows[i : i + 2] for i in range(0, len(self.windows), 2)]
        self.windows = [pair[0].joined(pair[-1]) for pair in pairs]
        self.window_s *= 2
