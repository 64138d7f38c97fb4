"""A bucket on a real socket that also takes uploads, and checks them as S3 does: each part's CRC32 and the whole's."""

from __future__ import annotations

import base64
import urllib.parse
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.fakes.s3_server import BUCKET, Cut, Refusal, S3Server, _etag, _Handler

CRC32 = "x-amz-checksum-crc32"


@dataclass
class Upload:
    """A multipart upload that was begun."""

    key: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class S3UploadServer(S3Server):
    """As `S3Server`; ``uploads`` are the unfinished ones by id.

    ``store(key, content)`` returns what is stored of a part or an object, ``after(operation, key)`` is called once a
    request took effect and before it is answered. Operations are list, get, head, put, begin, part, complete, abort,
    uploads and parts.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.RequestHandlerClass = _UploadHandler
        self.metadata: dict[str, dict[str, str]] = {}
        self.uploads: dict[str, Upload] = {}
        self.begun = 0
        self.store: Callable[[str, bytes], bytes] = lambda _key, content: content
        self.after: Callable[[str, str], None] = lambda _operation, _key: None


class _UploadHandler(_Handler, BaseHTTPRequestHandler):
    server: S3UploadServer

    def do_GET(self) -> None:
        key, query = self._asked()
        if "uploads" in query:
            if self._passes("uploads", key) and (prefix := query.get("prefix", "")) is not None:
                entries = [(i, upload) for i, upload in self.server.uploads.items() if upload.key.startswith(prefix)]
                shown = "".join(f"<Upload><Key>{u.key}</Key><UploadId>{i}</UploadId></Upload>" for i, u in entries)
                self._answer(200, f"<R><IsTruncated>false</IsTruncated>{shown}</R>".encode(), {})
        elif "uploadId" in query:
            if self._passes("parts", key):
                shown = "".join(
                    f"<Part><PartNumber>{number}</PartNumber><ETag>{_etag(content)}</ETag><Size>{len(content)}</Size>"
                    f"<ChecksumCRC32>{crc32_of(content)}</ChecksumCRC32></Part>"
                    for number, content in sorted(self.server.uploads[query["uploadId"]].parts.items())
                )
                self._answer(200, f"<R><IsTruncated>false</IsTruncated>{shown}</R>".encode(), {})
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        if not self._passes("head", key):
            return
        content = self.server.objects.get(key)
        if content is None:
            self._refuse(Refusal(404, "NoSuchKey"))
            return
        self.send_response(200)
        headers = {**self.server.metadata[key], "ETag": _etag(content), "Content-Length": str(len(content))}
        for name, value in {**headers, CRC32: crc32_of(content), "x-amz-checksum-type": "FULL_OBJECT"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_PUT(self) -> None:
        key, query = self._asked()
        operation = "part" if "partNumber" in query else "put"
        fault = self._fault(operation, key)
        length = int(self.headers["Content-Length"])
        if isinstance(fault, Cut):
            self.rfile.read(min(fault.after_bytes, length))
            self.close_connection = True
            return
        content = self.rfile.read(length)
        if len(content) < length:
            return  # the client is dead
        if isinstance(fault, Refusal):
            self._refuse(fault)
        elif self.headers[CRC32] != crc32_of(content):
            self._refuse(Refusal(400, "BadDigest"))
        elif operation == "put" and self.headers["If-None-Match"] == "*" and key in self.server.objects:
            self._refuse(Refusal(412, "PreconditionFailed"))
        else:
            stored = self.server.store(key, content)
            if operation == "put":
                self._keep(key, stored, self._metadata())
            else:
                self.server.uploads[query["uploadId"]].parts[int(query["partNumber"])] = stored
            self.server.after(operation, key)
            self._answer(200, b"", {"ETag": _etag(content)})

    def do_POST(self) -> None:
        key, query = self._asked()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "uploads" in query:
            if self._passes("begin", key):
                with self.server.lock:
                    self.server.begun += 1
                    upload_id = f"upload-{self.server.begun}"
                self.server.uploads[upload_id] = Upload(key, self._metadata())
                self.server.after("begin", key)
                self._answer(200, f"<R><UploadId>{upload_id}</UploadId></R>".encode(), {})
        elif self._passes("complete", key):
            upload = self.server.uploads[query["uploadId"]]
            whole = b"".join(content for _, content in sorted(upload.parts.items()))
            if self.headers[CRC32] != crc32_of(whole):
                self._refuse(Refusal(400, "BadDigest", "The CRC32 you specified did not match what we received."))
                return
            self._keep(key, whole, upload.metadata)
            del self.server.uploads[query["uploadId"]]
            self.server.after("complete", key)
            self._answer(200, f"<R><ETag>{_etag(whole)}</ETag></R>".encode(), {})

    def do_DELETE(self) -> None:
        key, query = self._asked()
        if self._passes("abort", key):
            self.server.uploads.pop(query["uploadId"])
            self.server.after("abort", key)
            self._answer(204, b"", {})

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return urllib.parse.unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/"), query

    def _fault(self, operation: str, key: str) -> Refusal | Cut | None:
        with self.server.lock:
            self.server.requests.append((operation, key))
            return self.server.fault(operation, key)

    def _passes(self, operation: str, key: str) -> bool:
        fault = self._fault(operation, key)
        if isinstance(fault, Refusal):
            self._refuse(fault)
        return fault is None

    def _metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}

    def _keep(self, key: str, content: bytes, metadata: dict[str, str]) -> None:
        self.server.metadata[key] = metadata
        self.server.objects[key] = content


def crc32_of(content: bytes) -> str:
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
