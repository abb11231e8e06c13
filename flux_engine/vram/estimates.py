"""How large and how long: arithmetic on widths, tokens and what a card does in a second."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flux_engine.batching import NOTHING_WORN, Worn

GIB = 2**30
RESERVE = 384 * 2**20  # libraries' workspaces, and gaps between what is allocated

# of one forward pass, in hidden vectors a token (counted on the CPU: 17.5 in bfloat16, 18.2 with
# products of eight bits), and of the autoencoder, in its finest level's channels a pixel (8.3 to
# decode, 5.0 to encode)
HIDDEN_VECTORS = 19
PIXEL_VECTORS = 9
DECODE_FLOP, DECODE_SHARE = 1e7, 0.35  # a pixel; of the rate of matrix products

Weights = Mapping[str, Mapping[str, tuple[str, int]]]  # by model and unit: kind and bytes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A card: bytes that may be used, and what it does in a second (bytes copied in; FLOP)."""

    name: str
    memory: int
    link: float
    matmul: float
    attention: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all rows of a micro-batch have in common; `sides` is 2 with a negative prompt, `worn`
    are LoRAs beside the weights, `hoisted` the models that each step calls, in their order: a
    transformer, and trunks of its width before it."""

    height: int
    width: int
    image_tokens: int
    text_tokens: int
    steps: int
    sides: int = 1
    worn: Worn = NOTHING_WORN
    hoisted: tuple[str, ...] = ("dit",)

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths that memory and time depend on: of the transformer, and of T5."""

    width: int
    inner: int
    rows: int  # modulation vectors of the tables
    channels: int
    itemsize: int  # of what is computed with
    stored: int  # of what is stored
    text_width: int
    text_inner: int
    text_heads: int
    pixel_width: int  # channels of the autoencoder's finest level


def flops(work: Work, sizes: Sizes, blocks: Mapping[str, int]) -> tuple[float, float]:
    """Of one row's forward pass: in matrix products, in attention."""
    # a double block shows each token one half of its weights, its stream's
    met = sum(n / 2 if name.startswith("double_blocks") else n for name, n in blocks.items())
    products = 2.0 * work.sides * work.tokens * met / sizes.stored
    return products, 4.0 * work.sides * work.tokens**2 * sizes.width * len(blocks)


def compute_seconds(machine: Machine, work: Work, sizes: Sizes, blocks: Mapping[str, int]) -> float:
    """Of one row's forward pass with all weights there."""
    products, attention = flops(work, sizes, blocks)
    return products / machine.matmul + attention / machine.attention


def of_kind(weights: Weights, model: str, kind: str) -> dict[str, int]:
    return {name: n for name, (what, n) in weights.get(model, {}).items() if what == kind}


def of_all(weights: Weights, models: Iterable[str], kind: str) -> dict[tuple[str, str], int]:
    """The same of several models, by model and unit."""
    return {
        (model, name): nbytes
        for model in models
        for name, nbytes in of_kind(weights, model, kind).items()
    }


def row_seconds(machine: Machine, work: Work, sizes: Sizes, weights: Weights) -> dict[str, float]:
    """Of one row's forward pass through each hoisted model with all weights there."""
    return {
        model: compute_seconds(machine, work, sizes, of_kind(weights, model, "block"))
        for model in work.hoisted
    }


def total(weights: Weights, *models: str) -> int:
    return sum(n for model in models for _, n in weights.get(model, {}).values())


def working_bytes(work: Work, sizes: Sizes, batch: int) -> int:
    """Of a denoising micro-batch: one block's values, the table, the latents."""
    rows = batch * work.sides
    values = HIDDEN_VECTORS * work.tokens * sizes.width * sizes.itemsize
    table = work.steps * sizes.rows * sizes.width * sizes.itemsize
    standing = lora_bytes(work, sizes, batch)
    return RESERVE + rows * (values + table) + widening_bytes(sizes) + standing


def lora_bytes(work: Work, sizes: Sizes, batch: int) -> int:
    """Of LoRAs beside the weights: the factors of each outfit in a micro-batch, and each row's
    copies of one layer's. What LoRAs say has room where a block has its widest values later."""
    worn, rows = work.worn, batch * work.sides
    standing = min(batch, worn.outfits) * worn.factors
    return sizes.itemsize * (standing + rows * worn.gathered)


def widening_bytes(sizes: Sizes) -> int:
    """The largest of the layers that keep eight bits, made wide while it is called."""
    if sizes.stored == sizes.itemsize:
        return 0
    return sizes.width * (3 * sizes.width + sizes.inner) * sizes.itemsize


def text_seconds(machine: Machine, sizes: Sizes, tokens: int) -> float:
    """Of one prompt in one block of T5 that is there."""
    width, inner = sizes.text_width, sizes.text_inner
    products = 2.0 * tokens * width * (4 * width + 3 * inner)
    return products / machine.matmul + 4.0 * tokens**2 * width / machine.attention


def text_bytes(tokens: int, sizes: Sizes, batch: int) -> int:
    wide = tokens * (4 * sizes.text_inner + 8 * sizes.text_width) * sizes.itemsize
    scores = 3 * sizes.text_heads * tokens**2 * 4
    return RESERVE + batch * (wide + scores)


def decode_bytes(work: Work, sizes: Sizes, batch: int) -> int:
    pixels = batch * work.height * work.width
    return RESERVE + pixels * PIXEL_VECTORS * sizes.pixel_width * sizes.itemsize


def decode_seconds(machine: Machine, work: Work) -> float:
    return DECODE_FLOP * work.height * work.width / (DECODE_SHARE * machine.matmul)
