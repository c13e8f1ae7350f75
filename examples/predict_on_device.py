"""What runs on the board: a bundle and pictures, with numpy, Pillow and one runtime; neither torch nor onnx.

Without arguments it takes what `convert_own_onnx.py` made.

    python examples/predict_on_device.py [BUNDLE [IMAGE ...]]
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

import edgevision as ev


def main(bundle: str = "bundles/own-ncnn-int8.evb", *images: str) -> None:
    pictures = list(images) or ["bundles/photos/000.jpg", "bundles/photos/001.jpg"]
    with ev.load(bundle, threads=1) as net:
        manifest = net.bundle.manifest
        print(f"{manifest.name}: {manifest.precision} on {manifest.target} {net.engine_version}")

        # pictures: paths, PIL images or uint8 arrays [H, W, 3]; the preprocess is the bundle's own
        for path, result in zip(pictures, net(pictures), strict=True):
            print(path, [f"{name} {probability:.2f}" for name, probability in result.top(3)])
        frame = np.asarray(Image.open(pictures[0]).convert("RGB"))
        assert net(frame).label == net(pictures[0]).label

        # tensors: arrays in, arrays out, nothing in between
        tensor = manifest.preprocess.batch(pictures[:1])  # float32 [1, C, H, W]
        feed = {net.inputs[0].name: tensor}
        begun = time.perf_counter()
        for _ in range(100):
            outputs = net.infer(feed)
        each = (time.perf_counter() - begun) * 1e3 / 100
        print({name: value.shape for name, value in outputs.items()}, f"{each:.3f} ms each")

        # one session serves several threads
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(net.infer, [feed] * 16))
        name = net.outputs[0].name
        assert all(np.array_equal(answer[name], answers[0][name]) for answer in answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
