"""What was observed, and how each target wants it: histograms, range methods, schemes, plans, equalization.

The functions live in their modules: `observe.observe`, `equalization.equalize`, `planning.make_plan`.
"""
