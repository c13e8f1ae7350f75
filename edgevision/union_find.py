"""Which of many things belong together, told pair by pair."""

from __future__ import annotations


class UnionFind:
    """Items are whole numbers from 0; each begins as a set of its own."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self, count: int) -> int:
        """Add ``count`` items; the number of the first."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return first

    def find(self, item: int) -> int:
        """The one item that stands for the set ``item`` is in."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def union(self, a: int, b: int) -> None:
        """Make one set of those of ``a`` and ``b``."""
        self._parent[self.find(a)] = self.find(b)
