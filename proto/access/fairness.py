"""Share what is scarce between keys, mostly addresses: a queue in which each has its turn, and places, which who has most gives up.

Pure: no clock, no I/O. Everything but `Fair.spare` costs the same however many keys and items there are.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Fair", "Places"]

_TURN = 10  # items of a key in a row: twenty people behind one address do not wait twenty rounds because many others have come
_LOOKED_AT = 16  # of the oldest; before them may stand some who take their time and are few
_Item = TypeVar("_Item", bound=Hashable)
_Value = TypeVar("_Value")


class Fair(Generic[_Item, _Value]):
    """A queue: ten items of each key in a round, in the order in which they came."""

    __slots__ = ("_keys", "_queues", "turn")

    def __init__(self) -> None:
        self._queues: dict[str, dict[_Item, _Value]] = {}  # the key whose turn it is comes first
        self._keys: dict[_Item, str] = {}
        self.turn = 0  # how many the first key has had in its turn

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
        queue = self._queues[key]
        item = next(iter(queue))
        value = queue.pop(item)
        del self._keys[item]
        self.turn += 1
        if not queue:
            self._drop(key)
        elif self.turn >= _TURN:
            self._drop(key)
            self._queues[key] = queue
        return item, value

    def _drop(self, key: str) -> None:
        if key == next(iter(self._queues)):
            self.turn = 0
        del self._queues[key]

    def remove(self, item: _Item) -> _Value | None:
        """It waits no more; None where it did not."""
        key = self._keys.pop(item, None)
        if key is None:
            return None
        queue = self._queues[key]
        value = queue.pop(item)
        if not queue:
            self._drop(key)
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
        """All that wait, in the order in which `take` gives them; put into a new queue, with its `turn`, they keep it."""
        again: Fair[_Item, _Value] = Fair()
        again._queues = {key: dict(queue) for key, queue in self._queues.items()}
        again._keys, again.turn = dict(self._keys), self.turn
        return [again.take() for _ in range(len(self))]


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

    def oldest(self, key: str) -> _Item | None:
        """The oldest of a key; None where it holds no place."""
        return next(iter(self._held.get(key, ())), None)

    def spare(self) -> _Item | None:
        """Who is to give its place up: the oldest of the key that holds most; None where nobody has one.

        Or who is oldest of all, where its key holds half as many: of a flood from a thousand addresses each may hold fewer than an office.
        """
        for item, key in islice(self._keys.items(), _LOOKED_AT):
            if 2 * len(self._held[key]) >= self._most:
                return item
        return self.oldest(next(iter(self._by_many[self._most]))) if self._most else None

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
