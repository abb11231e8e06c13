"""One layout's parts as another one cuts them: split into their pieces, or fused, without loss.

Shape letters: O rows of a whole module, P rows of a piece, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.weights.lora.changes import Change, LowRank, gather, scatter, stacked
from flux_engine.weights.lora.file import Part
from flux_engine.weights.lora.names import Rows


@dataclass(frozen=True)
class Piece:
    """What a layout writes under one name."""

    change: Change | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None


def piece(parts: Sequence[Part], biases: Sequence[Part], total: int, rows: Rows) -> Piece:
    """All that these parts of one module, of `total` rows, say of the rows in `rows`."""
    covered = ((0, total),)
    told = [part for part in parts if touches(part, covered, rows)]
    change: Change | None
    if len(told) == 1 and rows_of(told[0], covered) == rows:
        change, magnitude = told[0].change, told[0].magnitude
    else:
        change = low_rank(told, total, rows)
        magnitude = magnitudes(told, total, rows) if change else None
    return Piece(change, magnitude, bias(biases, total, rows))


def rows_of(part: Part, covered: Rows) -> Rows:
    return part.place.rows or covered


def touches(part: Part, covered: Rows, rows: Rows) -> bool:
    return any(a < d and c < b for a, b in rows_of(part, covered) for c, d in rows)


def low_rank(parts: Sequence[Part], total: int, rows: Rows) -> LowRank | None:
    """The parts' change of these rows; of a fused one only the ranks that act on them."""
    found: list[LowRank] = []
    for part in parts:
        if not isinstance(part.change, LowRank):
            raise SettingError(
                f"{part.name}: a {type(part.change).__name__} cannot be cut or fused as this "
                "layout wants it; a rank (SVD) makes it low-rank, with a loss"
            )
        change = widened(part.change)
        whole_OR = change.up_OR.new_zeros(total, change.rank)
        scatter(whole_OR, change.up_OR, rows_of(part, ((0, total),)))
        up_PR = gather(whole_OR, rows)
        acting = up_PR.ne(0).any(dim=0)
        if len(up_PR) == total or not change.up_OR.ne(0).any():
            acting = torch.ones_like(acting)  # not cut, or nothing trained yet: ranks stay
        if acting.any():
            alpha = change.alpha * int(acting.sum()) / change.rank
            found.append(LowRank(change.down_RC[acting], up_PR[:, acting], alpha))
    if len(found) <= 1:
        return found[0] if found else None
    return stacked([(change, ((0, len(change.up_OR)),)) for change in found], len(found[0].up_OR))


def widened(change: LowRank) -> LowRank:
    """Eight-bit factors in a type that can be computed with; others as they are."""
    if change.up_OR.element_size() > 1 and change.down_RC.element_size() > 1:
        return change
    return replace(change, up_OR=change.up_OR.float(), down_RC=change.down_RC.float())


def magnitudes(parts: Sequence[Part], total: int, rows: Rows) -> Tensor | None:
    """DoRA's row magnitudes of these rows, if the parts have any."""
    if all(part.magnitude is None for part in parts):
        return None
    whole = torch.full((total, 1), torch.nan)
    for part in parts:
        if part.magnitude is not None and part.magnitude.shape[1] == 1:
            there = torch.zeros(total, 1)
            scatter(there, part.magnitude.float(), rows_of(part, ((0, total),)))
            for start, stop in rows_of(part, ((0, total),)):
                whole[start:stop] = there[start:stop]
    out = gather(whole, rows)
    if out.isnan().any():
        names = ", ".join(part.name for part in parts)
        raise SettingError(
            f"{names}: a DoRA of some rows or of columns cannot be cut or fused as this layout "
            "wants it"
        )
    return out


def bias(parts: Sequence[Part], total: int, rows: Rows) -> Tensor | None:
    told = [part for part in parts if touches(part, ((0, total),), rows)]
    if not told:
        return None
    whole = torch.zeros(total)
    for part in told:
        scatter(whole, part.delta(None), rows_of(part, ((0, total),)))
    return gather(whole, rows)
