"""Training detectors: ground truth, assigners, losses, and the loop around them."""
