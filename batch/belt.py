"""Things from one thread to another, in order, a few at a time; either side may end it."""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Belt(Generic[T]):
    """Holds up to `most` things; who brings more waits."""

    def __init__(self, most: int) -> None:
        self._things: deque[T] = deque()
        self._most = most
        self._changed = threading.Condition()
        self._closed = False
        self._expected = 0
        self._coming: dict[int, T] = {}  # what is expected, by number
        self._numbers = count()
        self._left = False

    def put(self, thing: T) -> bool:
        """Whether it was taken on: not if nobody takes things off any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._things) < self._most)
            if self._left:
                return False
            self._things.append(thing)
            self._changed.notify_all()
            return True

    def put_when(self, done: Future[Any], thing: T) -> bool:
        """The same for a thing that is put on once its future is done: who waits for a place then
        is the thread that has done it."""
        if done.done():
            return self.put(thing)
        with self._changed:
            self._expected += 1
            left = self._left
            number = next(self._numbers)
            self._coming[number] = thing
        # a future keeps what it calls: were that the thing, and the future in it, none of both
        # would go before the garbage collector comes
        done.add_done_callback(lambda _: self._arrive(number))
        return not left

    def _arrive(self, number: int) -> None:
        with self._changed:
            thing = self._coming.pop(number)
        self.put(thing)
        with self._changed:
            self._expected -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come, but for what is waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Nothing more will be taken off."""
        with self._changed:
            self._left = True
            self._things.clear()
            self._changed.notify_all()

    def _goes_on(self) -> bool:
        return len(self._things) > 0 or (self._closed and not self._expected)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(self._goes_on)
                if not self._things:
                    return
                thing = self._things.popleft()
                self._changed.notify_all()
            yield thing
