"""What are these bytes? Real files: pictures, WAVs and every lie are made here; what needs an encoder lies in files/.

files/ holds 3 s of a 440 Hz tone: chrome.* as Chromium 156's MediaRecorder writes it (audio/webm, audio/mp4), the
others by ffmpeg 5.1 (iphone.m4a by `-f ipod`: sound first, moov at the end); and 1 s with a red picture as video.*.
"""

import io
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import wave
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps, JpegImagePlugin

from media_uploads import sounds
from media_uploads.inspection import Inspected, NotAcceptable, inspect_image
from media_uploads.sounds import inspect_audio

pytestmark = pytest.mark.own_database

FILES = Path(__file__).parent / "files"
MB = 2**20
SECRET = b"52.5163N 13.3777E secret()"
RED, BLUE, GREEN, YELLOW = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 0)


class Taken:
    """An accepted picture: what was said of it, its bytes, and itself opened again."""

    def __init__(self, data: bytes, **limits: int) -> None:
        found = inspect_image(io.BytesIO(data), **limits)
        with found.content as content:
            assert content.tell() == 0
            self.data = content.read()
        self.found: Inspected = found
        self.picture = Image.open(io.BytesIO(self.data))
        assert found.kind == "image"
        assert found.size == len(self.data)
        assert (found.width, found.height) == self.picture.size
        assert found.duration_seconds is None


def refused(data: bytes, **limits: int) -> str:
    with pytest.raises(NotAcceptable) as caught:
        inspect_image(io.BytesIO(data), **limits)
    return str(caught.value)


def measured(data: bytes, *, max_seconds: int = 300) -> Inspected:
    file = io.BytesIO(data)
    found = inspect_audio(file, max_seconds=max_seconds)
    assert found.content is file
    assert file.tell() == 0
    assert found.kind == "audio"
    assert found.size == len(data)
    assert found.width is found.height is None
    return found


def seconds(data: bytes) -> float:
    duration = measured(data).duration_seconds
    assert duration is not None
    return duration


def unheard(data: bytes, *, max_seconds: int = 300) -> str:
    with pytest.raises(NotAcceptable) as caught:
        inspect_audio(io.BytesIO(data), max_seconds=max_seconds)
    return str(caught.value)


def file(name: str) -> bytes:
    return (FILES / name).read_bytes()


@contextmanager
def at_once(limit: float = 5) -> Iterator[None]:
    """Bounded: these take about a second at most, and would take minutes or gigabytes without the bounds."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < limit


def peak_grown_by(script: str, *arguments: object) -> float:
    """MB by which the lines behind READY raise a fresh process's peak. (ru_maxrss would start at this process's.)"""
    peak = "int(re.search('VmHWM: *\\t* *([0-9]+)', open('/proc/self/status').read())[1])"
    prelude = "import io, re, sys\nfrom media_uploads.inspection import *\nfrom media_uploads.sounds import *\n"
    script = f"{prelude}{script.replace('READY', f'before = {peak}')}\nprint({peak} - before)"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


def encoded(picture: Image.Image, to: str, **options: Any) -> bytes:
    if to == "HEIF":
        pillow_heif.register_heif_opener()
        if "exif" in options:
            options["exif"] = options["exif"].tobytes()  # or else pillow_heif doesn't say which way is up
    out = io.BytesIO()
    picture.save(out, to, **options)
    return out.getvalue()


def halves(left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE, size: tuple[int, int] = (64, 32)) -> Image.Image:
    picture = Image.new("RGB" if len(left) == 3 else "RGBA", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def is_near(pixel: Any, colour: Any, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, colour, strict=True))


def exif(orientation: int = 1) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010E] = SECRET.decode()
    data[0x010F] = "Apple"
    place = data.get_ifd(0x8825)
    place[1], place[2] = "N", (48.0, 51.0, 29.6)
    return data


def noise(size: tuple[int, int] = (120, 80)) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise(size, 60) for _ in range(3)])


# Pictures: what is taken, and as what


@pytest.mark.parametrize(
    ("to", "extension", "mime_type"),
    [
        ("JPEG", "jpg", "image/jpeg"),
        ("PNG", "png", "image/png"),
        ("GIF", "gif", "image/gif"),
        ("WEBP", "webp", "image/webp"),
        ("HEIF", "jpg", "image/jpeg"),
    ],
)
def test_the_bytes_decide_what_a_picture_is(to: str, extension: str, mime_type: str) -> None:
    taken = Taken(encoded(halves(), to))

    assert (taken.found.extension, taken.found.mime_type) == (extension, mime_type)
    assert is_near(taken.picture.convert("RGB").getpixel((5, 16)), RED)
    assert is_near(taken.picture.convert("RGB").getpixel((58, 16)), BLUE)


NO_PICTURES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\xff",
    "text": lambda: b"just text",
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "HTML": lambda: b"<!doctype html><script>alert(1)</script>",
    "PDF": lambda: b"%PDF-1.7\n1 0 obj",
    "Word": lambda: b"PK\3\4" + bytes(100),
    "Photoshop": lambda: b"8BPS\0\1" + bytes(100),
    "WAV": lambda: wav(1),
    "video": lambda: file("video.mp4"),
    **{
        to: partial(lambda to: encoded(halves(), to), to)
        for to in ("BMP", "TIFF", "ICO", "JPEG2000", "PPM", "TGA", "AVIF")
    },
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_what_is_no_allowed_picture_is_refused_with_the_formats_that_are(what: str) -> None:
    assert "JPEG, PNG, GIF, WebP, HEIC" in refused(NO_PICTURES[what]())


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
)
@pytest.mark.parametrize(
    "body", [b"", SECRET * 20, bytes(500), b"\xff" * 500], ids=["nothing", "HTML", "zeros", "ones"]
)
def test_a_true_beginning_alone_makes_no_picture(head: bytes, body: bytes) -> None:
    assert "JPEG, PNG, GIF, WebP, HEIC" in refused(head + body)


@pytest.mark.parametrize("to", ["JPEG", "PNG", "GIF", "WEBP", "HEIF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_picture_cut_short_is_refused(to: str, part: float) -> None:
    data = encoded(noise(), to)

    assert "damaged or incomplete" in refused(data[: int(len(data) * part)])


def test_a_flipped_byte_in_a_png_is_refused() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 1

    assert "damaged" in refused(bytes(data))


# Pictures: nothing but pixels survives


def with_metadata(to: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + SECRET
    if to == "GIF":
        data = encoded(halves(), "GIF", comment=SECRET)
        xmp = b"!\xff\x0bXMP DataXMP" + bytes((len(SECRET),)) + SECRET + b"\0"
        return data[:-1] + xmp + data[-1:]
    if to == "PNG":
        extra = png_chunk(b"tEXt", b"Comment\0" + SECRET) + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(SECRET))
        extra += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET) + png_chunk(b"seCr", SECRET)
        data = encoded(halves(), "PNG", exif=exif(), icc_profile=profile)
        return data[:33] + extra + data[33:]
    data = encoded(halves(), to, exif=exif(), xmp=b"<x:xmpmeta>" + SECRET, icc_profile=profile)
    if to == "JPEG":
        comment = b"\xff\xfe" + struct.pack(">H", len(SECRET) + 2) + SECRET
        iptc = b"\xff\xed" + struct.pack(">H", len(SECRET) + 16) + b"Photoshop 3.0\0" + SECRET
        data = data[:2] + comment + iptc + data[2:]
    return data


@pytest.mark.parametrize("to", ["JPEG", "PNG", "GIF", "WEBP", "HEIF"])
def test_all_metadata_is_gone(to: str) -> None:
    data = with_metadata(to)
    assert SECRET in data

    taken = Taken(data)

    for trace in (
        SECRET,
        b"Exif",
        b"eXIf",
        b"EXIF",
        b"XMP",
        b"xmp",
        b"iCCP",
        b"ICC",
        b"tEXt",
        b"zTXt",
        b"Apple",
        b"Photoshop",
    ):
        assert trace not in taken.data
    assert not taken.picture.getexif()
    assert not taken.picture.getexif().get_ifd(0x8825)
    assert not {"exif", "xmp", "icc_profile", "comment", "photoshop"} & set(taken.picture.info)


@pytest.mark.parametrize("to", ["JPEG", "PNG", "GIF", "WEBP", "HEIF"])
def test_what_hangs_behind_a_picture_disappears(to: str) -> None:
    """A polyglot: a picture for one reader, a page or an archive for another; phones hang videos there."""
    taken = Taken(encoded(halves(), to) + bytes(300_000) + SECRET + b"PK\3\4" + b"\xff\xda\0\2" * 200)

    assert SECRET not in taken.data
    assert b"PK\3\4" not in taken.data
    assert taken.found.size < 10_000


@pytest.mark.parametrize("to", ["JPEG", "PNG", "GIF", "WEBP", "HEIF"])
@pytest.mark.parametrize("page", [b"<script>alert(1)</script>", b"<!DOCTYPE html><p>", b"<HTML><body>"], ids=str)
def test_a_picture_that_is_also_a_page_is_refused(to: str, page: bytes) -> None:
    with pytest.raises(NotAcceptable, match="web page"):
        inspect_image(io.BytesIO(encoded(halves(), to) + page))


def test_a_page_in_a_comment_of_a_picture_is_refused() -> None:
    page = b"<script>alert(1)</script>"
    data = encoded(halves(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", len(page) + 2) + page

    with pytest.raises(NotAcceptable, match="web page"):
        inspect_image(io.BytesIO(data[:2] + comment + data[2:]))


def test_what_is_hidden_inside_a_gif_s_data_disappears() -> None:
    """Decoders stop at the code that ends the picture; more may follow in the same chain of blocks."""
    data = encoded(halves(), "GIF")
    assert data.endswith(b"\0;")

    taken = Taken(data[:-2] + bytes((len(SECRET),)) + SECRET + b"\0;")

    assert SECRET not in taken.data


# Pictures: upright, in their colours


def test_a_photo_taken_upright_is_stored_upright() -> None:
    """Orientation 6: the camera's left side is the picture's top."""
    taken = Taken(encoded(halves(), "JPEG", exif=exif(6), quality=95))

    assert taken.picture.size == (32, 64)
    assert is_near(taken.picture.getpixel((16, 5)), RED)
    assert is_near(taken.picture.getpixel((16, 58)), BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("to", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_every_orientation_is_applied_once(to: str, orientation: int) -> None:
    camera = Image.new("RGB", (64, 32))
    for corner, colour in (((0, 0), RED), ((32, 0), BLUE), ((0, 16), GREEN), ((32, 16), YELLOW)):
        camera.paste(colour, (*corner, corner[0] + 32, corner[1] + 16))
    camera.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(camera)

    taken = Taken(encoded(camera, to, exif=exif(orientation), quality=95)).picture.convert("RGB")

    assert taken.size == expected.size
    width, height = expected.size
    for x, y in ((5, 5), (width - 6, 5), (5, height - 6), (width - 6, height - 6)):
        assert is_near(taken.getpixel((x, y)), expected.getpixel((x, y)), by=40)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    "broken",
    [b"\xff" * 50, exif(6).tobytes()[6:40], b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60],
    ids=["no header", "cut", "nonsense"],
)
@pytest.mark.parametrize("to", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_spoils_no_photo(to: str, broken: bytes) -> None:
    assert Taken(encoded(halves(), to, exif=b"Exif\0\0" + broken)).picture.size == (64, 32)


def display_p3() -> bytes:
    """The colour profile of an iPhone's photos: primaries as Apple's, its curve as a plain gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"Display P3\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", 132 + len(table) - 4 + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    return head.ljust(36, b"\0") + b"acsp".ljust(32, b"\0") + xyz(0.9642, 1, 0.8249)[8:].ljust(60, b"\0") + table + body


@pytest.mark.parametrize("to", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_an_iphone_s_wide_colours_are_turned_into_srgb(to: str) -> None:
    """Display P3's (200, 100, 50) is a stronger orange than sRGB's."""
    taken = Taken(encoded(Image.new("RGB", (32, 32), (200, 100, 50)), to, icc_profile=display_p3(), quality=95))

    assert is_near(taken.picture.convert("RGB").getpixel((16, 16)), (213, 95, 27), by=6)


@pytest.mark.parametrize("to", ["JPEG", "PNG", "WEBP"])
def test_a_photo_in_another_colour_space_is_upright_too(to: str) -> None:
    """As phones write them: orientation 6, and a profile that isn't sRGB's."""
    turned = Image.Exif()
    turned[0x0112] = 6

    found = Taken(encoded(Image.new("RGB", (40, 20), "red"), to, exif=turned, icc_profile=display_p3())).found

    assert (found.width, found.height) == (20, 40)


def test_a_broken_colour_profile_leaves_the_colours_alone() -> None:
    taken = Taken(encoded(halves(), "PNG", icc_profile=b"no profile" * 20))

    assert taken.picture.getpixel((5, 5)) == RED


# Pictures: as good as they were


def test_a_png_keeps_every_pixel_its_palette_and_its_transparency() -> None:
    sheer = halves((255, 0, 0, 90), (0, 0, 255, 0))
    for picture in (noise(), sheer, noise().convert("L"), noise().convert("1"), noise().convert("LA")):
        again = Taken(encoded(picture, "PNG")).picture
        assert again.mode == picture.mode
        assert again.tobytes() == picture.tobytes()
    palette = noise().quantize(40)
    again = Taken(encoded(palette, "PNG", transparency=bytes(range(40)))).picture
    assert again.mode == "P"
    assert again.convert("RGBA").getchannel("A").getextrema() == (0, 39)
    assert again.convert("RGBA").convert("RGB").tobytes() == palette.convert("RGB").tobytes()


def test_a_grey_png_of_16_bits_becomes_one_of_8() -> None:
    taken = Taken(encoded(Image.new("I;16", (20, 10), 0x8123), "PNG"))

    assert taken.picture.mode == "L"
    assert taken.picture.getpixel((5, 5)) == 0x81


def test_cmyk_becomes_rgb() -> None:
    taken = Taken(encoded(halves().convert("CMYK"), "JPEG"))

    assert taken.picture.mode == "RGB"
    assert is_near(taken.picture.getpixel((5, 16)), RED)


def test_a_jpeg_stays_about_as_large_and_as_good() -> None:
    photo = Image.effect_noise((400, 300), 90).resize((800, 600)).convert("RGB")
    for quality, sampling in ((60, 2), (75, 0), (90, 1), (98, 2)):
        data = encoded(photo, "JPEG", quality=quality, subsampling=sampling)
        taken = Taken(data)
        assert taken.found.size < 1.1 * len(data)
        assert taken.picture.info["progressive"]
        assert JpegImagePlugin.get_sampling(taken.picture) == sampling
        before = Image.open(io.BytesIO(data)).convert("L").resize((80, 60))
        assert all(
            abs(a - b) <= 6
            for a, b in zip(before.tobytes(), taken.picture.convert("L").resize((80, 60)).tobytes(), strict=True)
        )


def test_a_transparent_heic_is_put_on_white() -> None:
    taken = Taken(encoded(halves((255, 0, 0, 255), (0, 0, 255, 0)), "HEIF"))

    assert is_near(taken.picture.getpixel((58, 16)), (255, 255, 255))


def test_a_heif_of_the_general_brand_is_taken() -> None:
    """`mif1`, as Android and some cameras write; and of several pictures the main one."""
    pillow_heif.register_heif_opener()
    data = encoded(halves(), "HEIF", save_all=True, append_images=[halves(GREEN, GREEN, (32, 32))])

    assert Taken(data[:8] + b"mif1" + data[12:]).picture.size == (64, 32)


def test_a_lossless_webp_stays_lossless() -> None:
    picture = Image.merge(
        "RGBA", [Image.effect_noise((90, 60), 60) for _ in range(3)] + [Image.new("L", (90, 60), 255)]
    )
    picture.paste((10, 20, 30, 128), (0, 0, 40, 40))

    assert Taken(encoded(picture, "WEBP", lossless=True)).picture.convert("RGBA").tobytes() == picture.tobytes()


# Animations


def moving(count: int, size: tuple[int, int] = (80, 60)) -> list[Image.Image]:
    """A ball whose colours differ in each frame, on nothing."""
    frames = []
    for number in range(count):
        frame = Image.new("RGBA", size, (0, 0, 0, 0))
        colour = (number * 50 % 256, 255 - number * 30 % 256, number * 90 % 256, 255)
        ImageDraw.Draw(frame).ellipse((number * 5, 10, number * 5 + 30, 40), fill=colour)
        frames.append(frame)
    return frames


def shown(data: bytes) -> list[tuple[int, bytes]]:
    """(milliseconds, pixels) of each frame as a viewer puts them together."""
    animation = Image.open(io.BytesIO(data))
    frames = []
    for number in range(getattr(animation, "n_frames", 1)):
        animation.seek(number)
        pixels = animation.convert("RGBA")
        frames.append((animation.info.get("duration", 0), pixels.tobytes()))
    return frames


def animated(to: str, frames: list[Image.Image], **options: Any) -> bytes:
    return encoded(frames[0], to, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_an_animated_gif_is_shown_as_before(disposal: int) -> None:
    times = [40, 70, 300, 20, 100, 1000]
    data = animated("GIF", moving(6), duration=times, loop=3, disposal=disposal)

    taken = Taken(data)

    assert shown(taken.data) == shown(data)
    assert [time for time, _ in shown(taken.data)] == times
    assert taken.picture.info["loop"] == 3


@pytest.mark.parametrize("loop", [None, 0, 1, 500])
def test_a_gif_loops_as_often_as_before(loop: int | None) -> None:
    data = animated("GIF", moving(3), duration=50, **({} if loop is None else {"loop": loop}))

    assert Taken(data).picture.info.get("loop") == Image.open(io.BytesIO(data)).info.get("loop") == loop


def test_an_interlaced_gif_with_a_palette_for_each_frame_keeps_all_colours() -> None:
    frames = [noise((60, 40)).quantize(256) for _ in range(3)]
    data = animated("GIF", frames, duration=100, interlace=True)

    assert shown(Taken(data).data) == shown(data)


@pytest.mark.parametrize("lossless", [True, False])
def test_an_animated_webp_stays_animated(lossless: bool) -> None:
    times = [40, 70, 300, 20, 100, 1000]
    data = animated("WEBP", moving(6), duration=times, loop=3, lossless=lossless)

    taken = Taken(data)

    assert [time for time, _ in shown(taken.data)] == times
    assert taken.picture.info["loop"] == 3
    if lossless:
        assert shown(taken.data) == shown(data)
    else:
        assert is_near(taken.picture.convert("RGBA").getpixel((15, 25)), (0, 255, 0, 255), by=30)
        assert taken.picture.convert("RGBA").getchannel("A").getpixel((79, 59)) == 0


def test_of_an_animated_png_the_first_picture_is_kept() -> None:
    taken = Taken(animated("PNG", [halves(), halves(GREEN, GREEN)], duration=100))

    assert getattr(taken.picture, "n_frames", 1) == 1
    assert taken.picture.convert("RGB").getpixel((5, 16)) == RED


# Bombs


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(pixels or bytes(height * (3 * width + 1)), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    header = b"VP8L" + struct.pack("<IBI", 10, 0x2F, width - 1 | height - 1 << 14) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(header) + 4) + b"WEBP" + header


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(halves(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_frame(width: int, height: int) -> bytes:
    return b",\0\0\0\0" + struct.pack("<HH", width, height) + b"\0\2\2\x44\1\0"


def gif(width: int, height: int, *parts: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0" + b"".join(parts) + b";"


def heic_of(width: int, height: int) -> bytes:
    return encoded(halves(size=(128, 64)), "HEIF").replace(
        struct.pack(">II", 128, 64), struct.pack(">II", width, height)
    )


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, pixels=b"\0"),
        png(2**31 - 1, 2**31 - 1, pixels=b"\0"),
        jpeg_of(65_535, 65_535),
        webp_of(16_383, 16_383),
        gif(65_535, 65_535, gif_frame(1, 1)),
        gif(10, 10, gif_frame(65_535, 65_535)),
        heic_of(30_000, 30_000),
    ],
    ids=["png", "largest png", "jpeg", "webp", "gif", "gif frame", "heic"],
)
def test_too_many_pixels_are_refused_before_one_is_decoded(data: bytes) -> None:
    assert len(data) < 5000
    with at_once(1):
        assert "pixels" in refused(data)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 * MB), 9))
    bombs = [png(8, 8, text), png(30_000, 30_000, pixels=b"\0"), webp_of(16_383, 16_383), jpeg_of(65_535, 65_535)]
    bombs += [gif(10, 10, gif_frame(65_535, 65_535)), heic_of(30_000, 30_000), heic_of(4000, 4000)]
    for number, bomb in enumerate(bombs):
        (tmp_path / str(number)).write_bytes(bomb)
    script = """
READY
for number in range(7):
    try:
        inspect_image(open(f"{sys.argv[1]}/{number}", "rb"))
    except NotAcceptable:
        continue
    raise AssertionError(number)
"""
    assert peak_grown_by(script, tmp_path) < 20


def test_the_limit_is_one_of_each_side() -> None:
    assert Taken(encoded(Image.new("1", (4096, 2)), "PNG")).found.width == 4096
    assert "4097 × 2 pixels; at most 4096 × 4096" in refused(encoded(Image.new("1", (4097, 2)), "PNG"))
    assert "2 × 4097 pixels" in refused(encoded(Image.new("1", (2, 4097)), "PNG"))
    assert "at most 50 × 50" in refused(encoded(halves(), "JPEG"), max_pixels_side=50)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_bomb_in_a_png_s_text_or_profile_is_refused(name: bytes) -> None:
    bomb = png_chunk(name, b"a\0\0" + zlib.compress(bytes(60 * MB), 9))
    with at_once():
        assert "damaged" in refused(png(8, 8, bomb))


def test_many_small_bombs_are_refused() -> None:
    bombs = [png_chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(bytes(MB), 9)) for number in range(60)]
    with at_once():
        refused(png(8, 8, *bombs))


CROWDS: dict[str, Callable[[], bytes]] = {
    "png chunks": lambda: png(8, 8, png_chunk(b"tEXt", b"a\0b") * 600_000),
    "jpeg segments": lambda: encoded(halves(), "JPEG").replace(b"\xff\xdb", b"\xff\xfe\0\2" * 2 * MB + b"\xff\xdb", 1),
    "gif comments": lambda: gif(1, 1, b"!\xfe\1a\0" * 2 * MB),
    "gif frames": lambda: gif(1, 1, gif_frame(1, 1) * (MB // 2)),
    "gif pixels": lambda: gif(4000, 4000, gif_frame(4000, 4000) * 100),
    "webp frames": lambda: b"RIFF" + struct.pack("<I", 9 * MB) + b"WEBP" + b"ANMF\0\0\0\0" * MB,
}


@pytest.mark.parametrize("parts", CROWDS)
def test_a_picture_of_too_many_parts_is_refused(parts: str) -> None:
    data = CROWDS[parts]()
    with at_once():
        refused(data)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    """Each scan of 40 bytes makes the decoder walk over all pixels again: 10 MB of them would take an hour."""
    data = encoded(Image.new("RGB", (4096, 4096), "gray"), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xc4") : -2]
    with at_once():
        assert "damaged" in refused(data[:-2] + last_scan * 5000 + b"\xff\xd9")


def test_an_animated_webp_of_too_many_pixels_is_refused() -> None:
    frames = [Image.new("RGB", (3500, 3500), colour) for colour in ("red", "blue")] * 3
    data = animated("WEBP", frames, duration=50, lossless=True, quality=0)
    assert len(data) < MB / 2

    with at_once():
        assert "animation" in refused(data)


def test_pictures_are_decoded_one_at_a_time() -> None:
    """Four at once take no more memory than one."""
    script = """
import threading
from PIL import Image
out = io.BytesIO()
Image.linear_gradient("L").resize((3000, 1000)).convert("RGB").save(out, "WEBP")
def inspect():
    inspect_image(io.BytesIO(out.getvalue())).content.close()
inspect()
READY
threads = [threading.Thread(target=inspect) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert peak_grown_by(script) < 60  # 170 without the lock


@pytest.mark.filterwarnings("ignore:::PIL")
def test_mutilated_pictures_are_taken_or_refused_and_nothing_else() -> None:
    chance = random.Random(1)
    pictures = [encoded(noise((40, 30)), to, exif=exif(3)) for to in ("JPEG", "PNG", "WEBP", "HEIF")]
    pictures += [animated("GIF", moving(3), duration=50), animated("WEBP", moving(3), duration=50)]
    for data in pictures:
        for _ in range(150):
            with suppress(NotAcceptable):
                inspect_image(io.BytesIO(mutilated(data, chance))).content.close()


def mutilated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(min(len(changed), chance.choice((60, 600, len(changed)))))
        changed[place] = chance.choice((0, 255, chance.randrange(256), changed[place] ^ 1 << chance.randrange(8)))
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.2 else changed)


# Sounds: what is taken, and how long it is


@pytest.mark.parametrize(
    ("name", "extension", "mime_type"),
    [
        ("cbr.mp3", "mp3", "audio/mpeg"),
        ("vbr_xing.mp3", "mp3", "audio/mpeg"),
        ("iphone.m4a", "m4a", "audio/mp4"),
        ("faststart.m4a", "m4a", "audio/mp4"),
        ("fragmented.m4a", "m4a", "audio/mp4"),
        ("alac.m4a", "m4a", "audio/mp4"),
        ("chrome.mp4", "m4a", "audio/mp4"),
        ("aac.3gp", "m4a", "audio/mp4"),
        ("opus.ogg", "ogg", "audio/ogg"),
        ("vorbis.ogg", "ogg", "audio/ogg"),
        ("flac.ogg", "ogg", "audio/ogg"),
        ("speex.ogg", "ogg", "audio/ogg"),
        ("chrome.webm", "webm", "audio/webm"),
        ("vorbis.webm", "webm", "audio/webm"),
    ],
)
def test_the_bytes_decide_what_a_sound_is_and_how_long(name: str, extension: str, mime_type: str) -> None:
    found = measured(file(name))

    assert (found.extension, found.mime_type) == (extension, mime_type)
    assert found.duration_seconds == pytest.approx(3, abs=0.08)  # codecs fill their first and last packet with silence


def wav(duration: float, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"\x55" * int(duration * rate) * channels * width)
    return out.getvalue()


@pytest.mark.parametrize(("rate", "channels", "width"), [(8000, 1, 2), (44_100, 2, 2), (48_000, 2, 3), (16_000, 1, 1)])
def test_a_wav_is_as_long_as_its_samples(rate: int, channels: int, width: int) -> None:
    found = measured(wav(2.5, rate, channels, width))

    assert (found.extension, found.mime_type) == ("wav", "audio/wav")
    assert found.duration_seconds == pytest.approx(2.5)


NO_SOUNDS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "two bytes": lambda: b"\xff\xfb",
    "text": lambda: b"just text",
    "HTML": lambda: b"<!doctype html><script>alert(1)</script>",
    "FLAC": lambda: b"fLaC\0\0\0\x22" + bytes(100),
    "AIFF": lambda: b"FORM\0\0\0\x10AIFFCOMM",
    "AMR": lambda: b"#!AMR\n\x3c" + bytes(100),
    "MIDI": lambda: b"MThd\0\0\0\6" + bytes(100),
    "AVI": lambda: b"RIFF\x10\0\0\0AVI LIST",
    "AAC without a container": lambda: file("raw.aac"),
    "JPEG": lambda: encoded(halves(), "JPEG"),
    "HEIC": lambda: encoded(halves(), "HEIF"),
    "Matroska": lambda: file("chrome.webm").replace(b"webm", b"mkv\0", 1),
    "AAC in WebM": lambda: file("chrome.webm").replace(b"A_OPUS", b"A_AAC\0", 1),
    "unknown in OGG": lambda: file("opus.ogg").replace(b"OpusHead", b"OpusTail", 1),
    "AMR in 3GP": lambda: file("aac.3gp").replace(b"mp4a\0", b"samr\0", 1),
    "MP3 in WAV": lambda: wav(1).replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\x55\0"),
}


@pytest.mark.parametrize("what", NO_SOUNDS)
def test_what_is_no_allowed_sound_is_refused_with_the_formats_that_are(what: str) -> None:
    assert "MP3, M4A, WAV, OGG, WebM" in unheard(NO_SOUNDS[what]())


@pytest.mark.parametrize("name", ["video.mp4", "video.webm", "video.ogg"])
def test_a_video_is_no_sound(name: str) -> None:
    assert "MP3, M4A, WAV, OGG, WebM" in unheard(file(name))


@pytest.mark.parametrize("name", ["iphone.m4a", "faststart.m4a", "fragmented.m4a", "alac.m4a", "chrome.mp4"])
def test_an_m4a_cut_short_is_refused(name: str) -> None:
    assert "damaged or incomplete" in unheard(file(name)[:-300])


@pytest.mark.parametrize("name", ["cbr.mp3", "opus.ogg", "vorbis.ogg", "chrome.webm"])
def test_of_a_stream_cut_short_what_is_there_counts(name: str) -> None:
    """Their players play it, too."""
    data = file(name)

    assert 1 < seconds(data[: len(data) * 2 // 3]) < 2.4


# Sounds: lies


@pytest.mark.parametrize(
    "name", ["cbr.mp3", "iphone.m4a", "fragmented.m4a", "chrome.mp4", "opus.ogg", "vorbis.ogg", "chrome.webm"]
)
def test_longer_than_allowed_is_refused_with_the_limit(name: str) -> None:
    assert "longer than 2 seconds" in unheard(file(name), max_seconds=2)
    assert measured(file(name), max_seconds=3)  # the codec's padding isn't counted against anybody


def test_a_wav_that_says_one_second_is_measured_by_what_is_there() -> None:
    data = wav(301)
    lies = data[:40] + struct.pack("<I", 16_000) + data[44:]

    assert "longer than 300 seconds" in unheard(lies)
    assert seconds(wav(3)[:40] + struct.pack("<I", 16) + wav(3)[44:]) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("size", [0, 2**32 - 1, 10**9])
def test_a_wav_of_a_recorder_that_streams_is_as_long_as_what_is_there(size: int) -> None:
    assert seconds(wav(3)[:40] + struct.pack("<I", size) + wav(3)[44:]) == pytest.approx(3)


def test_a_wav_s_other_chunks_are_no_sound() -> None:
    data = wav(3)
    notes = b"LIST" + struct.pack("<I", 50_000) + bytes(50_000)

    assert seconds(data[:36] + notes + data[36:] + notes) == pytest.approx(3)


@pytest.mark.parametrize(("place", "value"), [(24, 4_000_000_000), (28, 1), (32, 4000), (22, 0), (34, 0)])
def test_a_wav_s_wrong_rate_or_width_doesn_t_make_it_short(place: int, value: int) -> None:
    data = wav(301)
    layout = "<I" if place in (24, 28) else "<H"
    lies = data[:place] + struct.pack(layout, value) + data[place + struct.calcsize(layout) :]

    assert "MP3" in unheard(lies) or "longer than 300" in unheard(lies)


def test_an_mp3_s_xing_header_isn_t_believed() -> None:
    data = bytearray(file("vbr_xing.mp3"))
    start = data.index(b"Xing")
    data[start + 8 : start + 12] = struct.pack(">I", 5)

    assert seconds(bytes(data)) == pytest.approx(seconds(file("cbr.mp3")))
    assert "longer than 300 seconds" in unheard(bytes(data) + mp3_frames() * 110)


def mp3_frames() -> bytes:
    data = file("cbr.mp3")
    return data[data.index(b"\xff\xfb") :]


def test_an_mp3_goes_on_behind_tags_and_junk() -> None:
    id3 = b"ID3\4\0\0\0\0\x10\0" + b"\xff\xfb" * 1024
    ape = b"APETAGEX" + struct.pack("<4I", 2000, 300, 1, 0xA0000000) + bytes(8) + bytes(300)
    frames = mp3_frames()

    assert seconds(id3 + frames + bytes(5000) + id3 + frames + ape + frames + b"TAG" + bytes(125)) == pytest.approx(
        9, abs=0.2
    )
    assert "damaged" in unheard(frames + bytes(MB) + frames)


@pytest.mark.parametrize("name", ["iphone.m4a", "faststart.m4a", "fragmented.m4a", "alac.m4a"])
def test_an_m4a_s_headers_aren_t_believed(name: str) -> None:
    """mvhd, tkhd and mdhd say a tenth of a second."""
    data = bytearray(file(name))
    for kind, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        start = data.index(kind) + place
        data[start : start + 4] = struct.pack(">I", 100)

    assert seconds(bytes(data)) == pytest.approx(3, abs=0.08)


@pytest.mark.parametrize("kind", [b"stts", b"mdhd"])
def test_an_m4a_s_table_of_times_isn_t_believed(kind: bytes) -> None:
    """The packets play as long as the codec makes them, be each said to last a tick, or a tick to last a nanosecond."""
    data = bytearray(file("iphone.m4a"))
    start = data.index(kind)
    if kind == b"stts":
        data[start + 16 : start + 20] = struct.pack(">I", 1)
    else:
        data[start + 16 : start + 20] = struct.pack(">I", 10**9)

    assert seconds(bytes(data)) == pytest.approx(3, abs=0.08)


def test_an_m4a_whose_edit_list_repeats_it_is_as_long_as_it_plays() -> None:
    data = bytearray(file("iphone.m4a"))
    start = data.index(b"elst") + 12
    data[start : start + 4] = struct.pack(">I", 400_000)  # in the movie's thousandths of a second

    assert "longer than 300 seconds" in unheard(bytes(data))


def test_an_m4a_with_two_descriptions_of_its_sound_is_refused() -> None:
    data = file("faststart.m4a")
    start = data.index(b"mp4a") - 4
    entry = data[start : start + struct.unpack_from(">I", data, start)[0]]
    data = data.replace(entry, entry * 2)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        place = data.index(kind) - 4
        size = struct.unpack_from(">I", data, place)[0] + len(entry)
        data = data[:place] + struct.pack(">I", size) + data[place + 4 :]

    assert "should be AAC" in unheard(data)


def test_an_m4a_whose_samples_lie_outside_of_it_is_refused() -> None:
    data = bytearray(file("iphone.m4a"))
    start = data.index(b"stco") + 12
    data[start : start + 4] = struct.pack(">I", len(data) - 100)

    assert "damaged" in unheard(bytes(data))


def test_an_ogg_s_positions_aren_t_believed() -> None:
    for name in ("opus.ogg", "vorbis.ogg", "flac.ogg", "speex.ogg"):
        data = bytearray(file(name))
        place = data.find(b"OggS")
        while place >= 0:
            data[place + 6 : place + 14] = struct.pack("<q", 960)
            place = data.find(b"OggS", place + 4)
        assert seconds(bytes(data)) == pytest.approx(3, abs=0.08)


def test_an_ogg_may_carry_a_cover_picture() -> None:
    """Its comment header is then larger than all the sound, and goes on over many pages."""
    pages = file("opus.ogg").split(b"OggS")[1:]
    cover = [ogg_page(b"\xff" * 255, b"OpusTags".ljust(255 * 255, b"x"))]
    cover += [ogg_page(b"\xff" * 255, bytes(255 * 255), continued=True)] * 5 + [ogg_page(b"\1", b"x", continued=True)]

    assert seconds(
        b"OggS" + pages[0] + b"".join(cover) + b"".join(b"OggS" + page for page in pages[2:])
    ) == pytest.approx(3, abs=0.08)


def test_a_chain_of_oggs_is_as_long_as_all() -> None:
    assert "longer than 8 seconds" in unheard(file("opus.ogg") * 3, max_seconds=8)


def test_a_webm_s_times_aren_t_believed() -> None:
    """All blocks at the same moment: they'd still be played one after the other."""
    data = bytearray(file("chrome.webm"))
    for identity, place, size in sounds.elements(sounds.Source(io.BytesIO(data))):
        if identity == sounds.TIMESTAMP:
            data[place : place + size] = bytes(size)
        elif identity in (sounds.SIMPLE_BLOCK, sounds.BLOCK):
            data[place + 1 : place + 3] = b"\0\0"

    assert seconds(bytes(data)) == pytest.approx(3, abs=0.08)


def test_pauses_count_as_they_are_played() -> None:
    """A WebM whose later blocks come 400 s later."""
    data = bytearray(file("chrome.webm"))
    places = [
        (place, size)
        for identity, place, size in sounds.elements(sounds.Source(io.BytesIO(data)))
        if identity == sounds.TIMESTAMP_SCALE
    ]
    assert len(places) == 1
    place, size = places[0]
    data[place : place + size] = (200_000_000).to_bytes(8)[-size:] if size >= 4 else b"\xff" * size

    assert "longer than 9 seconds" in unheard(bytes(data), max_seconds=9)


@pytest.mark.parametrize(
    "data",
    [wav(0), b"ID3\4\0\0\0\0\0\0", file("opus.ogg")[:100], file("chrome.webm")[:220]],
    ids=["wav", "mp3", "ogg", "webm"],
)
def test_without_a_sound_there_is_nothing_to_take(data: bytes) -> None:
    assert "MP3, M4A, WAV, OGG, WebM" in unheard(data)


# Sounds: cheap, whatever they are


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def fragment(run: bytes) -> bytes:
    return box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0, 1)) + run))


def ogg_page(lacing: bytes, content: bytes, *, continued: bool = False) -> bytes:
    return (
        b"OggS\0"
        + bytes((continued,))
        + bytes(8)
        + file("opus.ogg")[14:18]
        + bytes(8)
        + bytes((len(lacing),))
        + lacing
        + content
    )


FLOODS: dict[str, Callable[[], bytes]] = {
    "m4a boxes": lambda: file("iphone.m4a") + box(b"free", b"") * 2 * MB,
    "m4a tracks": lambda: box(b"ftyp", b"M4A \0\0\0\0") + box(b"moov", box(b"trak", b"") * 2 * MB),
    "m4a fragments": lambda: file("fragmented.m4a") + fragment(b"") * (MB // 2),
    "m4a claimed samples": lambda: file("fragmented.m4a") + fragment(box(b"trun", bytes(4) + b"\xff" * 4)),
    "webm voids": lambda: file("chrome.webm") + b"\xec\x80" * 10 * MB,
    "webm empty blocks": lambda: file("chrome.webm") + b"\xa3\x84\x81\0\0\x80" * 3 * MB,
    "webm clusters": lambda: file("chrome.webm") + b"\x1f\x43\xb6\x75\x80" * 3 * MB,
    "ogg pages": lambda: file("opus.ogg") + ogg_page(b"", b"") * (MB // 2),
    "ogg empty packets": lambda: file("opus.ogg") + ogg_page(bytes(255), b"") * (MB // 14),
    "mp3 tags": lambda: b"ID3\4\0\0\0\0\0\0" * 2 * MB,
    "mp3 syncs": lambda: mp3_frames()[:2000] + b"\xff\xfb\x90\0" * 5 * MB,
    "wav chunks": lambda: b"RIFF\0\0\0\0WAVE" + b"JUNK\0\0\0\0" * 2 * MB,
}


@pytest.mark.parametrize("parts", FLOODS)
def test_twenty_megabytes_of_tiny_parts_are_refused_at_once(parts: str) -> None:
    data = FLOODS[parts]()
    with at_once():
        unheard(data)


def large(name: str) -> bytes:
    """20 MB of it."""
    if name == "wav":
        return wav(110, 48_000, 2, 2)
    if name == "mp3":
        return mp3_frames() * (20 * MB // len(mp3_frames()))
    if name == "ogg":
        return file("opus.ogg") * 16 + b"".join(
            ogg_page(b"\xff" * 254 + b"\1", b"\xfc" * (255 * 254 + 1)) for _ in range(300)
        )
    if name == "m4a":
        return file("fragmented.m4a") + box(b"mdat", bytes(20 * MB))
    return file("chrome.webm") + b"".join(b"\xa3\x20\x80\x04\x81\0\0\x80" + b"\xfc" * 0x8000 for _ in range(600))


@pytest.mark.parametrize("name", ["wav", "mp3", "ogg", "m4a", "webm"])
def test_twenty_megabytes_of_sound_take_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sound"
    path.write_bytes(large(name))
    assert path.stat().st_size > 18 * MB

    with path.open("rb") as file:
        tracemalloc.start()
        try:
            inspect_audio(file, max_seconds=10_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 2 * MB


def test_a_large_sound_raises_the_process_s_peak_by_little(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(110, 48_000, 2, 2))
    script = """
READY
with open(sys.argv[1], "rb") as file:
    inspect_audio(file, max_seconds=300)
"""
    assert peak_grown_by(script, path) < 4


def test_mutilated_sounds_are_measured_or_refused_and_nothing_else() -> None:
    chance = random.Random(1)
    for path in sorted(FILES.iterdir()):
        for _ in range(150):
            with suppress(NotAcceptable):
                inspect_audio(io.BytesIO(mutilated(path.read_bytes(), chance)), max_seconds=300)
