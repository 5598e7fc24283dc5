"""What are these bytes? Pictures come back clean, sounds come back measured.

Nothing that the sender says counts: not the name, not the Content-Type, not a length in a header.

Pictures are decoded and written anew, so only their pixels survive: no EXIF, no place, no text, nothing hidden behind
the end. Sounds stay as they are and are measured by walking their packets, since the libraries believe headers: mutagen
and tinytag take a 10-minute MP3 whose Xing header says 1 s for 1 s, PyAV does it with a WAV, and only PyAV (127 MB) can
measure what a browser records. Hostile bytes cost little: no read above MAX_PIECE, at most MAX_STEPS of them, and no
step after the sound has become too long.
"""

import io
import itertools
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from PIL import GifImagePlugin, Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from pillow_heif import HeifImageFile


class NotAcceptable(Exception):
    """These bytes can't be taken. The text tells a person why, and what would be taken."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a file is. `content` stands at 0; a picture's is a new temporary file that the caller closes."""

    kind: Literal["image", "audio"]
    extension: str
    mime_type: str
    width: int | None
    height: int | None
    duration_seconds: float | None
    content: BinaryIO
    size: int


PICTURES_ALLOWED = "Allowed formats: JPEG, PNG, GIF, WebP, HEIC."
# Writing a picture anew would remove it, but who sends a picture that is also a page means no good.
A_PAGE = re.compile(rb"<(?:script|!doctype html|html[\s>]|iframe)", re.IGNORECASE)
SOUNDS_ALLOWED = "Allowed formats: MP3, M4A, WAV, OGG, WebM."


def no_picture() -> NotAcceptable:
    return NotAcceptable(f"This is not a picture that we can open. {PICTURES_ALLOWED}")


def no_sound(reason: str = "This is not a sound that we can open.") -> NotAcceptable:
    return NotAcceptable(f"{reason} {SOUNDS_ALLOWED}")


def broken_picture() -> NotAcceptable:
    return NotAcceptable(f"The picture is damaged or incomplete. Please send it once more. {PICTURES_ALLOWED}")


def broken_sound() -> NotAcceptable:
    return NotAcceptable(
        f"The sound file is damaged or incomplete. Please record or send it once more. {SOUNDS_ALLOWED}"
    )


# Pictures

MAX_FRAMES = 1000
MAX_ANIMATION_PIXELS = 2**26  # of all frames; a WebP of that size takes 5 to 8 s
MAX_SCANS = 100  # a progressive JPEG has about 10; one may cost 17 ms, in some 40 bytes
MAX_PARTS = 20_000  # chunks or segments; a PNG of 10 MB has some 1200; one costs 6 µs
LARGE = 2**22  # pixels from where compressing harder would take many seconds

# Text chunks are unpacked to be thrown away: 4 MB of them are enough, Pillow allows 64.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * PngImagePlugin.MAX_TEXT_CHUNK
# Broken EXIF is no news, and nobody shall fill the log with it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What Pillow, its plugins and libheif raise on bytes that make no sense. Warnings only where they are made errors.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImageCms.PyCMSError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # those left out stand inside the picture's data
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
SRGB = ImageCms.createProfile("sRGB")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
one_at_a_time = threading.Lock()


def inspect_image(file: BinaryIO, *, max_pixels_side: int = 4096) -> Inspected:
    """The picture written anew without metadata, upright and in sRGB; HEIC becomes JPEG. NotAcceptable if it can't be.

    Decodes one picture at a time per process: others wait. A 4096 × 4096 one takes 1 to 4 s and up to 300 MB.
    """
    file.seek(0)
    picture_format = format_of_picture(file.read(12))
    with one_at_a_time:
        file.seek(0)
        data = file.read()
        if A_PAGE.search(data):
            raise NotAcceptable(f"There is a web page hidden in this picture. {PICTURES_ALLOWED}")
        with refusing_the_unreadable():
            size, written = picture_format.rewrite(data, max_pixels_side)
    content = stored_in_a_temporary_file(written)
    extension, mime_type = picture_format.extension, picture_format.mime_type
    return Inspected("image", extension, mime_type, *size, None, content, written.getbuffer().nbytes)


class Rewritten(NamedTuple):
    size: tuple[int, int]
    written: io.BytesIO


class PictureFormat(NamedTuple):
    extension: str
    mime_type: str
    rewrite: Callable[[bytes, int], Rewritten]


def format_of_picture(head: bytes) -> PictureFormat:
    if head.startswith(b"\xff\xd8\xff"):
        return PictureFormat("jpg", "image/jpeg", rewrite_jpeg)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PictureFormat("png", "image/png", rewrite_png)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return PictureFormat("gif", "image/gif", rewrite_gif)
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return PictureFormat("webp", "image/webp", rewrite_webp)
    if head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS:
        return PictureFormat("jpg", "image/jpeg", rewrite_heic)
    raise no_picture()


def stored_in_a_temporary_file(written: io.BytesIO) -> BinaryIO:
    """On disk at once: it is on its way to the storage. A full disk is our failure, never the picture's."""
    content = tempfile.TemporaryFile()  # noqa: SIM115 (the caller's)
    try:
        content.write(written.getbuffer())
        content.seek(0)
    except BaseException:
        content.close()
        raise
    return content


@contextmanager
def refusing_the_unreadable() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as exc:
        raise NotAcceptable("The picture has too many pixels. Please make it smaller.") from exc
    except UNREADABLE as exc:
        if isinstance(exc, OSError) and exc.errno:  # Pillow's own have no errno; this one is the disk's
            raise
        raise broken_picture() from exc


def rewrite_jpeg(data: bytes, max_side: int) -> Rewritten:
    check_jpeg_parts(data)
    picture = opened(JpegImagePlugin.JpegImageFile, data, max_side)
    options: dict[str, object] = {"quality": 90, "subsampling": JpegImagePlugin.get_sampling(picture)}
    coarse = sum(picture.quantization.get(0, ())) > 750  # below quality 90; writing finer would only make it larger
    if coarse and picture.mode in ("L", "RGB"):
        options |= {"quality": -1, "qtables": picture.quantization}
    return as_jpeg(in_srgb(upright(picture)), **options)


def check_jpeg_parts(data: bytes) -> None:
    """Walks the segments up to the end marker; behind it phones hang further pictures and videos, which is fine."""
    place = scans = 0
    for _ in range(MAX_PARTS):
        marker = JPEG_MARKER.search(data, place)
        if not marker or marker[0] == b"\xff\xd9":
            return
        place = marker.end()
        if marker[0] not in (b"\xff\xd8", b"\xff\x01"):  # these have no content, and so no length
            place += int.from_bytes(data[place : place + 2])
        scans += marker[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            break
    raise broken_picture()


def rewrite_heic(data: bytes, max_side: int) -> Rewritten:
    """libheif has turned it upright already, as the format has it; its EXIF isn't asked."""
    return as_jpeg(in_srgb(opened(HeifImageFile, data, max_side)), quality=90)


def as_jpeg(picture: Image.Image, **options: object) -> Rewritten:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    return saved(picture, "JPEG", progressive=True, **options)


def rewrite_png(data: bytes, max_side: int) -> Rewritten:
    """Lossless, but 8 bits a channel. Of an animated PNG the first picture is kept."""
    check_png_parts(data)
    picture = in_srgb(upright(opened(PngImagePlugin.PngImageFile, data, max_side)))
    if picture.mode.startswith("I"):
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        picture.info.clear()
    colour = picture.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # of 16 bits, which the pixels have no more
        picture.info["transparency"] = tuple(value >> 8 for value in colour)
    return saved(picture, "PNG", compress_level=4)


def check_png_parts(data: bytes) -> None:
    place = 8
    for _ in range(MAX_PARTS):
        if place >= len(data) or data[place + 4 : place + 8] == b"IEND":
            return
        place += 12 + int.from_bytes(data[place : place + 4])
    raise broken_picture()


def opened[File: ImageFile.ImageFile](plugin: Callable[[BinaryIO], File], data: bytes, max_side: int) -> File:
    """The plugin reads the header only; nothing is decoded before the size is known to be allowed."""
    picture = plugin(io.BytesIO(data))
    check_size(picture.size, max_side)
    picture.load()
    return picture


def check_size(size: tuple[int, int], max_side: int) -> None:
    width, height = size
    if not width or not height:
        raise broken_picture()
    if width > max_side or height > max_side:
        limit = f"at most {max_side} × {max_side} are allowed. Please make it smaller."
        raise NotAcceptable(f"The picture has {width} × {height} pixels; {limit}")


def in_srgb(picture: Image.Image) -> Image.Image:
    """As seen through its colour profile (an iPhone's is Display P3), which is then of no more use."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "P"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        mode = "RGBA" if picture.has_transparency_data else "RGB"
        pixels = picture.convert(mode) if picture.mode != "CMYK" else picture
        converted = ImageCms.profileToProfile(pixels, source, SRGB, outputMode=mode)
    except UNREADABLE:  # a broken profile leaves the colours as they are
        return picture
    return converted or picture


def upright(picture: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(picture.getexif().get(0x0112, 1))
    except UNREADABLE:  # broken EXIF says nothing
        turn = None
    return picture if turn is None else picture.transpose(turn)


def saved(picture: Image.Image, to: str, **options: object) -> Rewritten:
    """Pillow writes some of `info` without being asked (a JPEG's comment): only the transparent colour stays."""
    picture.info = {name: value for name, value in picture.info.items() if name == "transparency"}
    written = io.BytesIO()
    picture.save(written, to, **options)
    return Rewritten(picture.size, written)


def check_animation(frames: int, pixels: int) -> None:
    if frames > MAX_FRAMES or pixels > MAX_ANIMATION_PIXELS:
        raise NotAcceptable("The animation is too long or too large. Please send a shorter or smaller one.")


# WebP


def rewrite_webp(data: bytes, max_side: int) -> Rewritten:
    """Stays lossless if it was. An animation keeps its frames, times and loops."""
    codecs, durations = webp_frames(data)
    picture = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    check_size(picture.size, max_side)
    pixels = picture.n_frames * picture.width * picture.height
    options: dict[str, object] = {"quality": 90, "method": 2}
    if codecs == {b"VP8L"}:
        options = {"lossless": True, "quality": 20, "method": 0 if pixels > LARGE else 1}
    if not picture.is_animated:
        picture.load()
        return saved(in_srgb(upright(picture)), "WEBP", **options)
    check_animation(picture.n_frames, pixels)
    if len(durations) != picture.n_frames:
        raise broken_picture()
    options |= {"save_all": True, "duration": durations, "loop": picture.info["loop"], "method": 0}
    return saved(picture, "WEBP", **options)


def webp_frames(data: bytes) -> tuple[set[bytes], list[int]]:
    """The codecs used, and for how many milliseconds each frame of an animation is shown."""
    codecs: set[bytes] = set()
    durations: list[int] = []
    for name, start, end in riff_chunks(data, 12, len(data)):
        if name == b"ANMF":
            check_animation(len(durations), 0)
            durations.append(int.from_bytes(data[start + 12 : start + 15], "little"))
            codecs |= {inner for inner, _, _ in riff_chunks(data, start + 16, end)}
        codecs.add(name)
    return codecs & {b"VP8 ", b"VP8L"}, durations


def riff_chunks(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while place + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, place)
        yield name, place + 8, place + 8 + size
        place += 8 + size + size % 2


# GIF: taken apart and put together again. Each frame's indices are decoded and encoded, its palette, place and time
# are kept. Pillow's own way (compose, reduce the colours again) is slower and shifts the colours.


class GifFrame(NamedTuple):
    control: bytes  # disposal, time and transparent index: a graphic control extension, or nothing
    box: tuple[int, int, int, int]  # left, top, width, height
    interlaced: bool
    palette: bytes  # empty: the file's
    data: bytes


class Gif(NamedTuple):
    size: tuple[int, int]
    background: int
    palette: bytes
    loop: bytes  # as in the file, two bytes; empty: played once
    frames: list[GifFrame]


GREYS = bytes(itertools.chain.from_iterable((value,) * 3 for value in range(256)))


def rewrite_gif(data: bytes, max_side: int) -> Rewritten:
    gif = parse_gif(data)
    check_size(gif.size, max_side)
    for left, top, width, height in (frame.box for frame in gif.frames):
        check_size((width and left + width, height and top + height), max_side)
    check_animation(len(gif.frames), sum(frame.box[2] * frame.box[3] for frame in gif.frames))
    written = io.BytesIO()
    written.write(b"GIF89a" + struct.pack("<HHBBB", *gif.size, palette_flags(gif.palette), gif.background, 0))
    written.write(gif.palette)
    if gif.loop:
        written.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + gif.loop + b"\0")
    for frame in gif.frames:
        descriptor = struct.pack("<HHHHB", *frame.box, palette_flags(frame.palette))
        written.write(frame.control + b"," + descriptor + frame.palette + encoded_again(frame, gif.palette))
    written.write(b";")
    return Rewritten(gif.size, written)


def encoded_again(frame: GifFrame, file_palette: bytes) -> bytes:
    palette = frame.palette or file_palette or GREYS
    size = struct.pack("<HH", *frame.box[2:])
    descriptor = b",\0\0\0\0" + size + (b"\x40" if frame.interlaced else b"\0")
    alone = b"GIF89a" + size + bytes((palette_flags(palette), 0, 0)) + palette + descriptor + frame.data + b";"
    picture = GifImagePlugin.GifImageFile(io.BytesIO(alone))
    picture.load()
    written = io.BytesIO()
    Image.frombytes("L", picture.size, picture.tobytes()).save(written, "GIF", optimize=False, interlace=False)
    return parse_gif(written.getvalue()).frames[0].data


def palette_flags(palette: bytes) -> int:
    """GIF writes 2 to 256 colours as flag 0x80 and the power of two."""
    return 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0


def parse_gif(data: bytes) -> Gif:
    """Without comments, texts and application blocks but the loop. https://www.w3.org/Graphics/GIF/spec-gif89a.txt"""
    width, height, flags, background = struct.unpack_from("<HHBB", data, 6)
    palette, place = palette_at(data, 13, flags)
    frames: list[GifFrame] = []
    control = loop = b""
    for _ in range(MAX_PARTS):
        if place >= len(data) or data[place] == 0x3B:  # the trailer, which some files lack
            break
        if data[place] == 0x2C:
            frame, place = gif_frame(data, place + 1, control)
            frames.append(frame)
            check_animation(len(frames), 0)
            control = b""
        elif data[place] == 0x21:
            end = past_blocks(data, place + 2)
            control = graphic_control(data[place:end]) or control
            loop = loop_count(data[place:end]) or loop
            place = end
        elif data[place] == 0:  # padding that some programs write
            place += 1
        else:
            raise broken_picture()
    else:
        raise broken_picture()
    if not frames:
        raise broken_picture()
    return Gif((width, height), background, palette, loop, frames)


def gif_frame(data: bytes, place: int, control: bytes) -> tuple[GifFrame, int]:
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, place)
    palette, start = palette_at(data, place + 9, flags)
    end = past_blocks(data, start + 1)
    return GifFrame(control, (left, top, width, height), bool(flags & 0x40), palette, data[start:end]), end


def palette_at(data: bytes, place: int, flags: int) -> tuple[bytes, int]:
    end = place + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    return data[place:end], end


def past_blocks(data: bytes, place: int) -> int:
    """Behind a chain of blocks, each led by its length and the last one empty. IndexError where it is cut."""
    while data[place]:
        place += data[place] + 1
    return place + 1


def graphic_control(extension: bytes) -> bytes:
    if extension[1] != 0xF9 or len(extension) != 8:
        return b""
    return extension[:3] + bytes((extension[3] & 0b11101,)) + extension[4:7] + b"\0"


def loop_count(extension: bytes) -> bytes:
    found = re.match(rb"!\xff\x0b(?:NETSCAPE2\.0|ANIMEXTS1\.0)\x03\x01(..)", extension, re.DOTALL)
    return found[1] if found else b""
