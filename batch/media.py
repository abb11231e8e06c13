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
from flux_engine.pictures import to_pixels, upright_size
from schemas.manifest import PictureRef

LARGEST_PICTURE = 2**26  # pixels; 8192²
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # others run programs (EPS)
PNG_LEVEL = 1  # twice as fast as the default, 14 % larger


OPENING = threading.Lock()  # what warnings do is everyone's, while a header is read

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A picture as (3, height, width) in −1…1, and the SHA-256 of the file that it came from."""

    pixels: Tensor
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
        if ref.bytes is not None:
            data = ref.bytes
        elif ref.path:
            data = self.roots.read(ref.path)
        else:
            raise PictureError("input_image has neither bytes nor a path")
        pixels = decode(data, shown(ref.path or "the picture's bytes"), height, width)
        return Picture(pixels, hashlib.sha256(data).hexdigest())


def check_pixels(picture: Image.Image, name: str) -> None:
    """PictureError for more than are to be unfolded."""
    if picture.width * picture.height > LARGEST_PICTURE:
        raise PictureError(
            f"{name}: has {picture.width} × {picture.height} pixels; at most {LARGEST_PICTURE} "
            "are allowed"
        )


def decode(data: bytes, name: str, height: int, width: int) -> Tensor:
    """A picture file's content as (3, height, width) in −1…1."""
    return understood(data, name, lambda picture: to_pixels(picture, height, width))


def size_of(data: bytes, name: str, *, whole: bool = True) -> tuple[int, int]:
    """Width and height of a picture file as it is shown; `whole`: having decoded all of it."""

    def measured(picture: Image.Image) -> tuple[int, int]:
        size = upright_size(picture)
        if whole:
            picture.load()
        return size

    return understood(data, name, measured)


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
