"""What may stand in a stage: the fields of the verb's own settings, checked before any stage runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from edgevision.errors import UsageError
from edgevision.pipeline.convert import ConvertOptions
from edgevision.pipeline.prune import FINE_TUNING_RATE, PruneOptions
from edgevision.pipeline.quantize import QuantizeOptions
from edgevision.registry import check_keys

if TYPE_CHECKING:
    from edgevision.distillation import DistillConfig
    from edgevision.training.config import RunConfig
    from edgevision_benchmarks.bench import BenchOptions

Options = Mapping[str, Any]
T = TypeVar("T")
C = TypeVar("C", bound="RunConfig")

# starting over and doing finished work again are the recipe's business
_NOT_OPTIONS = frozenset({"restart", "force"})
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (),
}  # fmt: skip
_SHOWN = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


def valid_keys(kind: str, task: str = "classification") -> list[str]:
    """Options of a kind of stage with a network of a task, besides those that every stage may have."""
    from edgevision.distillation import DistillConfig
    from edgevision.training.recipes import config_type
    from edgevision_benchmarks.bench import BenchOptions

    training = _names(config_type(task))
    keys = {
        "train": training if task == "detection" else [*training, "search_epochs"],
        "prune": [*_names(PruneOptions), *training, "target"],
        "distill": [*_names(DistillConfig), *training, "teacher"],
        "quantize": [*_names(QuantizeOptions), "target"],
        "convert": [*_names(ConvertOptions), "targets", "precision", "label"],
        "bench": _names(BenchOptions),
        "report": [*_names(BenchOptions), "targets"],
    }[kind]
    return [key for key in dict.fromkeys(keys) if key not in _NOT_OPTIONS]


def check_options(kind: str, options: Options, task: str = "classification") -> None:
    """Make the settings of a stage once, to learn of wrong values before anything runs.

    Args:
        kind: of the stage.
        options: what it says.
        task: ``classification`` or ``detection``: what its network is for.

    Raises:
        UsageError: an unknown key (the near ones are named), a value of another type or out of range.
    """
    check_keys("key", options, valid_keys(kind, task))
    _CHECKS[kind](options, task)


def training_config(options: Options, usual: C, *, seed: int, rate: float = 1.0, but: Iterable[str] = ()) -> C:
    """The data's recipe with what the stage says in its place.

    Args:
        options: of the stage.
        usual: the recipe, see `edgevision.training.recipes.usual_config`.
        seed: where the stage has none.
        rate: factor of the recipe's learning rate; a rate that the stage gives is taken as it is.
        but: options that are not the training's.
    """
    given = {key: options[key] for key in _names(usual) if key in options and key not in but}
    recipe = replace(usual, lr=usual.lr * rate, seed=seed)
    # a short run keeps its share of the recipe's warm-up, unless it says how long that is
    epochs = None if "warmup_epochs" in given else given.pop("epochs", None)
    config = recipe.from_dict({**recipe.to_dict(), **given})
    return config if epochs is None else config.with_epochs(epochs)


def prune_options(options: Options, seed: int) -> PruneOptions:
    """`PruneOptions` of a stage."""
    return _make(PruneOptions, {"seed": seed, **options})


def pruning_config(options: Options, usual: C, *, seed: int) -> C | None:
    """Settings of the training after pruning; None where the stage has none of its own."""
    theirs = set(_names(PruneOptions))
    if not set(options) & (set(_names(usual)) - theirs):
        return None
    return training_config(options, usual, seed=seed, rate=FINE_TUNING_RATE, but=theirs)


def distill_config(options: Options) -> DistillConfig:
    """`DistillConfig` of a stage."""
    from edgevision.distillation import DistillConfig

    return DistillConfig.from_dict({key: options[key] for key in _names(DistillConfig) if key in options})


def quantize_options(options: Options, seed: int) -> QuantizeOptions:
    """`QuantizeOptions` of a stage."""
    return _make(QuantizeOptions, {"seed": seed, **options})


def convert_options(options: Options) -> ConvertOptions:
    """`ConvertOptions` of a stage."""
    return _make(ConvertOptions, options)


def bench_options(options: Options) -> BenchOptions:
    """`BenchOptions` of a stage; pictures one by one, as a device runs them, unless it says otherwise."""
    from edgevision_benchmarks.bench import BenchOptions

    threads = options.get("threads", 1)
    counts = [threads] if isinstance(threads, int) else threads
    return _make(BenchOptions, {"batch_size": 1, **options, "threads": counts})


def listed(options: Options, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """An option that is one text or a list of them.

    Raises:
        UsageError: it is neither.
    """
    value = options.get(key, list(default))
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise UsageError(f"{key} must be a text or a list of texts; got {value!r}")
    return tuple(dict.fromkeys(values))


def text(options: Options, key: str, default: str | None = None) -> str | None:
    """An option that is a text.

    Raises:
        UsageError: it is something else.
    """
    value = options.get(key, default)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{key} must be a text; got {value!r}")
    return value


def _check_training(options: Options, task: str) -> None:
    training_config(options, _any_config(task), seed=0)
    epochs = options.get("search_epochs", 0)
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise UsageError(f"search_epochs must be a whole number of at least 0; got {epochs!r}")


def _any_config(task: str) -> RunConfig:
    """Settings of a task, whatever the data."""
    from edgevision.training.recipes import config_type

    return config_type(task)()


def _check_prune(options: Options, task: str) -> None:
    prune_options(options, 0)
    pruning_config(options, _any_config(task), seed=0)
    text(options, "target")


def _check_distill(options: Options, task: str) -> None:
    training_config(options, _any_config(task), seed=0)
    distill_config(options)
    if not text(options, "teacher"):
        raise UsageError("needs a teacher: the name of an earlier stage, or a Checkpoint folder")


def _check_quantize(options: Options, task: str) -> None:
    del task
    from edgevision_calibration.scheme import scheme_for

    quantize_options(options, 0)
    scheme_for(text(options, "target") or "onnxruntime")


def _check_convert(options: Options, task: str) -> None:
    del task
    from edgevision_converters.target import check_precision

    convert_options(options)
    text(options, "label")
    targets = listed(options, "targets")
    if not targets:
        raise UsageError('needs targets, e.g. targets = ["onnxruntime", "ncnn"]')
    for target in targets:
        for precision in listed(options, "precision", ("fp32",)):
            check_precision(target, precision)


def _check_report(options: Options, task: str) -> None:
    del task
    from edgevision_converters.target import check_precision

    bench_options(options)
    for target in listed(options, "targets"):
        check_precision(target, "fp32")


_CHECKS: dict[str, Callable[[Options, str], object]] = {
    "train": _check_training,
    "prune": _check_prune,
    "distill": _check_distill,
    "quantize": _check_quantize,
    "convert": _check_convert,
    "bench": lambda options, _: bench_options(options),
    "report": _check_report,
}


def _names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _make(cls: type[T], options: Options) -> T:
    """The dataclass from those of the options that are its fields."""
    values = {}
    for field in fields(cls):  # type: ignore[arg-type] # every caller's is a dataclass
        if field.name in options and field.name not in _NOT_OPTIONS:
            value = options[field.name]
            _check_type(field, value)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _check_type(field: Field[Any], value: Any) -> None:
    """Refuse a text where a number belongs; the ranges are the dataclass's own business."""
    annotation = str(field.type)
    if annotation.startswith("tuple["):
        _check_list(field.name, annotation.removeprefix("tuple[").partition(",")[0], value)
        return
    kinds = [kind.strip() for kind in annotation.split("|")]
    if not set(kinds) <= set(_TYPES):
        return
    if not _is_one_of(kinds, value):
        wanted = " or ".join(_SHOWN[kind] for kind in kinds if kind in _SHOWN)
        raise UsageError(f"{field.name} must be {wanted}; got {value!r}")


def _check_list(name: str, kind: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not all(_is_one_of([kind], one) for one in value):
        raise UsageError(f"{name} must be a list, each {_SHOWN.get(kind, kind)}; got {value!r}")


def _is_one_of(kinds: list[str], value: Any) -> bool:
    if isinstance(value, bool):
        return "bool" in kinds
    return isinstance(value, tuple(type_ for kind in kinds for type_ in _TYPES[kind]))
