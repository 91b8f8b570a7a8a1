"""The real driver: copies and page-locks through libcuda, events and streams through torch.

libcuda and not the runtime for both: a failed runtime call leaves an error behind that an innocent
call of torch's raises later, and a copy through torch costs several times as much host time.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

from compute.transports.driver import DriverError, Event
from protocol.units import format_size

#: CU_MEMHOSTREGISTER_PORTABLE: page-locked for every context of the process.
_PORTABLE = 1
#: CU_MEMHOSTREGISTER_DEVICEMAP: kernels may reach it too. Where host and device share their
#: addresses, as in every 64-bit process, it goes without saying for the runtime; the driver is told.
_DEVICEMAP = 2
#: CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
_CAN_USE_HOST_POINTER = 91
_MS_IN_NS = 1e6


def has_cuda() -> bool:
    """Whether torch has a CUDA device: a ROCm build's "cuda" is not one."""
    return torch.version.cuda is not None and torch.cuda.is_available()


@dataclass(frozen=True, slots=True)
class CudaEvent:
    event: torch.cuda.Event

    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaDriver:
    """torch's current CUDA device. Raises DriverError when libcuda cannot be used."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)
        self._cuda = _load()
        with torch.cuda.device(self.device):
            torch.empty(1, device=self.device)  # from here on the device's primary context is current
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._context = ctypes.c_void_p()
            self._check(self._cuda.cuCtxGetCurrent(ctypes.byref(self._context)), "has no context")
        if not self._context:
            raise DriverError(f"{self.name} has no current context: is libcuda the one that torch uses?")
        self._copy_handle = ctypes.c_void_p(self._copies.cuda_stream)
        self._last_compute: torch.cuda.Stream | None = None

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self._within(
            "refused a copy",
            self._cuda.cuMemcpyHtoDAsync_v2,
            ctypes.c_uint64(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(num_bytes),
            self._copy_handle,
        )

    def mark_copies(self) -> CudaEvent:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._copies)
        return CudaEvent(event)

    def mark_uses(self) -> CudaEvent:
        """A stream that compute has changed to waits for the one before: one mark covers both."""
        current = torch.cuda.current_stream(self.device)
        if self._last_compute is not None and current != self._last_compute:
            current.wait_stream(self._last_compute)
        self._last_compute = current
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(current)
        return CudaEvent(event)

    def hold_copies(self, until: Event) -> None:
        assert isinstance(until, CudaEvent)
        self._copies.wait_event(until.event)

    def elapsed_ns(self, start: Event, end: Event) -> int:
        assert isinstance(start, CudaEvent) and isinstance(end, CudaEvent)
        return int(start.event.elapsed_time(end.event) * _MS_IN_NS)

    def page_lock(self, address: int, num_bytes: int) -> None:
        self._within(
            f"page-locks no {format_size(num_bytes)} more",
            self._cuda.cuMemHostRegister_v2,
            ctypes.c_void_p(address),
            ctypes.c_size_t(num_bytes),
            ctypes.c_uint(_PORTABLE | _DEVICEMAP),
        )

    def page_unlock(self, address: int) -> None:
        self._within("unlocks nothing", self._cuda.cuMemHostUnregister, ctypes.c_void_p(address))

    def reads_in_place(self) -> bool:
        device, answer = ctypes.c_int(), ctypes.c_int()
        self._within("is no device", self._cuda.cuCtxGetDevice, ctypes.byref(device))
        self._within(
            "does not say what it can do",
            self._cuda.cuDeviceGetAttribute,
            ctypes.byref(answer),
            ctypes.c_int(_CAN_USE_HOST_POINTER),
            device,
        )
        return bool(answer.value)

    def memory(self) -> tuple[int, int]:
        """What torch keeps without need is given back first."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return int(free), int(total)

    def _within(self, what: str, call: Callable[..., int], *arguments: object) -> None:
        """Call with the device's context current, whichever thread this is, and leave it as it was."""
        self._check(self._cuda.cuCtxPushCurrent_v2(self._context), "has lost its context")
        try:
            status = call(*arguments)
        finally:
            self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        self._check(status, what)

    def _check(self, status: int, what: str) -> None:
        if status == 0:
            return
        name = ctypes.c_char_p()
        self._cuda.cuGetErrorName(status, ctypes.byref(name))
        raise DriverError(f"{self.name} {what}: {(name.value or b'?').decode()} ({status})")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(
            f"NVIDIA's driver library cannot be loaded ({error}): is the driver installed?"
        ) from error
