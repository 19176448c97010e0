"""Share what is scarce between keys, mostly addresses: a queue in which each has its turn, and places, which who has most gives up.

Pure: no clock, no I/O. Everything but `Fair.spare` costs the same however many keys and items there are.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Fair", "Places"]

_Item = TypeVar("_Item", bound=Hashable)
_Value = TypeVar("_Value")


class Fair(Generic[_Item, _Value]):
    """A queue: one item of each key in a round, in the order in which they came."""

    __slots__ = ("_keys", "_queues")

    def __init__(self) -> None:
        self._queues: dict[str, dict[_Item, _Value]] = {}  # the key whose turn it is comes first
        self._keys: dict[_Item, str] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: object) -> bool:
        return item in self._keys

    def put(self, key: str, item: _Item, value: _Value) -> None:
        """Let it wait. An item waits once."""
        self._queues.setdefault(key, {})[item] = value
        self._keys[item] = key

    def take(self) -> tuple[_Item, _Value]:
        """The next one. StopIteration where none waits."""
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        item = next(iter(queue))
        value = queue.pop(item)
        if queue:
            self._queues[key] = queue
        del self._keys[item]
        return item, value

    def remove(self, item: _Item) -> _Value | None:
        """It waits no more; None where it did not."""
        key = self._keys.pop(item, None)
        if key is None:
            return None
        queue = self._queues[key]
        value = queue.pop(item)
        if not queue:
            del self._queues[key]
        return value

    def spare(self, key: str) -> _Item | None:
        """The latest of the key that has most, to make room for one more of `key`; None where that has as many itself.

        Looks at every key: to be asked where the queue is full.
        """
        most = max(self._queues, key=lambda one: len(self._queues[one]), default=key)
        if len(self._queues.get(most, ())) <= len(self._queues.get(key, ())) + 1:
            return None
        return next(reversed(self._queues[most]))

    def in_turn(self) -> list[tuple[_Item, _Value]]:
        """All that wait, in the order in which `take` gives them; put into a new queue in that order they keep it."""
        rounds: list[tuple[int, int, _Item, _Value]] = []
        for position, queue in enumerate(self._queues.values()):
            rounds += [(nth, position, item, value) for nth, (item, value) in enumerate(queue.items())]
        return [(item, value) for _, _, item, value in sorted(rounds, key=lambda row: row[:2])]


class Places(Generic[_Item]):
    """Who holds places: the key with most is known at once, and of each key the item that has one longest."""

    __slots__ = ("_by_many", "_held", "_keys", "_most")

    def __init__(self) -> None:
        self._keys: dict[_Item, str] = {}
        self._held: dict[str, dict[_Item, None]] = {}  # of each key the oldest first
        self._by_many: dict[int, dict[str, None]] = {}  # keys by how many places they hold
        self._most = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: object) -> bool:
        return item in self._keys

    def add(self, key: str, item: _Item) -> None:
        """It takes a place; nothing where it has one."""
        if item in self._keys:
            return
        self._keys[item] = key
        held = self._held.setdefault(key, {})
        held[item] = None
        self._moved(key, len(held) - 1, len(held))

    def remove(self, item: _Item) -> None:
        """It gives its place up; nothing where it has none."""
        key = self._keys.pop(item, None)
        if key is None:
            return
        held = self._held[key]
        del held[item]
        self._moved(key, len(held) + 1, len(held))
        if not held:
            del self._held[key]

    def many(self, key: str) -> int:
        """How many places it holds."""
        return len(self._held.get(key, ()))

    def oldest(self, key: str | None = None) -> _Item | None:
        """The oldest of `key`, or of the key that holds most (of several, who holds so many longest); None where there is none."""
        if key is None:
            key = next(iter(self._by_many[self._most])) if self._most else ""
        return next(iter(self._held.get(key, ())), None)

    def _moved(self, key: str, before: int, after: int) -> None:
        if before:
            there = self._by_many[before]
            del there[key]
            if not there:
                del self._by_many[before]
        if after:
            self._by_many.setdefault(after, {})[key] = None
        if after > self._most or self._most not in self._by_many:
            self._most = after
