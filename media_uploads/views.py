import os
import re
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, BinaryIO

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import extend_schema
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from media_uploads import services, storage
from media_uploads.models import MediaUpload
from media_uploads.serializers import EXAMPLE, UploadedSerializer, UploadSerializer, uploaded_json
from yral_chat import errors
from yral_chat.authentication import caller_id
from yral_chat.bodies import check_length
from yral_chat.errors import StorageUnavailable
from yral_chat.pagination import base_url
from yral_chat.schema import errors as answers

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
PIECE = 64 * 1024


class UploadParser(MultiPartParser):
    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> Any:
        check_length(stream)
        return super().parse(stream, *args, **kwargs)


class MediaUploadViewSet(GenericViewSet[MediaUpload]):
    tag = "Media"
    limited_as = {"create": "upload"}
    queryset = MediaUpload.objects.none()
    serializer_class = UploadSerializer
    parser_classes = (UploadParser,)

    @extend_schema(
        operation_id="uploadMedia",
        examples=[EXAMPLE],
        summary="Upload a picture or a sound, to use in messages",
        description="The bytes decide what it is. Pictures are stored without their metadata, HEIC as JPEG.",
        request={"multipart/form-data": UploadSerializer},
        responses={
            200: UploadedSerializer,
            **answers("wrong_format", "file_too_large", "wrong_type", "no_upload_file", "storage_down"),
        },
    )
    def create(self, request: Request) -> Response:
        body = UploadSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        file: Any = body.validated_data["file"]
        upload = services.store_upload(
            owner_id=caller_id(request), kind=body.validated_data["type"], file=file.file, size=file.size
        )
        return Response(uploaded_json(upload, base_url(request)))


@csrf_exempt  # else it answers other methods before this does
def media_file(request: HttpRequest, key: str) -> HttpResponseBase:
    """A file of the folder, to whoever holds a good link; players ask for ranges of it."""
    if request.method not in ("GET", "HEAD"):
        return errors.plain("method_not_allowed", 405, headers={"Allow": "GET, HEAD"})
    if settings.USE_S3 or not storage.KEY.fullmatch(key):
        return errors.plain("not_found", 404)
    if not storage.holds(key, request.GET.get("expires", ""), request.GET.get("signature", "")):
        return errors.plain("forbidden", 403)
    if settings.MEDIA_X_ACCEL_PREFIX:
        response: HttpResponseBase = HttpResponse(
            headers={"X-Accel-Redirect": f"{settings.MEDIA_X_ACCEL_PREFIX}/{key}"}
        )
    else:
        try:
            response = _sent(request, storage.open_local(key))
        except storage.MissingFile:
            return errors.plain("not_found", 404)
        except StorageUnavailable as exc:
            return errors.plain("storage_unavailable", 503, headers={"Retry-After": str(exc.retry_after)})
    return _inert(response, key) if response.status_code < 400 else response


def _inert(response: HttpResponseBase, key: str) -> HttpResponseBase:
    """Whatever it holds, a browser shows it as the picture or sound that it is, and runs nothing of it."""
    response["Content-Type"] = storage.mime_type_of(key)
    response["Content-Disposition"] = f'inline; filename="{key.rpartition("/")[2]}"'
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["Cross-Origin-Resource-Policy"] = "cross-origin"
    response["Cache-Control"] = f"private, max-age={settings.S3_URL_EXPIRES_SECONDS // 3}"
    return response


def _sent(request: HttpRequest, file: BinaryIO) -> HttpResponseBase:
    """The file, or the one range of it that was asked for (RFC 9110, section 14)."""
    status = os.fstat(file.fileno())
    asked = _range(request.headers.get("Range", ""), status.st_size)
    headers = {"Accept-Ranges": "bytes", "Last-Modified": formatdate(status.st_mtime, usegmt=True)}
    first, last = asked or (0, status.st_size - 1)
    if asked and first > last:
        file.close()
        return errors.plain("range_not_satisfiable", 416, {**headers, "Content-Range": f"bytes */{status.st_size}"})
    if asked:
        headers["Content-Range"] = f"bytes {first}-{last}/{status.st_size}"
    headers["Content-Length"] = str(last - first + 1)
    code = 206 if asked else 200
    if request.method == "HEAD":
        file.close()
        return HttpResponse(status=code, headers=headers)
    return StreamingHttpResponse(_Pieces(file, first, last), status=code, headers=headers)


def _range(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None if nothing sensible was asked for; first > last if it can't be had."""
    match = RANGE.fullmatch(asked.strip())
    if not match or match.groups() == ("", ""):
        return None
    if not match[1]:
        return (max(0, size - int(match[2])), size - 1) if int(match[2]) else (1, 0)
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    if match[2] and int(match[2]) < first:
        return None
    return (first, last) if first < size else (1, 0)


class _Pieces:
    """Of a file, from byte to byte; the response closes it, read or not."""

    def __init__(self, file: BinaryIO, first: int, last: int) -> None:
        self.file, self.left = file, last - first + 1
        file.seek(first)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self.file.read(min(PIECE, self.left))
        self.left -= len(piece)
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        self.file.close()
