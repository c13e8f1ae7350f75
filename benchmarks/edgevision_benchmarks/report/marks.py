"""Marks of the drawings: shapes tell apart what colours alone would not."""

from __future__ import annotations


def mark(shape: str, x: float, y: float, r: float) -> str:
    """SVG path of a circle, diamond, triangle or square of about radius ``r`` around a point."""
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"
    corners = {
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.25), (1.15, 0.85), (-1.15, 0.85)),
        "square": ((-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)),
    }[shape]
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "Z"
