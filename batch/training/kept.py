"""Values by key, the latest used ones, as many as there is room for."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Bounded by bytes; may be asked from several threads."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep it, and let go of the oldest beyond the room; what is larger than that is not
        kept."""
        with self._lock:
            if size > self.room or key in self._values:
                return
            self._values[key] = (value, size)
            self._held += size
            while self._held > self.room:
                self._held -= self._values.popitem(last=False)[1][1]
