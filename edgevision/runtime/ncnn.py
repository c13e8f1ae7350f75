"""The ncnn engine: CPU inference on ARM and x86 boards.

What `edgevision.bundle.Manifest.engine_options` tells it:

- ``input_blobs``, ``output_blobs``: name in the bundle → blob in the ``.param``;
- ``output_shapes``: output → shape without its batch, as ncnn drops dimensions of size 1;
- ``integer_blobs``: blob that holds int8 → its step, for layer-wise parity;
- ``fp16``, ``int8``: the arithmetic the model was made for.

ncnn knows no batch: a batch is a loop over its pictures.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import BundleError, EngineError, UsageError
from edgevision.runtime.backend import EngineOptions

if TYPE_CHECKING:
    from edgevision.bundle import Bundle

# Layers that may read memory ncnn does not own. Others may work in place, which overwrites the caller's array or
# follows a reference counter that borrowed memory does not have.
_BORROWING = frozenset({"Convolution", "ConvolutionDepthWise"})


def open_engine(bundle: Bundle, options: EngineOptions) -> NcnnEngine:
    """Load a bundle's ``.param`` and ``.bin``.

    Raises:
        MissingDependencyError: ncnn is not installed.
        BundleError: the manifest lacks what the engine must be told.
        EngineError: ncnn refused the files.
        UsageError: ``options.layers`` names a tensor that no blob holds.
    """
    return NcnnEngine(bundle, options)


class NcnnEngine:
    """A loaded ncnn network; see `edgevision.runtime.backend.Engine`."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        # OpenMP threads that spin while they wait take 50 times as long on a machine that does anything else
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._ncnn = require("ncnn", purpose="run ncnn bundles")
        self.version = str(getattr(self._ncnn, "__version__", "unknown"))
        manifest = bundle.manifest
        wanted = manifest.engine_options
        try:
            self._inputs = [(spec.name, str(wanted["input_blobs"][spec.name])) for spec in manifest.inputs]
            self._outputs = [
                (spec.name, str(wanted["output_blobs"][spec.name]), tuple(map(int, wanted["output_shapes"][spec.name])))
                for spec in manifest.outputs
            ]
            self._steps = {str(blob): float(step) for blob, step in wanted.get("integer_blobs", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"engine_options of an ncnn bundle lack or garble {error}; make the bundle again"
            ) from error
        self._layers = [(name, _blob_of(name, manifest.tensor_names)) for name in options.layers]
        param = bundle.engine_file("param").decode("utf-8", "replace")
        self._net: Any = self._load(param, bundle.engine_file("bin"), wanted, options)
        self._borrows = {blob: _is_borrowed(param, blob) for _, blob in self._inputs}

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch, picture by picture.

        Raises:
            EngineError: ncnn failed, or the engine is closed.
        """
        net = self._net
        if net is None:
            raise EngineError("the ncnn engine is closed")
        count = len(next(iter(feed.values())))
        if count == 1:
            return self._infer_one(net, feed, 0)
        pictures = [self._infer_one(net, feed, index) for index in range(count)]
        return {name: np.concatenate([picture[name] for picture in pictures]) for name in pictures[0]}

    def close(self) -> None:
        """Free the network; calls under way in other threads end first."""
        self._net = None

    def _infer_one(self, net: Any, feed: Mapping[str, npt.NDArray[Any]], index: int) -> dict[str, npt.NDArray[Any]]:
        mat = self._ncnn.Mat
        # one extractor a call: it holds all that a call changes, so threads do not meet
        extractor = net.create_extractor()
        if self._layers:
            extractor.set_light_mode(False)
        # every array outlives the extractor: a Mat borrows its memory without a reference
        arrays = [feed[name][index] for name, _ in self._inputs]
        for array, (name, blob) in zip(arrays, self._inputs, strict=True):
            borrowed = mat(array)
            code = extractor.input(blob, borrowed if self._borrows[blob] else borrowed.clone())
            if code != 0:
                raise EngineError(f"ncnn does not take input {name!r} as blob {blob!r} (return code {code})")
        results: dict[str, npt.NDArray[Any]] = {}
        for name, blob, shape in self._outputs:
            value = self._extract(extractor, name, blob)
            if value.size != math.prod(shape):
                raise EngineError(f"ncnn answers {value.size} values for {name!r}; the bundle says {list(shape)}")
            results[name] = value.reshape(1, *shape)
        for name, blob in self._layers:
            array = self._extract(extractor, name, blob)[None]
            results[name] = array.astype(np.float32) * self._steps[blob] if blob in self._steps else array
        return results

    def _extract(self, extractor: Any, name: str, blob: str) -> npt.NDArray[Any]:
        code, mat = extractor.extract(blob)
        if code != 0:
            raise EngineError(f"ncnn {self.version} failed to compute {name!r}, blob {blob!r} (return code {code})")
        # the Mat is ncnn's own copy, kept alive by the array; rows are copied only where ncnn padded them
        return np.ascontiguousarray(mat)

    def _load(self, param: str, data: bytes, wanted: Mapping[str, Any], options: EngineOptions) -> Any:
        net = self._ncnn.Net()
        self._configure(net.opt, wanted, options)
        code = net.load_param_mem(param)
        if code != 0:
            unknown = _unknown_layers(self._ncnn, param)
            why = f"it has no layer {', '.join(unknown)}" if unknown else f"return code {code}"
            raise EngineError(f"ncnn {self.version} refuses the model's structure ({why}): pip install --upgrade ncnn")
        # load_model_mem neither knows where the data end nor reports failure; a file does both
        code = _with_file(data, net.load_model)
        if code != 0:
            raise EngineError(
                f"ncnn {self.version} refuses the model's weights (return code {code}): make the bundle again, or "
                "pip install --upgrade ncnn"
            )
        known = set(net.input_names()) | {blob.name for blob in net.blobs()}
        named = [blob for _, blob in self._inputs] + [blob for _, blob, _ in self._outputs]
        if absent := [blob for blob in named if blob not in known]:
            raise EngineError(f"the ncnn model has no blob {', '.join(absent)} that engine_options name")
        return net

    def _configure(self, opt: Any, wanted: Mapping[str, Any], options: EngineOptions) -> None:
        if options.threads > 0:
            opt.num_threads = options.threads
        opt.lightmode = not self._layers
        fp16 = bool(wanted.get("fp16", False)) and self._computes_fp16()
        opt.use_fp16_packed = opt.use_fp16_storage = opt.use_fp16_arithmetic = fp16
        opt.use_bf16_storage = False
        # an INT8 model without integer inference answers NaN or crashes
        opt.use_int8_inference = True

    def _computes_fp16(self) -> bool:
        """Whether float16 is worth it: stored without float16 arithmetic it costs several times the instructions."""
        if platform.machine().lower() in ("aarch64", "arm64", "armv7l", "armv8l"):
            return bool(self._ncnn.cpu_support_arm_asimdhp())
        return True


def _blob_of(tensor: str, tensor_names: Mapping[str, str]) -> str:
    if tensor not in tensor_names:
        raise UsageError(f"tensor {tensor!r} is in no blob of the ncnn model: it was fused away; ask for another layer")
    return tensor_names[tensor]


def _is_borrowed(param: str, blob: str) -> bool:
    """Whether every layer that reads an input blob leaves its memory alone."""
    readers = [
        words for words in map(str.split, param.splitlines()[2:]) if words and blob in words[4 : 4 + int(words[2])]
    ]
    return all(words[0] in _BORROWING for words in readers)


def _unknown_layers(ncnn: Any, param: str) -> list[str]:
    kinds = dict.fromkeys(line.split()[0] for line in param.splitlines()[2:] if line.strip())
    return [kind for kind in kinds if ncnn.layer_to_index(kind) < 0]


def _with_file(data: bytes, load: Callable[[str], int]) -> int:
    """Give ``load`` a file that nobody else sees: in memory on Linux, else a private one that is removed at once."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("edgevision-ncnn")
        try:
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                stream.write(data)
            return load(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    with tempfile.TemporaryDirectory(prefix="edgevision-") as folder:
        file = Path(folder, "model.bin")
        file.write_bytes(data)
        return load(str(file))
