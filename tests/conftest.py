from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.fakes.cuda_library import FakeCuda
    from tests.fakes.fake_tensorrt import Faults


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("EDGEVISION_DATA")
    if not root:
        pytest.skip("EDGEVISION_DATA is not set: the real images and weights are not here")
    return Path(root)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The nets of tests are tiny: handing their work to a second thread takes longer than doing it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> FakeCuda:
    """An imaginary NVIDIA driver, compiled once."""
    from tests.fakes.cuda_library import FakeCuda

    return FakeCuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def fake_cuda(cuda_library: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    """The imaginary driver in the place of the real one, with one GPU and nothing on it."""
    from edgevision.runtime import cuda

    cuda_library.reset()
    monkeypatch.setattr(cuda, "LIBRARY", str(cuda_library.path))
    monkeypatch.setenv("EDGEVISION_CACHE", str(tmp_path / "cache"))
    cuda._load.cache_clear()
    yield cuda_library
    cuda._load.cache_clear()
    assert cuda_library.alive == 0, "contexts, streams, events or memory were not given back"


@pytest.fixture
def fake_tensorrt(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Faults]:
    """Puts a TensorRT of some version in place; returns its faults and counters."""
    from tests.fakes.fake_tensorrt import Faults, make_tensorrt

    def install(version: str = "10.3.0", **faults: Any) -> Faults:
        made = Faults(**faults)
        monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(version, fake_cuda, made))
        return made

    return install


def pytest_configure() -> None:
    # a run started in the background ignores Ctrl-C, and so would the child processes whose Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)
