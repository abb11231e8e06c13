"""Pictures from addresses, and pictures into bytes."""

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from batch.errors import PictureError
from batch.roots import Roots
from batch.web import shown
from flux_engine.pictures import mask_weights, to_pixels, training_pixels, upright_size
from schemas.manifest import PictureRef

LARGEST_PICTURE = 2**26  # pixels; 8192²
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # others run programs (EPS)
PNG_LEVEL = 1  # twice as fast as the default, 14 % larger


OPENING = threading.Lock()  # what warnings do is everyone's, while a header is read

T = TypeVar("T")
Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Picture:
    """A picture as (3, height, width) in −1…1, its own width and height as it is shown, and the
    SHA-256 of the file that it came from."""

    pixels: Tensor
    size: Size
    sha256: str


class Pictures:
    """Reads the pictures that a manifest names, from the places that are allowed.

    Relative paths start at the first root, which is the manifest's own folder.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = Roots(roots)

    def read(self, ref: PictureRef, height: int, width: int) -> Picture:
        """A picture scaled to cover that size and cut about its centre; PictureError if it cannot
        be had."""
        data, name = self.content(ref)
        return Picture(*decode(data, name, height, width), hashlib.sha256(data).hexdigest())

    def content(self, ref: PictureRef, column: str = "input_image") -> tuple[bytes, str]:
        """A picture's file, and how it is called."""
        if ref.bytes is not None:
            return ref.bytes, shown(ref.path or "the picture's bytes")
        if ref.path:
            return self.roots.read(ref.path), shown(ref.path)
        raise PictureError(f"{column} has neither bytes nor a path")


def check_pixels(picture: Image.Image, name: str) -> None:
    """PictureError for more than are to be unfolded."""
    if picture.width * picture.height > LARGEST_PICTURE:
        raise PictureError(
            f"{name}: has {picture.width} × {picture.height} pixels; at most {LARGEST_PICTURE} "
            "are allowed"
        )


def decode(data: bytes, name: str, height: int, width: int) -> tuple[Tensor, Size]:
    """A picture file's content as (3, height, width) in −1…1, and its own width and height as it is
    shown."""
    return understood(
        data, name, lambda picture: (to_pixels(picture, height, width), upright_size(picture))
    )


def size_of(data: bytes, name: str, *, whole: bool = True) -> Size:
    """Width and height of a picture file as it is shown; `whole`: having decoded all of it."""

    def measured(picture: Image.Image) -> Size:
        size = upright_size(picture)
        if whole:
            picture.load()
        return size

    return understood(data, name, measured)


def trained(
    data: bytes, name: str, height: int, width: int, told: Size | None = None
) -> tuple[Tensor, Size]:
    """A picture file's content as a trainer takes it, (3, height, width) in −1…1, and its own width
    and height as it is shown; PictureError if that is not what was `told`."""

    def use(picture: Image.Image) -> tuple[Tensor, Size]:
        size = upright_size(picture)
        if told is not None and size != told:
            raise PictureError(
                f"{name}: has {size[0]} × {size[1]} pixels, and its row says {told[0]} × {told[1]}"
            )
        return training_pixels(picture, height, width), size

    return understood(data, name, use)


def weights(data: bytes, name: str, height: int, width: int, of: Size) -> Tensor:
    """A mask file's content as (1, height, width) in 0…1, placed as the picture is whose own size
    is `of`; PictureError for other proportions, of which nobody knows the place."""

    def use(mask: Image.Image) -> Tensor:
        wide, high = upright_size(mask)
        if abs(high * of[0] / wide - of[1]) > 1 and abs(wide * of[1] / high - of[0]) > 1:
            raise PictureError(
                f"{name}: the mask has {wide} × {high} pixels, and its picture {of[0]} × {of[1]}: "
                "other proportions"
            )
        return mask_weights(mask, height, width)

    return understood(data, name, use)


def understood(data: bytes, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of a picture file; PictureError for whatever a decoder finds wrong."""
    try:
        with OPENING, warnings.catch_warnings():
            # our own limit is below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        check_pixels(picture, name)
        return use(picture)
    except UnidentifiedImageError:  # its own words hold an address in memory
        what = "of a known format" if data else "(it is empty)"
        raise PictureError(f"{name}: is not a readable picture {what}") from None
    except (PictureError, MemoryError):
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name}: is not a readable picture: {error}") from None
    except Exception as error:  # noqa: BLE001  decoders raise all sorts of things over broken files
        what = type(error).__name__
        raise PictureError(f"{name}: is not a readable picture: {what}") from None


def to_bytes(image: Image.Image, kind: str, quality: int) -> bytes:
    """A picture file: png, webp (lossless) or jpeg with a quality."""
    out = io.BytesIO()
    match kind:
        case "png":
            image.save(out, "PNG", compress_level=PNG_LEVEL)
        case "webp":
            image.save(out, "WEBP", lossless=True, method=0)
        case _:
            image.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()
