"""Every error EdgeVision raises on purpose, in one tree.

::

    EdgeVisionError                  exit code 1: the user can mend it
    ├── UsageError                   exit code 2: an argument is wrong
    ├── MissingDependencyError       an extra is not installed; the message is the command that installs it
    ├── DataError                    an image, label file or data set is damaged or missing
    ├── ModelError                   a model file or module cannot be used
    │   └── UnsupportedOpError       the target has no such op
    ├── CheckpointError              a checkpoint is damaged or of another version
    ├── CalibrationError             ranges cannot be had from what was given
    ├── TrainingError                training cannot start or go on
    ├── ConversionError              a native converter failed, crashed or ran out of time
    ├── BundleError                  a bundle is damaged, tampered with or of another version
    ├── EngineError                  an engine refused to load or to run
    ├── DeviceError                  a device cannot be reached, lacks something, or dropped out
    ├── OutputError                  results cannot be written (read-only, full disk)
    └── CheckFailedError             exit code 3: a check did not hold (parity, regression)

A message says what came, what was expected and what to do. Errors of native libraries are mapped onto this
tree where they leave them; the original stays as ``__cause__``.
"""

from __future__ import annotations


class EdgeVisionError(Exception):
    """Root of the tree. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class UsageError(EdgeVisionError, ValueError):
    """An argument has a value that no input could make right."""

    exit_code = 2


class MissingDependencyError(EdgeVisionError, ImportError):
    """An optional dependency is not installed."""


class DataError(EdgeVisionError):
    """An image, an annotation or a data set cannot be read; names the file, and the line where there is one."""


class ModelError(EdgeVisionError):
    """A model file or module is damaged, malformed or outside what can be converted."""


class UnsupportedOpError(ModelError):
    """A target has no equivalent of an op of the graph; names the op and the node."""


class CheckpointError(EdgeVisionError):
    """A checkpoint folder is incomplete, damaged or written by a newer version."""


class CalibrationError(EdgeVisionError):
    """Calibration data is missing or gives no usable ranges."""


class TrainingError(EdgeVisionError):
    """Training cannot start, diverged, or cannot resume from what it found."""


class ConversionError(EdgeVisionError):
    """A target's native converter failed, crashed or ran out of time."""


class BundleError(EdgeVisionError):
    """A bundle is damaged, has been changed, names a path outside itself, or has an unknown version."""


class EngineError(EdgeVisionError):
    """An engine refused to load a model or to run it."""


class DeviceError(EdgeVisionError):
    """A device named by ``--device`` cannot be reached, lacks what a job needs, or dropped out of it."""


class OutputError(EdgeVisionError, OSError):
    """Results cannot be written where they were asked for."""


class CheckFailedError(EdgeVisionError):
    """A check was run and did not hold."""

    exit_code = 3
