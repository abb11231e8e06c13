"""Batch shapes that an output's first worker has chosen, for every later one: bits depend on them.

`_run/shapes/<name>.json`, created once by whoever needs it first.
"""

import json

from batch.output import RUN, to_json
from batch.storage import Storage


class KeptShapes:
    """Asked by name and with what would be chosen here; answers what holds for the output."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._known: dict[str, int] = {}

    def __call__(self, name: str, value: int) -> int:
        if name not in self._known:
            place = f"{RUN}/shapes/{name.replace(' ', '-')}.json"
            ours = {"shape": name, "rows": value}
            if not self.storage.create(place, to_json(ours)):
                value = json.loads(self.storage.read(place))["rows"]
            self._known[name] = value
        return self._known[name]
