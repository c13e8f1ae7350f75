"""Quantization-aware training on the canonical graph, and the folder that keeps a quantized network."""

from __future__ import annotations
