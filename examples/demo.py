"""The whole way in one program: train, fuse, export, calibrate, convert, prove, measure, report.

Trains a small RepVGG on scikit-learn's handwritten digits (nothing is downloaded), converts it for four engines in
FP32 and INT8, and writes demo/report/index.html. A second run reuses what is finished.

    python examples/demo.py [FOLDER]
"""

import sys
import time
from pathlib import Path

import edgevision as ev
from edgevision.models.reparameterize import reparameterization_error, reparameterize

TARGETS = ["onnxruntime", "openvino", "ncnn", "tensorrt"]


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    begun = time.monotonic()

    model = ev.create_model("repvgg_tiny", num_classes=10, in_channels=1, input_size=32)
    checkpoint = ev.train(model, "digits", out=out / "run")
    print(f"trained: {checkpoint.metrics}")

    trained = checkpoint.build()
    print(f"fused: largest difference {fusion_error(trained):.2g}")

    bundles = ev.convert(
        checkpoint, targets=TARGETS, precision=["fp32", "int8"], data="digits", out=out / "bundles", name="digits"
    )
    here = [bundle for bundle in bundles if bundle.manifest.target != "tensorrt"]
    for bundle in here:
        proof = ev.verify(bundle)
        verdict = "parity holds" if proof.passed else "PARITY FAILS"
        print(f"{bundle.path}: {verdict}, cosine {proof.fp32.cosine:.6f}, {proof.fp32.sqnr_db:.1f} dB")
        if not proof.passed:
            return 3
    print("the TensorRT bundles are compiled by the Jetson that loads them first")

    report = ev.bench(here, "digits", rounds=2, seconds=0.3, batch_size=1, title="Handwritten digits, RepVGG")
    page = report.save(out / "report")
    print(report.table())
    print(f"{page} written after {time.monotonic() - begun:.0f} s")
    return 1 if report.errors else 0


def fusion_error(trained) -> float:
    """Largest difference between the three-branch network and its fused form, on a batch of noise."""
    import torch

    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return reparameterization_error(trained, reparameterize(trained), images)


if __name__ == "__main__":
    sys.exit(main())
