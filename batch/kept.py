"""Batch shapes and the like that an output's first worker chose, for all later ones: bits depend
on them.

`_run/shapes/<name>.json`, created once by whoever needs it first.
"""

import json
from typing import Any, TypeVar

from batch.output import RUN, to_json
from batch.storage import Storage

T = TypeVar("T", int, str)


class KeptShapes:
    """Asked by name and with what would be chosen here; answers what holds for the output."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._known: dict[str, Any] = {}

    def __call__(self, name: str, value: T) -> T:
        if name not in self._known:
            place = f"{RUN}/shapes/{name.replace(' ', '-')}.json"
            ours = {"name": name, "chosen": value}
            if not self.storage.create(place, to_json(ours)):
                value = json.loads(self.storage.read(place))["chosen"]
            self._known[name] = value
        known: T = self._known[name]
        return known
