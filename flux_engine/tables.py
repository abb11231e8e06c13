"""Tables of modulation, made for a bucket's micro-batches as few times as their makers must come.

Where the layers that make them stay on the card, each micro-batch has its table made when it is
its turn. Where they pass through the ring, one pass makes the tables of micro-batches ahead too.
"""

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from flux_engine.models.dit import FluxTransformer
from flux_engine.sampling.denoise import Conditions, modulation_table, modulation_tables
from flux_engine.vram.residency import Residency

TOGETHER = 2**30  # bytes of tables that wait on the host

Batch = Sequence[int]


class Tables:
    """Of one bucket; `ahead` are the members of micro-batches that come after the next one."""

    def __init__(self, dit: FluxTransformer, residency: Residency, model: str = "dit") -> None:
        self.dit, self.residency, self.model = dit, residency, model
        self.ahead: Sequence[Batch] = ()
        self._made: deque[Tensor] = deque()

    def anew(self) -> "Tables":
        """None made, none ahead."""
        return Tables(self.dit, self.residency, self.model)

    def forget(self) -> None:
        """Micro-batches change their shape: no table fits them."""
        self._made.clear()

    def next(
        self, sigma_N: Tensor, told: Conditions, tell: Callable[[Batch], Conditions]
    ) -> Tensor:
        """The next micro-batch's table, (N, G, M, D); `tell` gives the conditions of those ahead.

        Of a table that waited, a step's rows are fetched from the host.
        """
        if self._made:
            return self._made.popleft()
        with self.residency.loop(self.model, 1, "table"):
            if not self.ahead or not self.residency.streams(self.model, "table"):
                return modulation_table(self.dit, sigma_N, told)
            rows = sum(part.MODULATIONS for part in self.dit.modulated_parts())
            one = len(sigma_N) * told.pooled_GP.nbytes // told.pooled_GP.shape[-1] * rows
            fit = max(1, TOGETHER // (one * self.dit.spec.width))
            batches = [told, *(tell(batch) for batch in self.ahead[: fit - 1])]
            self._made.extend(modulation_tables(self.dit, sigma_N, batches))
        return self._made.popleft()
