"""History: an observer's looks of the last seconds, and the way back in after the loader's death."""

import time
from typing import Self

from launch.top.observer import Observer
from launch.top.sample import Sample
from launch.top.scene import Scene, recent, scene_of
from protocol.errors import LoaderLostError, SidestageError

#: Looks nearer to each other than this are one.
MIN_INTERVAL_S = 0.25


class History:
    """Looks at the loader behind `endpoint`; after its death, at its successor's."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        """Come in. Raises SidestageError when nobody opens."""
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._samples: list[Sample] = []
        self._observer: Observer | None = Observer(endpoint, timeout_s)

    def scene(self) -> Scene:
        """What there is to see now. Raises SidestageError; the next call tries to come in again."""
        if not self._samples or time.monotonic() - self._samples[-1].taken_s >= MIN_INTERVAL_S:
            self._look()
        return scene_of(self._samples)

    def close(self) -> None:
        """Leave. Idempotent."""
        if self._observer is not None:
            self._observer.close()
            self._observer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _look(self) -> None:
        if self._observer is None:
            self._observer = Observer(self._endpoint, self._timeout_s)
        try:
            self._samples.append(self._observer.look())
        except (SidestageError, OSError) as error:
            self._samples.clear()
            self.close()
            raise LoaderLostError(str(error)) from error
        self._samples = recent(self._samples)
