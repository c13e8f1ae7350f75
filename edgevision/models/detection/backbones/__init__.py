"""Backbones of detectors: picture → maps at several strides."""
