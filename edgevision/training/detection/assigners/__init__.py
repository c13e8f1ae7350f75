"""Assigners: which places of the head's maps answer for which object.

Those of anchor-free heads have one signature, so that a criterion can change from one to another during training:
logits ``[B, L, C]``, boxes ``[B, L, 4]``, `Points`, `Targets` → `Assignment`. No gradient flows through any of them,
and all of them are deterministic: of equal candidates the first one in order of index wins.
"""
