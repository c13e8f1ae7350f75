"""Detectors: a backbone, a neck and a head each, told by one literal configuration. Importable without torch."""
