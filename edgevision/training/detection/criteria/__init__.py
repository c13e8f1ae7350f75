"""Criteria: what is asked of the raw maps of each kind of head."""
