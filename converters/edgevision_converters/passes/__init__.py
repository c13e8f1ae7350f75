"""Small graph passes: one file each, `ModelProto` in, a new `ModelProto` out, with what each requires and ensures."""

from __future__ import annotations

from edgevision_converters.passes.activations import fuse_hard_swish
from edgevision_converters.passes.affine import fold_batch_norms, fold_channel_affine
from edgevision_converters.passes.attributes import write_out_attributes
from edgevision_converters.passes.batch import fix_batch, free_batch
from edgevision_converters.passes.channel_moves import gather_channels
from edgevision_converters.passes.channel_order import sort_channels
from edgevision_converters.passes.dead import remove_dead
from edgevision_converters.passes.dense import unify_dense
from edgevision_converters.passes.flatten import unify_flattens
from edgevision_converters.passes.folding import fold_constants
from edgevision_converters.passes.initializers import constants_to_initializers, drop_initializer_inputs
from edgevision_converters.passes.names import name_nodes
from edgevision_converters.passes.noops import remove_noops
from edgevision_converters.passes.opset import lower_opset, upgrade_opset
from edgevision_converters.passes.padding import merge_padding
from edgevision_converters.passes.pooling import unify_global_pools
from edgevision_converters.passes.softmax import unwrap_softmax
from edgevision_converters.passes.strip import strip_debug
from edgevision_converters.passes.transposes import merge_transposes

__all__ = [
    "constants_to_initializers",
    "drop_initializer_inputs",
    "fix_batch",
    "fold_batch_norms",
    "fold_channel_affine",
    "fold_constants",
    "free_batch",
    "fuse_hard_swish",
    "gather_channels",
    "lower_opset",
    "merge_padding",
    "merge_transposes",
    "name_nodes",
    "remove_dead",
    "remove_noops",
    "sort_channels",
    "strip_debug",
    "unify_dense",
    "unify_flattens",
    "unify_global_pools",
    "unwrap_softmax",
    "upgrade_opset",
    "write_out_attributes",
]
