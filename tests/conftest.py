from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("EDGEVISION_DATA")
    if not root:
        pytest.skip("EDGEVISION_DATA is not set: the real images and weights are not here")
    return Path(root)


def pytest_configure() -> None:
    # a run started in the background ignores Ctrl-C, and so would the child processes whose Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)
