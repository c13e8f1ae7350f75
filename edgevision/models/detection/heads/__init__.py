"""Heads of detectors: maps → raw scores and boxes by name."""
