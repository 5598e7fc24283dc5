"""Pictures as a model can use them: scaled down, as JPEG, from a bounded cache of this process."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from django.conf import settings
from PIL import Image, ImageOps, UnidentifiedImageError

from media_uploads import storage
from yral_chat.ai import Blob

LONGEST_SIDE = 1536  # Gemini cuts pictures into tiles of 768

_cache: OrderedDict[str, bytes] = OrderedDict()
_lock = threading.Lock()
_decoding = threading.Lock()  # one at a time: a 4096 × 4096 picture takes 50 MB while it's open


def for_model(key: str, read: Callable[[str], bytes] = storage.read) -> Blob:
    """Raises ValueError for what is no picture, and what `read` raises: MissingFile or StorageUnavailable."""
    with _lock:
        data = _cache.get(key)
        if data is not None:
            _cache.move_to_end(key)
    if data is None:
        data = scaled(read(key))
        _remember(key, data)
    return Blob("image/jpeg", data)


def scaled(original: bytes) -> bytes:
    with _decoding:
        try:
            with Image.open(io.BytesIO(original), formats=("JPEG", "PNG", "GIF", "WEBP")) as picture:
                picture.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
                upright = ImageOps.exif_transpose(picture).convert("RGBA")
                upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
                flat = Image.new("RGB", upright.size, "white")
                flat.paste(upright, mask=upright.getchannel("A"))
                written = io.BytesIO()
                flat.save(written, "JPEG", quality=85)
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as exc:
            raise ValueError("not a picture") from exc
    return written.getvalue()


def _remember(key: str, data: bytes) -> None:
    with _lock:
        _cache[key] = data
        while sum(map(len, _cache.values())) > settings.PICTURE_CACHE_MB * 1024 * 1024:
            _cache.popitem(last=False)
