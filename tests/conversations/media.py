"""Pictures and sounds made here, uploaded by the real route, and found again in what the model was sent."""

import io
import wave
from base64 import b64decode
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image, ImageColor

from tests.conftest import Api
from tests.fake_gemini import Asked

COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "magenta", "gray", "orange")


def picture(colour: str = "red", size: tuple[int, int] = (64, 48), format: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, format)
    return written.getvalue()


def sound(seconds: float = 2.0) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(8000)
        wav.writeframes(b"\x00\x10" * round(8000 * seconds))
    return written.getvalue()


def upload(api: Api, data: bytes, kind: str) -> dict[str, Any]:
    fields = {"file": SimpleUploadedFile("file", data), "type": kind}
    response = api.client.post("/api/v1/media/upload", fields, headers=api.headers())
    assert response.status_code == 200, response.content
    return dict(response.json())


def take(api: Api, *colours: str, size: tuple[int, int] = (64, 48)) -> list[str]:
    """The keys of uploaded pictures."""
    return [upload(api, picture(colour, size), "image")["storage_key"] for colour in colours]


def record(api: Api, seconds: float = 2.0) -> str:
    """The key of an uploaded sound."""
    return str(upload(api, sound(seconds), "audio")["storage_key"])


# In the model's request


def image_of(part: dict[str, Any]) -> Image.Image:
    assert part["inlineData"]["mimeType"] == "image/jpeg"
    image = Image.open(io.BytesIO(b64decode(part["inlineData"]["data"], validate=True)))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert not image.getexif()
    return image


def colour_of(image: Image.Image) -> str:
    seen: Any = image.getpixel((image.width // 2, image.height // 2))

    def distance(name: str) -> int:
        return sum(abs(one - other) for one, other in zip(seen, ImageColor.getrgb(name), strict=True))

    nearest = min(COLOURS, key=distance)
    assert distance(nearest) < 30, seen
    return nearest


def contents(asked: Asked) -> list[tuple[str, list[str]]]:
    """(role, parts) with each picture as <its colour>."""
    return [
        (c["role"], [f"<{colour_of(image_of(p))}>" if "inlineData" in p else p["text"] for p in c["parts"]])
        for c in asked.body["contents"]
    ]


def images(asked: Asked) -> list[str]:
    """The colours of all pictures, in order."""
    return [part[1:-1] for _, parts in contents(asked) for part in parts if part.startswith("<")]


def is_transcription(asked: Asked) -> bool:
    return any("audio/" in p.get("inlineData", {}).get("mimeType", "") for p in asked.body["contents"][-1]["parts"])
