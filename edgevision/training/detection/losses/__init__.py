"""Losses of detectors: pure functions, element by element; how they are summed is the criterion's business."""
