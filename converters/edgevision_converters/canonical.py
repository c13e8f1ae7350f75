"""Anybody's ONNX becomes a canonical `Graph`: checked, simplified, with a free batch, and proved to compute the same.

Needs onnx and ONNX Runtime, not torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto

from edgevision.errors import ModelError
from edgevision.files import sha256_bytes, sha256_file
from edgevision.graph import Graph
from edgevision_converters import passes
from edgevision_converters.passes.float32 import widen_to_float32
from edgevision_converters.passes.load import load_model, require_internal_data
from edgevision_converters.passes.numerics import Array, random_input, relative_difference, run
from edgevision_converters.passes.shapes import annotate, infer
from edgevision_converters.passes.validate import check_input, check_ops, check_structure, check_weights

# Folding batch norms and reordering sums moves float32 results by about 1e-6 of their range per layer; a hundred
# layers stay below this, and a wrong rewrite is far above it.
TOLERANCE = 1e-3
# Batch of the proof that a freed batch computes what one picture at a time does.
PROOF_BATCH = 3

# In this order, again and again: what a later pass uncovers may be an earlier one's to take.
SIMPLIFICATIONS = (
    passes.fold_constants,
    passes.remove_noops,
    passes.merge_transposes,
    passes.write_out_attributes,
    passes.merge_padding,
    passes.fold_batch_norms,
    passes.unify_dense,
    passes.fold_channel_affine,
    passes.fuse_hard_swish,
    passes.unify_global_pools,
    passes.unwrap_softmax,
    passes.unify_flattens,
    passes.gather_channels,
    passes.remove_dead,
)


def canonicalize(model: ModelProto | str | Path, *, input_size: tuple[int, int] | None = None) -> Graph:
    """Check a model and bring it into canonical form; the same bytes come out for the same model.

    Canonical: float32, one input ``[batch, C, H, W]``, opset 17 wherever its ops allow, constants folded, batch
    norms and per-channel constants folded into the layer before them, dense layers as Gemm with weights
    ``[out, in]``, nodes named, shapes inferred. Names of inputs, outputs, nodes and tensors stay as they were where
    the thing they name is still there. The batch is free (``Graph.input_shape[0]`` is None) where running three
    pictures at once gives what running them one by one does, else it is fixed at 1.

    Args:
        model: a path (external data may lie beside the file), or a model in memory; it is not changed.
        input_size: height and width in pixels, for files that leave them open.

    Raises:
        ModelError: the model is damaged, quantized already, takes something other than one float32 picture batch
            ``[B, C, H, W]``, has NaN in its weights, leaves height and width open with no ``input_size`` given, or
            its canonical form does not compute the same.
        UnsupportedOpError: an op outside the ONNX standard, control flow, or an op that ONNX Runtime cannot run.
        MissingDependencyError: onnx or ONNX Runtime is not installed.
    """
    if isinstance(model, ModelProto):
        label = "the ONNX model"
        require_internal_data(model, label)
        source, digest = model, sha256_bytes(bytes(model.SerializeToString(deterministic=True)))
    else:
        label = str(model)
        source = load_model(model)
        digest = sha256_file(model)
    try:
        return Graph(_label(_best(_check(source, label, input_size), label), digest))
    except ModelError as error:
        if str(error).startswith(label):
            raise
        # from a pass, which does not know whose model it works on
        raise type(error)(f"{label}: {error}") from error


def _best(checked: ModelProto, label: str) -> ModelProto:
    """The canonical form with a free batch where it can be had, else with a batch of 1."""
    upgraded = passes.upgrade_opset(checked)
    fixed: ModelProto | None = None
    for base in _base_batches(checked):
        try:
            static = _simplify(passes.fix_batch(upgraded, base), label)
            _prove(static, _reference(passes.fix_batch(checked, base)), label)
        except ModelError:
            if fixed is None:
                raise
            break  # the file says its batch is free, and has a 1 written into it all the same
        freed = _free(static)
        if freed is not None:
            return freed
        fixed = fixed or static
    assert fixed is not None
    batch = fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if batch != 1:
        raise ModelError(
            f"{label}: the batch is fixed at {batch} and cannot be set free; export the model with a batch of 1 or a "
            "dynamic batch"
        )
    return fixed


def _check(source: ModelProto, label: str, input_size: tuple[int, int] | None) -> ModelProto:
    """All refusals, and the few mends that everything after relies on."""
    model = source
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    check_ops(model, label)
    model = passes.drop_initializer_inputs(model)
    check_structure(model, label)
    check_weights(model, label)
    model = widen_to_float32(passes.name_nodes(model))
    return check_input(model, label, input_size)


def _base_batches(model: ModelProto) -> tuple[int, ...]:
    """Batches to work at: the file's own; where it is free 1, and 2 for models that treat 1 as a special case."""
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    return (int(dimension.dim_value),) if dimension.HasField("dim_value") and dimension.dim_value > 0 else (1, 2)


def _simplify(model: ModelProto, label: str) -> ModelProto:
    model = passes.constants_to_initializers(passes.name_nodes(model))
    before = -1
    while len(model.graph.node) != before:
        before = len(model.graph.node)
        for simplify in SIMPLIFICATIONS:
            model = simplify(model)
    for finish in (passes.sort_channels, passes.remove_noops, passes.remove_dead):
        model = finish(model)
    picture = model.graph.input[0].name
    if not any(picture in node.input for node in model.graph.node):
        raise ModelError(f"{label}: the outputs do not depend on the input; expected a network")
    shapes = infer(model)
    return passes.lower_opset(annotate(passes.strip_debug(model), shapes, shapes))


def _reference(model: ModelProto) -> tuple[Array, list[Array]]:
    """A random input and what the model, as it came, makes of it."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feed = random_input(shape)
    return feed, run(model, {model.graph.input[0].name: feed})


def _prove(model: ModelProto, reference: tuple[Array, list[Array]], label: str) -> None:
    feed, expected = reference
    difference = relative_difference(expected, run(model, {model.graph.input[0].name: feed}))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{label}: the canonical graph differs from the original by {difference:.1e} of the output's range (at "
            f"most {TOLERANCE:.0e} is expected); this is an internal inconsistency: please report the model"
        )


def _free(static: ModelProto) -> ModelProto | None:
    """The model with a free batch, where that computes the same; None where it does not."""
    shape = [dim.dim_value for dim in static.graph.input[0].type.tensor_type.shape.dim]
    name = static.graph.input[0].name
    pictures = random_input([PROOF_BATCH * shape[0], *shape[1:]], seed=1)
    try:
        freed = passes.free_batch(static)
        if freed is None:
            return None
        together = run(freed, {name: pictures})
    except ModelError:
        return None  # a larger batch does not fit through
    single = [run(static, {name: piece}) for piece in np.split(pictures, PROOF_BATCH)]
    expected = [np.concatenate(pieces) for pieces in zip(*single, strict=True)]
    return freed if relative_difference(expected, together) <= TOLERANCE else None


def _label(model: ModelProto, digest: str) -> ModelProto:
    model.producer_name = "edgevision"
    model.producer_version = ""
    model.domain = ""
    model.model_version = 0
    onnx.helper.set_model_props(model, {"producer": "edgevision", "source_sha256": digest})
    return model
