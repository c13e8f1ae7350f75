"""Measuring: one timing loop for all engines, accuracy with intervals, and reports that can be published.

The functions live in their modules: `edgevision_benchmarks.bench.bench`, `edgevision_benchmarks.accuracy.evaluate`
and `evaluate_bundle`, `edgevision_benchmarks.timing.measure`, `edgevision_benchmarks.report.Report`.
"""
