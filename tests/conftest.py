from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


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


def pytest_configure() -> None:
    # a run started in the background ignores Ctrl-C, and so would the child processes whose Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)
