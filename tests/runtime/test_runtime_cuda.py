from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgevision.errors import EngineError
from edgevision.runtime import cuda
from tests.fakes.cuda_library import MEMORY


@pytest.fixture
def device(fake_cuda):
    device = cuda.Device()
    yield device
    device.close()


def test_device_info_tells_name_capability_memory_and_driver(fake_cuda):
    info = cuda.device_info()
    assert info == cuda.DeviceInfo("Imaginary Orin", "8.7", "000102030405060708090a0b0c0d0e0f", MEMORY, "12.6")
    assert fake_cuda.alive == 0


def test_no_driver_is_one_line_that_says_where_engines_are_compiled(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-here.so.1")
    with pytest.raises(EngineError) as caught:
        cuda.device_info()
    assert str(caught.value) == (
        "no NVIDIA driver here (libcuda-that-is-not-here.so.1 cannot be loaded); the engine is compiled on the device "
        "that runs it"
    )


def test_the_library_that_is_looked_for_is_the_drivers():
    wanted = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    assert wanted == cuda.LIBRARY


def test_a_library_without_the_calls_is_named_too_old(tmp_path, monkeypatch, fake_cuda):
    source, built = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    monkeypatch.setattr(cuda, "LIBRARY", str(built))
    with pytest.raises(EngineError, match=r"has no cuDriverGetVersion; update it"):
        cuda.device_info()


def test_a_driver_without_gpus_says_what_to_check(fake_cuda):
    fake_cuda.reset(devices=0)
    with pytest.raises(EngineError, match=r"sees no GPU.*CUDA_VISIBLE_DEVICES"):
        cuda.Device()
    cuda._load.cache_clear()
    fake_cuda.reset(init_code=100)
    with pytest.raises(EngineError, match=r"sees no GPU: CUDA_ERROR_NO_DEVICE \(100\).*CUDA_VISIBLE_DEVICES"):
        cuda.Device()


def test_a_gpu_that_is_not_there_is_counted(fake_cuda):
    with pytest.raises(EngineError, match="there is no GPU 1; the driver counts 1"):
        cuda.device_info(1)


def test_an_error_the_driver_has_no_name_for_keeps_its_number(fake_cuda):
    fake_cuda.reset(init_code=999)
    with pytest.raises(EngineError, match=r"starting the driver: CUDA error \(999\): unknown error"):
        cuda.device_info()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int8, np.bool_])
def test_arrays_come_back_from_the_gpu_as_they_went(device, fake_cuda, dtype):
    array = (np.random.default_rng(0).normal(0, 50, (2, 3, 5)) > 0).astype(dtype)
    back = np.zeros_like(array)
    with device.active():
        stream, address = device.create_stream(), device.allocate(array.nbytes)
        device.copy_in(address, array.ctypes.data, array.nbytes, stream)
        device.copy_out(back.ctypes.data, address, array.nbytes, stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(back, array)
        assert fake_cuda.alive == 3  # context, stream, memory
        device.free(address)
        device.destroy_stream(stream)
    assert fake_cuda.alive == 1


def test_events_time_the_stream(device):
    with device.active():
        stream, start, end = device.create_stream(), device.create_event(), device.create_event()
        device.record(start, stream)
        device.record(end, stream)
        assert device.elapsed_ms(start, end) == 1.5  # what the imaginary driver always says
        for event in (start, end):
            device.destroy_event(event)
        device.destroy_stream(stream)


def test_out_of_memory_says_how_much_was_wanted_and_what_to_do(device):
    with device.active(), pytest.raises(EngineError, match=r"out of memory allocating 134217728 bytes.*smaller batch"):
        device.allocate(2 * MEMORY)


def test_nothing_can_be_allocated(device):
    with device.active():
        address = device.allocate(0)
        assert address
        device.free(address)


def test_a_copy_beyond_the_end_is_an_error(device):
    array = np.zeros(8, np.float32)
    with device.active():
        stream, address = device.create_stream(), device.allocate(16)
        with pytest.raises(EngineError, match="CUDA failed copying to the GPU"):
            device.copy_in(address, array.ctypes.data, array.nbytes, stream)
        device.free(address)
        device.destroy_stream(stream)


def test_a_failure_while_running_keeps_cudas_words(device, fake_cuda):
    with device.active():
        stream = device.create_stream()
        fake_cuda.fail("cuStreamSynchronize", 700)
        with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\): an illegal memory access"):
            device.synchronize(stream)
        device.destroy_stream(stream)


def test_memory_wants_the_context_and_every_thread_gets_its_own(device):
    with pytest.raises(EngineError, match="CUDA_ERROR_INVALID_CONTEXT"):
        device.allocate(16)
    errors: list[BaseException] = []

    def work():
        try:
            with device.active():
                device.free(device.allocate(16))
            with pytest.raises(EngineError, match="CUDA_ERROR_INVALID_CONTEXT"):
                device.allocate(16)
        except BaseException as error:
            errors.append(error)

    with device.active():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert not errors


def test_a_closed_device_says_so_and_closes_twice(fake_cuda):
    device = cuda.Device()
    device.close()
    device.close()
    assert fake_cuda.alive == 0
    with pytest.raises(EngineError, match="closed"), device.active():
        pass


def test_the_module_imports_with_the_standard_library_alone():
    code = "import sys; import edgevision.runtime.cuda; print(sorted({'torch', 'onnx', 'tensorrt'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
