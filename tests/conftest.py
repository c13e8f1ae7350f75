from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("EDGEVISION_DATA")
    if not root:
        pytest.skip("EDGEVISION_DATA is not set: the real images and weights are not here")
    return Path(root)
