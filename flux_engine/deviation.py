"""How far an engine's approximate latents are from the exact ones: measured, on its first rows."""

from collections.abc import Callable, Mapping

from torch import Tensor

Wide = Callable[[], Mapping[str, Tensor]]  # the transformer's weights as its files have them


class Deviation:
    """Of the first micro-batch that an engine makes; `measured` are relative, row by row."""

    def __init__(self) -> None:
        self.due = True
        self.measured: list[float] = []
        self.wide: Wide | None = None

    def take(self, approximate_BZHW: Tensor, exact_BZHW: Tensor | None, real: int) -> None:
        """Keep what the first `real` rows are apart; None: there was no memory for exact ones."""
        self.due = False
        if exact_BZHW is not None:
            apart = (approximate_BZHW - exact_BZHW)[:real].flatten(1).norm(dim=1)
            self.measured += (apart / exact_BZHW[:real].flatten(1).norm(dim=1)).tolist()
