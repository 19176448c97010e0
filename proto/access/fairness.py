"""Share scarce resources fairly between keys, mostly client addresses: a queue, and a set of places.

The queue is fair between the users of a key too, and there is one that is fair between owners first: those
that say what an item's key is, and may lie.

Pure: no clock, no I/O. The cost of each method but `Fair.in_turn` does not grow with the number of owners,
keys and items.
"""

from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Fair", "FairByOwner", "Places"]

# Items of one key in a row. With 10, twenty users behind one address do not wait twenty rounds when many
# others connect.
_TURN = 10
_LOOKED_AT = 16  # of the oldest holders; the very oldest may be slow clients of small keys
_Item = TypeVar("_Item", bound=Hashable)
_Value = TypeVar("_Value")


class _Line(Generic[_Item, _Value]):
    """The items of one key: in rounds of its users, one item of each, in the order of arrival."""

    __slots__ = ("_users", "many")

    def __init__(self) -> None:
        self._users: dict[str, dict[_Item, _Value]] = {}  # the user whose turn it is comes first
        self.many = 0

    def put(self, user: str, item: _Item, value: _Value) -> None:
        self._users.setdefault(user, {})[item] = value
        self.many += 1

    def take(self) -> tuple[_Item, _Value]:
        user = next(iter(self._users))
        items = self._users.pop(user)
        item = next(iter(items))
        value = items.pop(item)
        if items:
            self._users[user] = items
        self.many -= 1
        return item, value

    def remove(self, user: str, item: _Item) -> _Value:
        items = self._users[user]
        value = items.pop(item)
        if not items:
            del self._users[user]
        self.many -= 1
        return value

    def of(self, user: str, item: _Item) -> _Value:
        return self._users[user][item]

    def last(self) -> _Item:
        """Return the latest item of the user that came last."""
        return next(reversed(next(reversed(self._users.values()))))

    def copy(self) -> "_Line[_Item, _Value]":
        copy: _Line[_Item, _Value] = _Line()
        copy._users = {user: dict(items) for user, items in self._users.items()}
        copy.many = self.many
        return copy


class _Largest:
    """Find the key with most items at once, of those that had so many first."""

    __slots__ = ("_by_many", "most")

    def __init__(self) -> None:
        self._by_many: dict[int, dict[str, None]] = {}  # keys by how many items they have
        self.most = 0  # items of the key with most of them

    def moved(self, key: str, before: int, after: int) -> None:
        """Note that a key has one item more or less than before."""
        if before:
            there = self._by_many[before]
            del there[key]
            if not there:
                del self._by_many[before]
        if after:
            self._by_many.setdefault(after, {})[key] = None
        if after > self.most or self.most not in self._by_many:
            self.most = after

    def first(self) -> str:
        """Return the key. KeyError: there is none."""
        return next(iter(self._by_many[self.most]))

    def copy(self) -> "_Largest":
        copy = _Largest()
        copy._by_many = {many: dict(keys) for many, keys in self._by_many.items()}
        copy.most = self.most
        return copy


class Fair(Generic[_Item, _Value]):
    """A queue that serves keys in rounds: ten items of each key.

    Within a key its users are served in rounds too, one item of each: a user with many items delays nobody.
    """

    __slots__ = ("_largest", "_lines", "_places", "turn")

    def __init__(self) -> None:
        self._lines: dict[str, _Line[_Item, _Value]] = {}  # the key whose turn it is comes first
        self._places: dict[_Item, tuple[str, str]] = {}  # key and user of each; the one put first comes first
        self._largest = _Largest()
        self.turn = 0  # items that the first key has been given in this round

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def put(self, key: str, item: _Item, value: _Value, user: str = "") -> None:
        """Queue an item. An item waits at most once; the caller checks that with `in`."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        line.put(user, item, value)
        self._largest.moved(key, line.many - 1, line.many)
        self._places[item] = key, user

    def take(self) -> tuple[_Item, _Value]:
        """Remove and return the next item and its value. Raises StopIteration if the queue is empty."""
        key = next(iter(self._lines))
        line = self._lines[key]
        item, value = line.take()
        self._largest.moved(key, line.many + 1, line.many)
        del self._places[item]
        self.turn += 1
        if not line.many:
            self._drop(key)
        elif self.turn >= _TURN:
            self._drop(key)
            self._lines[key] = line
        return item, value

    def _drop(self, key: str) -> None:
        if key == next(iter(self._lines)):
            self.turn = 0
        del self._lines[key]

    def remove(self, item: _Item) -> _Value | None:
        """Remove an item from the queue; return its value, or None if it was not queued."""
        place = self._places.pop(item, None)
        if place is None:
            return None
        key, user = place
        line = self._lines[key]
        value = line.remove(user, item)
        self._largest.moved(key, line.many + 1, line.many)
        if not line.many:
            self._drop(key)
        return value

    def oldest(self) -> tuple[_Item, _Value] | None:
        """Return the item that was put first, and its value; None if the queue is empty."""
        for item in self._places:
            return item, self.of(item)
        return None

    def spare(self, key: str) -> _Item | None:
        """Return the item to drop to make room for one of `key`: the latest of the key with most items.

        None if that key has at most one item more than `key`.
        """
        own = self._lines.get(key)
        if self._largest.most <= (own.many if own is not None else 0) + 1:
            return None
        return self.last()

    def last(self) -> _Item:
        """Return the latest item of the key with most items. KeyError: the queue is empty."""
        return self._lines[self._largest.first()].last()

    def of(self, item: _Item) -> _Value:
        """Return an item's value."""
        key, user = self._places[item]
        return self._lines[key].of(user, item)

    def in_turn(self) -> list[tuple[_Item, _Value]]:
        """List all items in the order of `take`. A new queue filled so, with the same `turn`, keeps it."""
        copy: Fair[_Item, _Value] = Fair()
        copy._lines = {key: line.copy() for key, line in self._lines.items()}
        copy._places, copy.turn = dict(self._places), self.turn
        copy._largest = self._largest.copy()
        return [copy.take() for _ in range(len(self))]


class FairByOwner(Generic[_Item, _Value]):
    """A queue that serves owners in rounds, one item of each; the items of an owner are in a `Fair`.

    An owner that invents keys has no more turns by that, and takes no other owner's room.
    """

    __slots__ = ("_largest", "_owners", "_queues")

    def __init__(self) -> None:
        self._queues: dict[str, Fair[_Item, _Value]] = {}  # the owner whose turn it is comes first
        self._owners: dict[_Item, str] = {}  # the item put first comes first
        self._largest = _Largest()

    def __len__(self) -> int:
        return len(self._owners)

    def put(self, owner: str, key: str, item: _Item, value: _Value, user: str = "") -> None:
        """Queue an item. An item waits at most once."""
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = Fair()
        queue.put(key, item, value, user)
        self._largest.moved(owner, len(queue) - 1, len(queue))
        self._owners[item] = owner

    def take(self) -> tuple[_Item, _Value]:
        """Remove and return the next item and its value. Raises StopIteration if the queue is empty."""
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        item, value = queue.take()
        del self._owners[item]
        self._largest.moved(owner, len(queue) + 1, len(queue))
        if queue:
            self._queues[owner] = queue
        return item, value

    def remove(self, item: _Item) -> _Value | None:
        """Remove an item from the queue; return its value, or None if it was not queued."""
        owner = self._owners.pop(item, None)
        if owner is None:
            return None
        queue = self._queues[owner]
        value = queue.remove(item)
        self._largest.moved(owner, len(queue) + 1, len(queue))
        if not queue:
            del self._queues[owner]
        return value

    def oldest(self) -> tuple[_Item, _Value] | None:
        """Return the item that was put first, and its value; None if the queue is empty."""
        for item, owner in self._owners.items():
            return item, self._queues[owner].of(item)
        return None

    def spare(self, owner: str, key: str) -> _Item | None:
        """Return the item to drop to make room for one of this owner and key.

        It is of the owner with most items; of this one if that has at most one more: then as `Fair.spare`,
        which may be None.
        """
        own = self._queues.get(owner)
        if self._largest.most > (len(own) if own is not None else 0) + 1:
            return self._queues[self._largest.first()].last()
        return own.spare(key) if own is not None else None


class Places(Generic[_Item]):
    """Items that hold places, by key. Finds the key with most places and the oldest item of a key at once."""

    __slots__ = ("_held", "_keys", "_largest")

    def __init__(self) -> None:
        self._keys: dict[_Item, str] = {}
        self._held: dict[str, dict[_Item, None]] = {}  # the oldest first
        self._largest = _Largest()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: object) -> bool:
        return item in self._keys

    def add(self, key: str, item: _Item) -> None:
        """Give the item a place. Does nothing if it has one."""
        if item in self._keys:
            return
        self._keys[item] = key
        held = self._held.setdefault(key, {})
        held[item] = None
        self._largest.moved(key, len(held) - 1, len(held))

    def remove(self, item: _Item) -> None:
        """Take the item's place away. Does nothing if it has none."""
        key = self._keys.pop(item, None)
        if key is None:
            return
        held = self._held[key]
        del held[item]
        self._largest.moved(key, len(held) + 1, len(held))
        if not held:
            del self._held[key]

    def many(self, key: str) -> int:
        """Return the number of places that `key` holds."""
        return len(self._held.get(key, ()))

    @property
    def most(self) -> int:
        """Return the number of places that the key with most of them holds."""
        return self._largest.most

    def oldest(self, key: str) -> _Item | None:
        """Return the oldest item of `key`; None if it holds no place."""
        return next(iter(self._held.get(key, ())), None)

    def spare(self) -> _Item | None:
        """Return the item that is to lose its place; None if there is none.

        It is the oldest item of all whose key holds at least half as many places as the largest key: in a
        flood from a thousand addresses, each may hold fewer than one office. If the first `_LOOKED_AT` hold
        none such, it is the oldest item of the largest key.
        """
        for item, key in islice(self._keys.items(), _LOOKED_AT):
            if 2 * len(self._held[key]) >= self.most:
                return item
        return self.oldest(self._largest.first()) if self.most else None
