"""Registries are literal dictionaries, name → ``"module:attribute"``, resolved on look-up.

Third parties add to one through an entry-point group of the same name, e.g. ``edgevision.models``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from edgevision.errors import UsageError


class Registry:
    """A read-only look-up of ``"module:attribute"`` strings.

    Args:
        kind: what is registered, in the singular, for messages: ``"model"``.
        group: entry-point group that extends it: ``"edgevision.models"``.
        entries: the literal dictionary.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """All names, sorted, third parties' included."""
        return sorted(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def resolve(self, name: str) -> Any:
        """Import and return what ``name`` stands for.

        Raises:
            UsageError: no such name; the message lists the near ones.
        """
        entries = self._all()
        if name not in entries:
            raise UsageError(unknown_name(self.kind, name, entries))
        module, _, attribute = entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _all(self) -> dict[str, str]:
        others = {point.name: point.value for point in entry_points(group=self.group)}
        return {**others, **self._entries}


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Message for a name that does not exist: the near ones first, else all of them."""
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}: did you mean {' or '.join(near)}?"
    return f"unknown {kind} {name!r}: choose from {', '.join(sorted(valid))}"


def check_keys(kind: str, keys: Iterable[object], valid: Iterable[str], *, where: str = "") -> None:
    """Refuse keys of a table that do not exist.

    Raises:
        UsageError: the first such key; the message, of a ``kind`` and behind ``where``, names the near ones.
    """
    known = list(valid)
    for key in keys:
        if key not in known:
            raise UsageError(where + unknown_name(kind, str(key), known))
