"""The user's vocabulary for where weights are: four states, each a type and a place.

`offload`: nobody needs the model. `onload`: its phase has come. `preparing`: a block that stays on
the card. `computation`: while a block runs. Places are `cpu`, the card, and `disk`. What is not
said is as in computation. A plan keeps what fits within the limit in the state `preparing` and
lets the rest pass through: the states say only what may not be.
"""

from dataclasses import dataclass
from typing import Literal

from flux_engine.errors import SettingError

Stays = Literal["never", "what fits", "always"]

STATES = ("offload", "onload", "preparing", "computation")
DISK, NARROW = "disk", "float8_e4m3fn"


@dataclass(frozen=True)
class Policy:
    """What placements mean for a plan: blocks' weights in eight bits; at home in pinned memory or
    on a disk; how much of the model stays on the card in its phase."""

    narrow: bool = False
    on_disk: bool = False
    stays: Stays = "what fits"


@dataclass(frozen=True, kw_only=True)
class Placements:
    """Types by their names in torch, places by their kinds."""

    offload_dtype: str | None = None
    offload_device: str | None = None
    onload_dtype: str | None = None
    onload_device: str | None = None
    preparing_dtype: str | None = None
    preparing_device: str | None = None
    computation_dtype: str | None = None
    computation_device: str | None = None

    def policy(self, dtype: str, device: str) -> Policy:
        """For an engine that computes in this type on this kind of device; SettingError if the
        placements cannot be."""
        for fault in self._faults(dtype, device):
            raise SettingError(fault)
        states = STATES[:-1]
        stays: Stays = "what fits"
        if device != "cpu" and self.offload_device == device:
            stays = "always"
        elif device != "cpu" and self.preparing_device == "cpu":
            stays = "never"
        return Policy(
            narrow=NARROW in [self._dtype(state) for state in states],
            on_disk=self._place("offload") == DISK,
            stays=stays,
        )

    def _dtype(self, state: str) -> str | None:
        value: str | None = getattr(self, f"{state}_dtype")
        return value

    def _place(self, state: str) -> str | None:
        value: str | None = getattr(self, f"{state}_device")
        return DISK if value is None and self._dtype(state) == DISK else value

    def _faults(self, dtype: str, device: str) -> list[str]:
        out = []
        for state in STATES:
            kind, place = self._dtype(state), self._place(state)
            from_disk = state in ("offload", "onload")
            kinds = {dtype} if state == "computation" else {dtype, NARROW}
            kinds |= {DISK} if from_disk else set()
            places = {device} if state == "computation" else {"cpu", device}
            places |= {DISK} if from_disk else set()
            if kind is not None and kind not in kinds:
                out.append(f"{state}_dtype is {kind}; allowed here: {', '.join(sorted(kinds))}")
            if place is not None and place not in places:
                out.append(f"{state}_device is {place}; allowed here: {', '.join(sorted(places))}")
            if None not in (kind, place) and (kind == DISK) != (place == DISK):
                out.append(f"{state}_dtype is {kind} and {state}_device is {place}: disk is both")
        return out
