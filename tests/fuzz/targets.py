"""What reads bytes that others wrote, each as a function of such bytes.

Whatever the bytes are, a target returns, which stands for a result or for one of the errors that people are told; any
other exception, and a decoder's end by a signal, is a fault of ours.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import io
import itertools
import json
import lzma
import os
import shutil
import ssl
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
import scipy.io
from ansible.module_utils.imagenet_ops.archive.devkit import read_validation_labels
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules, ImageArchive
from ansible.module_utils.imagenet_ops.archive.labels import read_label_file
from ansible.module_utils.imagenet_ops.backup import (
    backup,
    restore,
    tree_backup,
    tree_index,
    tree_restore,
    verified_files,
)
from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile
from ansible.module_utils.imagenet_ops.dataset import manifest, verify, warm
from ansible.module_utils.imagenet_ops.download import fetch, pieces, verified
from ansible.module_utils.imagenet_ops.download.http import HttpSource
from ansible.module_utils.imagenet_ops.download.source import local_path
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample
from ansible.module_utils.imagenet_ops.formats.recordio import (
    RECORDIO,
    RecordReader,
    frame_images,
    parse_image_data,
)
from ansible.module_utils.imagenet_ops.formats.registry import FORMATS
from ansible.module_utils.imagenet_ops.layout.checkpoint import checkpoint_kind
from ansible.module_utils.imagenet_ops.pack import in_hand, spool, writer
from ansible.module_utils.imagenet_ops.pack.decoder import DecodeCheck, Limits, Transformer
from ansible.module_utils.imagenet_ops.pack.image import STRICT, Plan, Recipe, plan_all
from ansible.module_utils.imagenet_ops.pack.listing import read_label_order

sys.path.append(str(Path(__file__).resolve().parents[2] / "contrib"))

import recordio_reader

from tests.fakes import images
from tests.fakes.formats import write_shards
from tests.fakes.state_files import signed


class Target(NamedTuple):
    """Something to fuzz: ``run`` takes any bytes, ``seeds`` returns sound ones to begin with.

    ``cost`` is how many times as long as the others it takes, about.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    cost: int = 1


class FaultError(AssertionError):
    """A reader did something that is not allowed."""


# --- files -----------------------------------------------------------------------------------------------------------

_MEMORY = Path("/dev/shm")


class _Folder:
    """A folder in memory for this process, made when it is needed first."""

    _path = ""
    _process_id = 0

    def path(self, name: str) -> str:
        if self._process_id != os.getpid():
            self._path = tempfile.mkdtemp(prefix="imagenet-ops-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
            self._process_id = os.getpid()
        return os.path.join(self._path, name)

    def write(self, name: str, data: bytes) -> str:
        path = self.path(name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
        return path

    def remove(self) -> None:
        if self._process_id == os.getpid():
            if os.path.isdir(self._path):
                shutil.rmtree(self._path)
            self._process_id = 0


FOLDER = _Folder()


# --- archives --------------------------------------------------------------------------------------------------------

_PICTURE = b"\xff\xd8\xff\xd9"  # the readers of archives do not look into an image
_MEMBERS = [("a/1.jpg", _PICTURE), ("a/2.jpg", _PICTURE * 200), ("b/1.png", b""), ("b/notes.txt", b"notes")]


def _read_archive(data: bytes, name: str, layout: str, labels: dict[str, str] | None = None) -> None:
    path = FOLDER.write(name, data)
    rules = ArchiveRules("any", layout, labels="labels.csv" if labels else None)
    with contextlib.suppress(OpsError), ImageArchive(path, rules, labels) as archive:
        for image in archive.images():
            if len(image.content) > len(data) * 2000:
                raise FaultError(f"{image.name} has {len(image.content)} bytes, of an archive of {len(data)}")
        archive.remaining_bytes(image.after)


def _with_checksums(data: bytes) -> bytes:
    """Return a tar with the right checksum in each block that looks like a header: what is behind it is reached."""
    blocks = [data[begin : begin + 512] for begin in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 0x20
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def _run_tar(data: bytes) -> None:
    for content in (data, _with_checksums(data)):
        _read_archive(content, "fuzz.tar", "class_directories")


def _run_labelled_tar(data: bytes) -> None:
    _read_archive(data, "flat.tar", "labelled_files", {"1.jpg": "a", "2.jpg": "b"})


def _run_tar_of_tars(data: bytes) -> None:
    for content in (data, _with_checksums(data)):
        _read_archive(content, "tars.tar", "class_archives")


def _run_compressed_tar(data: bytes) -> None:
    """Read compressed bytes, or the tar that is in them: with a checksum in the way little else would be reached."""
    form, rest = data[:1] or b"\0", data[1:]
    pack: Callable[[bytes], bytes] = (gzip.compress, bz2.compress, lzma.compress)[form[0] // 2 % 3]
    _read_archive(pack(rest) if form[0] % 2 else rest, "compressed.tar", "class_directories")


def _run_zip(data: bytes) -> None:
    _read_archive(data, "fuzz.zip", "class_directories")


def _long_names() -> bytes:
    long = "d" * 120
    return images.tar([(f"a/{long}.jpg", _PICTURE), (f"b/ü{long}.jpg", _PICTURE)], folders=True)


def _tar_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a/ü" + "x" * 120 + ".jpg")
        member.size = len(_PICTURE)
        member.pax_headers = {"comment": "c", "size": str(len(_PICTURE))}
        archive.addfile(member, io.BytesIO(_PICTURE))
    return [images.tar(_MEMBERS), images.tar(_MEMBERS, folders=True), _long_names(), buffer.getvalue()]


def _labelled_tar_seeds() -> list[bytes]:
    return [images.tar([("1.jpg", _PICTURE), ("2.jpg", _PICTURE)])]


def _tar_of_tars_seeds() -> list[bytes]:
    tars = [(f"{name}.tar", images.tar([("1.jpg", _PICTURE), ("2.jpg", _PICTURE)])) for name in ("a", "b")]
    return [images.tar(tars)]


def _compressed_tar_seeds() -> list[bytes]:
    plain = images.tar(_MEMBERS)
    packed = (gzip.compress(plain, mtime=0), bz2.compress(plain), lzma.compress(plain))
    return [b"\0" + data for data in packed] + [bytes([form]) + plain for form in (1, 3, 5)]


def _zip_seeds() -> list[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in [("a/", b""), ("ü/ü.jpg", _PICTURE), *_MEMBERS]:
                archive.writestr(zipfile.ZipInfo(name), content, method)
        seeds.append(buffer.getvalue())
    return seeds


# --- images ----------------------------------------------------------------------------------------------------------

_RECIPE = Recipe(short_side_pixels=32, quality=90, resize_filter="linear", max_image_pixels=1_000_000)


def _run_image_header(data: bytes) -> None:
    for recipe in (_RECIPE, _RECIPE._replace(pass_through=True, jpeg_check=STRICT)):
        plan_all([data], recipe)
    # What is passed through is judged by its bytes alone.
    with Transformer(_RECIPE._replace(pass_through=True)) as transformer:
        transformer.transform_all(["fuzz"], [data])


def _with_crcs(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    found = bytearray(data)
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        found[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(found)


class _Decoder:
    """Decodes each image in a process of its own, whatever its kind: one that dies there is named, and no more."""

    check: DecodeCheck | None = None
    process_id = 0

    def run(self, data: bytes) -> None:
        """Decode the bytes, and once more with the checksums of a PNG, without which little of it is looked at."""
        self._decode(data)
        sound = _with_crcs(data)
        if sound != data:
            self._decode(sound)

    def _decode(self, data: bytes) -> None:
        if self.check is None or self.process_id != os.getpid():
            self.check = DecodeCheck(Limits(seconds=5, memory_mib=1024))
            self.process_id = os.getpid()
        (plan,) = plan_all([data], _RECIPE)
        reason = self.check(data)
        if isinstance(plan, Plan) and plan.is_usual:
            # Such an image is decoded beside others, in a thread.
            for end in ("crashed", "exited", "too slow", "MiB of memory"):
                if end in reason:
                    raise FaultError(f"an image of the usual kind: {reason}")

    def close(self) -> None:
        """End the processes."""
        if self.check is not None and self.process_id == os.getpid():
            self.check.__exit__()
        self.check, self.process_id = None, 0


DECODER = _Decoder()


def _image_seeds() -> list[bytes]:
    progressive = images.encode(".jpg", images.pixels(24, 20, 1), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    return [
        images.jpeg(24, 20),
        progressive,
        images.grey_jpeg(24, 20),
        images.CMYK_JPEG,
        images.rotated_jpeg(6, 24, 20),
        images.png(12, 10),
        images.animated_png(),
    ]


# --- state files and manifests ---------------------------------------------------------------------------------------

_KINDS: tuple[Kind, ...] = (
    checkpoint_kind("a"),
    backup._UPLOADS,
    backup._ETAGS,
    tree_restore._CHECKPOINT,
    tree_backup._RECORD,
    verified_files._RECORD,
    restore._CHECKPOINT,
    verified._RECORD,
    pieces._RECORD,
    fetch._CHECKPOINT,
    spool.CHECKPOINT,
    in_hand.SUSPECTS,
    writer.FINISHED,
    writer.CHECKPOINT,
    warm.CHECKPOINT,
)


def _run_state_file(data: bytes) -> None:
    kind = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    content = data[1:]
    with contextlib.suppress(OpsError):
        StateFile(FOLDER.write("state.json", content), kind, lambda _text: None).read()
    try:
        value = json.loads(content)
        if not isinstance(value, dict):
            return
        # With the right kind and checksum, so that the fields are looked at.
        value.pop("checksum", None)
        content = json.dumps(signed({**value, "kind": kind.name, "format": kind.format})).encode()
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(OpsError):
        StateFile(FOLDER.write("state.json", content), kind, lambda _text: None).read()


def _state_file_seeds() -> list[bytes]:
    values: list[Any] = [
        {"name": "a", "size_bytes": 1, "mtime_ns": 2, "md5": "0" * 32, "sha256": "0" * 64},
        {"images": ["a"]},
        {"state": "extracting", "layout": "class_archives", "source": {}, "labels": "", "offset": 1, "class_name": "",
         "class_end": 0, "classes": {"a": 1}, "class_bytes": {"a": 1}, "annotations": {}},
        {"records": 1, "bad": [["a/1.jpg", "damaged"]], "files": {}},
        [],
    ]  # fmt: skip
    return [bytes([number]) + json.dumps(value).encode() for value in values for number in range(len(_KINDS))]


def _data_set() -> tuple[bytes, dict[str, bytes]]:
    """Return the manifest of a packed data set, and its other files by their names."""
    ids, labels = [1, 0, 2], [1.0, 0.0, 1.0]
    pictures = [_PICTURE, b"\x0a\x23\xd7\xce" * 3, b"12345"]
    records = frame_images(ids, labels, pictures)
    begins = itertools.accumulate(map(len, records), initial=0)
    index = "".join(RECORDIO.index_line(record_id, begin) for record_id, begin in zip(ids, begins, strict=False))
    files = {
        "recordio/train.rec": b"".join(records),
        "recordio/train.idx": index.encode(),
        "recordio/train.lst": b"1\t1.000000\tb/1.jpg\n0\t0.000000\ta/1.jpg\n2\t1.000000\tb/2.jpg\n",
        "labels.tsv": b"0\ta\tfirst\n1\tb\t\n",
    }
    return _manifest_of(files), files


def _manifest_of(files: dict[str, bytes]) -> bytes:
    entries = {name: manifest.FileEntry(len(content), "0" * 64) for name, content in files.items()}
    own = {name.removeprefix("recordio/"): entry for name, entry in entries.items() if name != "labels.tsv"}
    split = manifest.SplitEntry(3, {"a": 1, "b": 2}, {"grey": 1}, {"b/3.jpg": "damaged"}, own)
    archives = {"a.tar": manifest.ArchiveEntry(1, "0" * 32, "0" * 64)}
    settings = {"shards": 1, "label_order": "sorted"}
    splits = {"train": split}
    return manifest.build_manifest(
        "test", settings, "4", archives, entries["labels.tsv"], 2, splits, formats={}, tools={}
    )


def _run_manifest(data: bytes) -> None:
    """Read a manifest and hold a data set against it."""
    _, files = _data_set()
    root = FOLDER.path("manifest")
    if not os.path.isdir(root):
        for name, content in files.items():
            FOLDER.write(f"manifest/{name}", content)
    FOLDER.write(f"manifest/{manifest.MANIFEST_NAME}", data)
    with contextlib.suppress(OpsError):
        for kind in manifest.CONTENTS:
            manifest.read_manifest(root).files(kind)
        verify.verify_dataset(root, None, full=False, decode_samples=0, decode=_not_decoded)


def _not_decoded(_: bytes) -> str:
    """Return that an image decodes: decoders are another target."""
    return ""


def _manifest_seeds() -> list[bytes]:
    return [_data_set()[0]]


def _run_tree_index(data: bytes) -> None:
    with contextlib.suppress(OpsError):
        tree_index.parse_index(data, "train", "s3://bucket/trees/train.json")


def _tree_index_seeds() -> list[bytes]:
    (name,) = tree_index.shard_names("train", 1)
    return [tree_index.TreeIndex("train", 1000, [tree_index.IndexedShard(name, 100, "0" * 64, 2)]).content()]


def _run_index(data: bytes) -> None:
    """Hold a list, an index and labels, divided by lines of a dash, against records; read the index by itself."""
    _, files = _data_set()
    texts = data.split(b"\n-\n", 2)
    for name, text in zip(("recordio/train.lst", "recordio/train.idx", "labels.tsv"), texts):  # noqa: B905 (as many as there are)
        files[name] = text
    files["manifest.json"] = _manifest_of(files)
    for name, content in files.items():
        FOLDER.write(f"index/{name}", content)
    for samples in (0, 1):
        with contextlib.suppress(OpsError):
            verify.verify_dataset(FOLDER.path("index"), None, full=False, decode_samples=samples, decode=_not_decoded)
    with contextlib.suppress(ValueError):
        dataset = recordio_reader.RecordIODataset(FOLDER.path("index/recordio/train.rec"))
        with contextlib.closing(dataset):
            dataset.labels()
            for place in range(len(dataset)):
                dataset.record(place)


def _index_seeds() -> list[bytes]:
    files = _data_set()[1]
    return [b"\n-\n".join(files[name] for name in ("recordio/train.lst", "recordio/train.idx", "labels.tsv"))]


def _run_records(data: bytes) -> None:
    reader = RecordReader(io.BytesIO(data), "train.rec")
    with contextlib.suppress(OpsError):
        while (record := reader.read()) is not None:
            with contextlib.suppress(ValueError):
                parse_image_data(record)
    path = FOLDER.write("records.rec", data)
    with contextlib.suppress(ValueError):
        for _ in recordio_reader.iterate(path):
            pass


def _records_seeds() -> list[bytes]:
    two_labels = struct.pack("<IfQQff", 2, 0, 1, 0, 3, 7) + _PICTURE
    return [
        _data_set()[1]["recordio/train.rec"],
        recordio_reader.MAGIC + struct.pack("<I", len(two_labels)) + two_labels,
    ]


# --- labels ----------------------------------------------------------------------------------------------------------


def _run_labels(data: bytes) -> None:
    path = FOLDER.write("labels.csv", data)
    for read in (read_label_file, read_label_order):
        with contextlib.suppress(OpsError):
            read(path)


_SHARDS_INFO = DatasetInfo("test", ["a", "b"], {"a": "first"}, 1 << 20)


def _shard_target(name: str) -> Target:
    """Return the target that reads a shard of the format ``name``."""

    def run(data: bytes) -> None:
        path = FOLDER.write(f"shard.{name}", data)
        with contextlib.suppress(OpsError):
            FORMATS[name].check_frame(path)
            for sample in FORMATS[name].read(path, _SHARDS_INFO):
                if not sample.name.startswith(f"{_SHARDS_INFO.classes[sample.label]}/"):
                    raise FaultError(f"a label of another class: {sample[:3]}")

    def seeds() -> list[bytes]:
        samples = [
            Sample(1, 1, "b/1.jpg", _PICTURE),
            Sample(0, 0, "a/ä 1.png", b"\x89PNG\r\n\x1a\n"),
            Sample(2, 1, "b/2.jpg", b""),
        ]
        folder = Path(FOLDER.path(name))
        (shard,) = write_shards(FORMATS[name], samples, folder, 1 << 20, _SHARDS_INFO)
        return [(folder / shard.path).read_bytes()]

    return Target(run, seeds)


def _labels_seeds() -> list[bytes]:
    return [
        b"n01440764\nn01443537\n",
        b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4 n01440764 5 6 7 8\n",
        b'file,label\n"1.jpg",a\n2.jpg,b\n',
        b"\xef\xbb\xbfb\tsecond\na\tfirst\n",
        b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
    ]


def _run_devkit(data: bytes) -> None:
    """Read the IDs of images and a meta.mat, divided by a line of a dash, and the archive of a kit."""
    truth, _, meta = data.partition(b"\n-\n")
    if meta:
        FOLDER.write("devkit/data/ILSVRC2012_validation_ground_truth.txt", truth)
        FOLDER.write("devkit/data/meta.mat", meta)
        path = FOLDER.path("devkit")
    else:
        path = FOLDER.write("devkit.tar", data)
    with contextlib.suppress(OpsError):
        read_validation_labels(path)


def _devkit_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    fields = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    rows = [(1, "n01440764", "tench", 0), (2, "n01443537", "", 0), (3, "n00001740", "entity", 2)]
    scipy.io.savemat(buffer, {"synsets": np.array(rows, dtype=fields)})
    # The header holds the time.
    meta = b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]
    kit = [("devkit/data/meta.mat", meta), ("devkit/data/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n")]
    return [b"1\n2\n1\n-\n" + meta, gzip.compress(images.tar(kit), mtime=0), images.tar(kit)]


# --- downloads -------------------------------------------------------------------------------------------------------

_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_NEXT_ANSWER = b"\n%%%%\n"


class _Socket:
    """One connection to a server that gives one answer, whatever the request."""

    def __init__(self, answer: bytes) -> None:
        self._left = answer

    def makefile(self, _mode: str) -> io.BytesIO:
        """Return what is left; a second request on the connection gets nothing."""
        answer, self._left = self._left, b""
        return io.BytesIO(answer)

    def sendall(self, _data: object) -> None:
        """Take any request."""

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def _server(answers: Sequence[bytes]) -> Iterator[None]:
    """Give each connection of the block the next of ``answers``; after the last, none is accepted."""
    left = iter(answers)

    def connect(connection: http.client.HTTPConnection) -> None:
        answer = next(left, None)
        if answer is None:
            raise ConnectionRefusedError(111, "Connection refused")
        connection.sock = _Socket(answer)

    with (
        mock.patch.object(http.client.HTTPConnection, "connect", connect),
        mock.patch.object(http.client.HTTPSConnection, "connect", connect),
        mock.patch.object(ssl, "create_default_context", return_value=_TLS),  # it reads hundreds of certificates
    ):
        yield


def _take(source: HttpSource) -> None:
    """Do what a download does: ask for the facts, then for parts."""
    session = source.session()
    facts = session.facts()
    size = facts.size_bytes
    end = min(1000 if size is None else size, 1000)
    for start in (0, end // 2) if facts.ranges else (0,):
        with contextlib.suppress(TransientError), contextlib.closing(session.open(start, end, facts)) as stream:
            received = 0
            while block := stream.read(4096):
                received += len(block)
                if received > 1 << 20:
                    break
    session.close()


def _run_http(data: bytes) -> None:
    answers = data.split(_NEXT_ANSWER)
    with _server(answers):
        for decides in (False, True):
            with contextlib.suppress(OpsError, TransientError):
                _take(HttpSource("http://host/a.tar?k=1", "user", "pass", {}, 60, bytes_decide=decides))


def _http_seeds() -> list[bytes]:
    part = b'HTTP/1.1 206 Partial Content\nContent-Range: bytes 0-511/1000\nContent-Length: 512\nETag: "e"\n\n'
    whole = b"HTTP/1.1 200 OK\nContent-Length: 5\nLast-Modified: Sat, 28 Nov 2026 10:00:00 GMT\n\nabcde"
    rest = part.replace(b"0-511/", b"0-999/").replace(b"512", b"1000")
    seeds = [
        [part + b"x" * 512, rest + b"x" * 1000],
        [whole, whole],
        [b"HTTP/1.1 302 Found\nLocation: https://other:8443/b?c=d\nContent-Length: 0\n\n", whole, whole],
        [b"HTTP/1.1 503 Slow\nRetry-After: 120\nContent-Length: 0\n\n"],
        [b"HTTP/1.1 503 Slow\nRetry-After: Sat, 28 Nov 2026 10:00:00 GMT\n\n"],
        [b"HTTP/1.1 416 No\nContent-Range: bytes */0\n\n"],
        [b'HTTP/1.1 401 No\nWWW-Authenticate: Bearer error_description="no"\n\n<html><input type=password>'],
        [b"HTTP/1.1 403 No\nContent-Length: 30\n\n<Message>Request has expired</Message>"],
        [b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Encoding: gzip\n\n5\nabcde\n0\n\n"],
        [b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n<!doctype html><script>x</script><p>&amp;&#0; page"],
    ]  # fmt: skip
    return [_NEXT_ANSWER.join(answers) for answers in seeds]


def _run_netrc(data: bytes) -> None:
    path = FOLDER.write("netrc", data)
    with mock.patch.dict(os.environ, NETRC=path), contextlib.suppress(OpsError):
        HttpSource("http://host/a.tar", None, None, {}, 60)


def _netrc_seeds() -> list[bytes]:
    return [
        b"machine host login user password pass account a\ndefault login x password y\n",
        b'# comment\nmacdef m\necho\n\nmachine other\n\tlogin "a b"\n\tpassword p\\"q\n',
    ]


def _run_url(data: bytes) -> None:
    """Read a URL, a proxy's URL and the name and value of a header, a line each, and use them."""
    url, proxy, name, value = (*data.decode("utf-8", "surrogateescape").split("\n"), "", "", "", "")[:4]
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
    environment = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": value, "NETRC": os.devnull}
    # An environment cannot hold these.
    environment = {key: text.replace("\0", "") for key, text in environment.items()}
    with mock.patch.dict(os.environ, environment), _server([answer] * 4):
        with contextlib.suppress(OpsError):
            local_path(url)
        with contextlib.suppress(OpsError, TransientError):
            _take(HttpSource(url, None, None, {name: value} if name else {}, 60))


def _url_seeds() -> list[bytes]:
    return [
        "\n".join(lines).encode()
        for lines in (
            ("http://user:p%40ss@host:8080/a/b.tar?token=t#f", "http://me:pw@proxy:3128", "X-Token", "secret"),
            ("https://[::1]:443/ä b.tar", "proxy", "Authorization", "Bearer ü"),
            ("http://münchen.example/a", "", "", ""),
            ("file:///data/a%20b.tar", "http://[::1]", "", ""),
            ("/data/a.tar", "", "", ""),
        )
    ]


# --- all of them -----------------------------------------------------------------------------------------------------

TARGETS: dict[str, Target] = {
    "tar": Target(_run_tar, _tar_seeds),
    "labelled_tar": Target(_run_labelled_tar, _labelled_tar_seeds),
    "tar_of_tars": Target(_run_tar_of_tars, _tar_of_tars_seeds),
    "compressed_tar": Target(_run_compressed_tar, _compressed_tar_seeds),
    "zip": Target(_run_zip, _zip_seeds),
    "image_header": Target(_run_image_header, _image_seeds),
    "decoder": Target(DECODER.run, _image_seeds, cost=10),
    "state_file": Target(_run_state_file, _state_file_seeds),
    "manifest": Target(_run_manifest, _manifest_seeds),
    "tree_index": Target(_run_tree_index, _tree_index_seeds),
    "index": Target(_run_index, _index_seeds, cost=4),
    "records": Target(_run_records, _records_seeds),
    "webdataset": _shard_target("webdataset"),
    "mds": _shard_target("mds"),
    "tfrecord": _shard_target("tfrecord"),
    "parquet": _shard_target("parquet"),
    "labels": Target(_run_labels, _labels_seeds),
    "devkit": Target(_run_devkit, _devkit_seeds),
    "http": Target(_run_http, _http_seeds),
    "netrc": Target(_run_netrc, _netrc_seeds),
    "url": Target(_run_url, _url_seeds),
}


def close() -> None:
    """End what the targets of this process started, and remove their files."""
    DECODER.close()
    FOLDER.remove()
