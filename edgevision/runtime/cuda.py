"""The part of CUDA's driver API that running an engine takes, through ctypes: no package is needed, and the library
is wherever a driver is. Memory lives in the device's primary context, the one that torch and cupy share.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgevision.errors import EngineError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_STREAM_NON_BLOCKING = 1  # or every launch would wait for the legacy default stream

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid": (c_void_p, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}


@dataclass(frozen=True)
class DeviceInfo:
    """One GPU.

    Attributes:
        name: e.g. ``"Orin"``.
        sm: compute capability, e.g. ``"8.7"``.
        uuid: 32 hexadecimal digits, of this very board.
        memory_bytes: all of its memory; on a Jetson shared with the CPU.
        driver: newest CUDA version the driver serves, e.g. ``"12.6"``.
    """

    name: str
    sm: str
    uuid: str
    memory_bytes: int
    driver: str


class Driver:
    """The loaded driver library; every call that fails is an `EngineError` with CUDA's own words."""

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise EngineError(
                f"no NVIDIA driver here ({library} cannot be loaded); the engine is compiled on the device that runs it"
            ) from error
        for name, arguments in _ARGUMENTS.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise EngineError(
                    f"the NVIDIA driver has no {name}; update it to one for CUDA 11.4 or later"
                ) from error
            function.argtypes = arguments
            function.restype = c_int

    def call(self, name: str, *arguments: Any, doing: str = "") -> None:
        """Call a function of the driver.

        Args:
            name: the C function.
            arguments: as ctypes takes them.
            doing: what is tried, for the message: ``"copying the input to the GPU"``.

        Raises:
            EngineError: it returned an error.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise EngineError(self._message(name, code, doing))

    def _message(self, name: str, code: int, doing: str) -> str:
        symbol, text = c_char_p(), c_char_p()
        self._library.cuGetErrorName(code, byref(symbol))
        self._library.cuGetErrorString(code, byref(text))
        said = f"{(symbol.value or b'CUDA error').decode()} ({code}): {(text.value or b'unknown error').decode()}"
        if code == _OUT_OF_MEMORY:
            return f"the GPU is out of memory {doing or 'in ' + name}: {said}; free some, or use a smaller batch"
        if code == _NO_DEVICE:
            return f"the NVIDIA driver sees no GPU: {said}; check CUDA_VISIBLE_DEVICES and the container's GPU access"
        return f"CUDA failed {doing or 'in ' + name}: {said}"


@lru_cache(maxsize=1)
def _load(library: str) -> Driver:
    driver = Driver(library)
    driver.call("cuInit", 0, doing="starting the driver")
    return driver


def device_info(index: int = 0) -> DeviceInfo:
    """Describe a GPU; touches neither its memory nor TensorRT.

    Raises:
        EngineError: no driver, no GPU, or fewer than ``index + 1``.
    """
    driver = _load(LIBRARY)
    handle = _handle(driver, index)
    name = ctypes.create_string_buffer(256)
    driver.call("cuDeviceGetName", name, len(name), handle)
    uuid = ctypes.create_string_buffer(16)
    driver.call("cuDeviceGetUuid", uuid, handle)
    parts = []
    for attribute in _COMPUTE_CAPABILITY:
        value = c_int()
        driver.call("cuDeviceGetAttribute", byref(value), attribute, handle)
        parts.append(str(value.value))
    memory, version = c_size_t(), c_int()
    driver.call("cuDeviceTotalMem_v2", byref(memory), handle)
    driver.call("cuDriverGetVersion", byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return DeviceInfo(name.value.decode(), ".".join(parts), uuid.raw.hex(), memory.value, cuda)


def _handle(driver: Driver, index: int) -> int:
    count, handle = c_int(), c_int()
    driver.call("cuDeviceGetCount", byref(count))
    if not count.value:
        raise EngineError(
            "the NVIDIA driver sees no GPU (it counts 0); check CUDA_VISIBLE_DEVICES and the container's GPU access"
        )
    if not 0 <= index < count.value:
        raise EngineError(f"there is no GPU {index}; the driver counts {count.value}, from 0")
    driver.call("cuDeviceGet", byref(handle), index)
    return handle.value


class Device:
    """A GPU held open: its primary context, retained until `close`.

    Memory, streams and events are plain integers (device addresses and handles), as TensorRT takes them. All
    methods but `active` and `close` want to be called inside ``with device.active():``.
    """

    def __init__(self, index: int = 0) -> None:
        self.info = device_info(index)
        self._driver = _load(LIBRARY)
        self._handle = _handle(self._driver, index)
        context = c_void_p()
        self._driver.call("cuDevicePrimaryCtxRetain", byref(context), self._handle, doing="opening the GPU")
        self._context: c_void_p | None = context

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the GPU the calling thread's own; contexts belong to threads.

        Raises:
            EngineError: the device is closed.
        """
        if self._context is None:
            raise EngineError("this GPU has been closed; open it again")
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, nbytes: int) -> int:
        """Device address of ``nbytes`` new bytes, aligned to at least 256; raises `EngineError` when out of memory."""
        address = c_uint64()
        # CUDA refuses to allocate nothing
        self._driver.call("cuMemAlloc_v2", byref(address), max(nbytes, 1), doing=f"allocating {nbytes} bytes")
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._driver.call("cuMemFree_v2", address)

    def copy_in(self, address: int, host: int, nbytes: int, stream: int) -> None:
        """Host → device, in the stream's order; ``host`` must stay until the stream is synchronized."""
        self._driver.call("cuMemcpyHtoDAsync_v2", address, host, nbytes, stream, doing="copying to the GPU")

    def copy_out(self, host: int, address: int, nbytes: int, stream: int) -> None:
        """Device → host, in the stream's order; ``host`` is filled once the stream is synchronized."""
        self._driver.call("cuMemcpyDtoHAsync_v2", host, address, nbytes, stream, doing="copying from the GPU")

    def create_stream(self) -> int:
        """A new stream."""
        stream = c_void_p()
        self._driver.call("cuStreamCreate", byref(stream), _STREAM_NON_BLOCKING)
        return int(stream.value or 0)

    def synchronize(self, stream: int) -> None:
        """Wait for the stream's work; raises `EngineError` when some of it failed."""
        self._driver.call("cuStreamSynchronize", stream, doing="running the network")

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._driver.call("cuStreamDestroy_v2", stream)

    def create_event(self) -> int:
        """A new event, to time a stream's work with."""
        event = c_void_p()
        self._driver.call("cuEventCreate", byref(event), 0)
        return int(event.value or 0)

    def record(self, event: int, stream: int) -> None:
        """Note the time when the stream gets here."""
        self._driver.call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds of GPU time between two recorded events; waits for the later one."""
        self._driver.call("cuEventSynchronize", end)
        value = c_float()
        self._driver.call("cuEventElapsedTime", byref(value), start, end)
        return value.value

    def destroy_event(self, event: int) -> None:
        """End an event."""
        self._driver.call("cuEventDestroy_v2", event)

    def close(self) -> None:
        """Release the primary context; called once or more."""
        if self._context is not None:
            self._context = None
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._handle)
