"""`Session`: one loaded bundle, the same on every engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import EngineError, UsageError
from edgevision.images import ImageLike, to_image
from edgevision.runtime.backend import BACKENDS, EngineOptions
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import TaskResult, interpret

if TYPE_CHECKING:
    from edgevision.bundle import Bundle
    from edgevision.detection.decoders import Decoder
    from edgevision.detection.postprocess import Postprocess
    from edgevision.preprocess import Placement
    from edgevision.runtime.backend import Engine
    from edgevision.runtime.frames import Frame
    from edgevision.runtime.stream import Stream


class Session:
    """A network ready to run. Safe to use from several threads; a context manager that frees the engine.

    ``session(image)`` applies the bundle's own preprocess and returns a task result; ``session.infer(feed)``
    is the engine itself: arrays in, arrays out. Open one with `edgevision.load`.

    Attributes:
        postprocess: how a detector's outputs become boxes; None for other tasks. Another one may be set, e.g.
            ``session.postprocess = dataclasses.replace(session.postprocess, confidence=0.5)``.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or EngineOptions()
        self.postprocess: Postprocess | None = bundle.manifest.postprocess
        self._engine = BACKENDS.resolve(bundle.manifest.target)(bundle, self.options)
        self._closed = False
        # what infer() compares with on every call, prepared once
        self._checks = tuple(
            (spec.name, np.dtype(spec.dtype), spec.shape[1:], spec.shape[0]) for spec in bundle.manifest.inputs
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a feed must hold."""
        return self.bundle.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` returns."""
        return self.bundle.manifest.outputs

    @property
    def engine_version(self) -> str:
        """Version of the engine's library."""
        return str(self._engine.version)

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Args:
            feed: input name → array of the declared dtype and shape (see `inputs`), e.g. float32
                ``[B, C, H, W]``. C-contiguous arrays are handed on without a copy.

        Returns:
            Output name → array, first dimension B.

        Raises:
            UsageError: a name, dtype or shape is not what the network takes.
            EngineError: the session is closed, or the engine failed.
        """
        if self._closed:
            raise EngineError("this session is closed; open the bundle again with edgevision.load(path)")
        checked = feed
        if not isinstance(feed, Mapping) or len(feed) != len(self._checks):
            raise self._wrong_feed(feed)
        for name, dtype, shape, batch in self._checks:
            array = feed.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                raise self._wrong_feed(feed)
            if array.ndim == 0 or array.shape[1:] != shape or not array.shape[0]:
                raise self._wrong_feed(feed)
            if batch is not None and array.shape[0] != batch:
                raise self._wrong_feed(feed)
            if not array.flags.c_contiguous:
                checked = {**checked, name: np.ascontiguousarray(array)}
        return self._engine.infer(checked)  # type: ignore[no-any-return]

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> TaskResult | list[TaskResult]:
        """Run on a picture (path, PIL image, ``uint8`` array ``[H, W, 3]`` RGB) or on several of them.

        A list, a tuple or an array ``[B, H, W, 3]`` gives a list with one result per picture.

        Raises:
            DataError: a picture cannot be read.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self.predict(list(images))
        if isinstance(images, (list, tuple)):
            return self.predict(images)
        return self.predict([images])[0]  # type: ignore[list-item]

    def predict(self, images: Sequence[ImageLike]) -> list[TaskResult]:
        """Run on pictures and interpret the outputs as the bundle's task says, one result per picture.

        Raises:
            DataError: a picture cannot be read.
            EngineError: the engine failed, or its outputs are not what the task takes.
        """
        if not images:
            return []
        manifest = self.bundle.manifest
        if self.postprocess is None:
            return interpret(manifest, self.run(manifest.preprocess.batch(images)))
        batch, placements = self.place(images)
        return interpret(manifest, self.run(batch), placements, self.postprocess)

    def place(self, images: Sequence[ImageLike]) -> tuple[npt.NDArray[np.float32], list[Placement]]:
        """Preprocess pictures into a batch ``[B, …]``, and tell where each of them lies in the input.

        Raises:
            DataError: a picture cannot be read.
        """
        preprocess = self.bundle.manifest.preprocess
        batch, placements = preprocess.empty(len(images)), []
        for place, image in zip(batch, images, strict=True):
            picture = to_image(image)
            placements.append(preprocess.placement(*picture.size))
            preprocess.fill(picture, place)
        return batch, placements

    def stream(self, frames: Iterable[ImageLike | Frame], **options: Any) -> Stream:
        """Results of pictures one after the other, as `predict` gives them, their stages running side by side.

        ``for result in session.stream(frames)``; see `edgevision.runtime.stream.Stream` for the options, and for the
        throughput and latency it measured.
        """
        from edgevision.runtime.stream import Stream

        return Stream(self, frames, **options)

    def parallel_engine(self, requests: int) -> Engine | None:
        """The engine opened for so many calls of one picture at once; None where calling it from threads is as good."""
        fixed = self.inputs[0].shape[0]
        open_parallel = getattr(self._engine, "open_parallel", None)
        if self._closed or open_parallel is None or len(self.inputs) != 1 or fixed not in (None, 1):
            return None
        engine: Engine = open_parallel(requests)
        return engine

    def run(self, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Run a preprocessed batch ``[B, …]`` of the first input, split where the engine's batch is fixed."""
        spec = self.inputs[0]
        fixed = spec.shape[0]
        if fixed is None or fixed == len(batch):
            return self.infer({spec.name: batch})
        if len(batch) % fixed:
            padding = np.repeat(batch[-1:], fixed - len(batch) % fixed, axis=0)
            padded = np.concatenate([batch, padding])
        else:
            padded = batch
        parts = [self.infer({spec.name: padded[i : i + fixed]}) for i in range(0, len(padded), fixed)]
        return {name: np.concatenate([part[name] for part in parts])[: len(batch)] for name in parts[0]}

    def close(self) -> None:
        """Free the engine. Later calls raise `EngineError`."""
        if not self._closed:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wrong_feed(self, feed: Any) -> UsageError:
        if isinstance(feed, Mapping):
            came = ", ".join(f"{name}: {_described(value)}" for name, value in feed.items())
        else:
            came = f"{_described(feed)} instead of a mapping from names to arrays"
        expected = ", ".join(str(spec) for spec in self.inputs)
        return UsageError(f"the network takes {expected}; got {came or 'nothing'}")


def _described(value: Any) -> str:
    """Dtype and shape of an array, type of anything else."""
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def load(
    bundle: str | Path | Bundle,
    *,
    threads: int = 1,
    cache_dir: str | Path | None = None,
    decoder: Decoder | None = None,
) -> Session:
    """Open a bundle on its engine.

    Args:
        bundle: path of a ``.evb`` file or bundle folder, or an open `Bundle`.
        threads: threads of one inference; 0 lets the engine choose.
        cache_dir: where engines compiled on this device are kept (TensorRT, OpenVINO).
        decoder: for a detector, a function of your own that reads its outputs, see `edgevision.detection.decoders`. A
            bundle that was made for one holds its name alone and never has it imported.

    Raises:
        UsageError: a wrong number of threads, or a decoder for a bundle that is no detector.
        BundleError: the bundle is damaged or has been changed.
        MissingDependencyError: the engine's runtime is not installed; the message is the command that installs it.
        EngineError: the engine refused the model.
    """
    # here: a bundle describes its tensors with this package's `TensorSpec`
    from edgevision.bundle import Bundle

    if threads < 0:
        raise UsageError(f"threads must be 0 (the engine chooses) or more; got {threads}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    postprocess = opened.manifest.postprocess
    if decoder is not None:
        if postprocess is None:
            raise UsageError(
                f"{opened.path or opened.manifest.name} is no detector ({opened.manifest.task}): a decoder has nothing "
                "to read; convert it with --decoder package.module:function"
            )
        postprocess = postprocess.with_function(decoder)
    session = Session(opened, EngineOptions(threads, None if cache_dir is None else str(cache_dir)))
    session.postprocess = postprocess
    return session
