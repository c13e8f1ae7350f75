"""From anybody's model to the canonical graph, and from graph and plan to each engine's files.

The functions live in their modules: `export.open_source`, `canonical.canonicalize`, `qdq.quantize_dequantize`, and
each target's ``convert`` (`target.CONVERTERS`).
"""
