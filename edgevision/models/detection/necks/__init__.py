"""Necks of detectors: maps of a backbone → maps of a head, information going down and up between them."""
