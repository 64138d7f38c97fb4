from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import StoredPart, crc32_text
from ansible.module_utils.imagenet_ops.backup.upload import MIB, Uploader, is_same_part, part_bytes
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from hypothesis import given
from hypothesis import strategies as st


@given(size_bytes=st.integers(0, 5 << 40), least_mib=st.integers(0, 5000))
def test_parts_keep_the_limits_of_s3(size_bytes: int, least_mib: int) -> None:
    size = part_bytes(size_bytes, least_mib * MIB)
    assert size % MIB == 0
    assert size >= max(5 * MIB, least_mib * MIB)
    assert size_bytes <= size * 10_000


def test_the_training_archive_keeps_parts_of_16_mib() -> None:
    assert part_bytes(147_897_477_120, 16 * MIB) == 16 * MIB


def test_a_part_is_the_same_by_what_the_server_kept() -> None:
    md5 = hashlib.md5(b"data").hexdigest()
    assert is_same_part(StoredPart("any", 4, "crc="), b"data", "crc=")
    assert not is_same_part(StoredPart(f'"{md5}"', 4, "other="), b"data", "crc=")
    assert is_same_part(StoredPart(f'"{md5}"', 4, ""), b"data", "crc=")
    assert not is_same_part(StoredPart('"of-kms"', 4, ""), b"data", "crc=")
    assert not is_same_part(StoredPart("any", 5, "crc="), b"data", "crc=")


def test_the_first_failure_ends_the_rest_and_is_the_one_that_is_raised(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path), "upload")
    progress.start("upload", 100, "bytes")
    bucket: Any = None
    uploader = Uploader(bucket, progress, workers=2, part_size_bytes=MIB)
    done = []

    def job(number: int) -> None:
        done.append(number)
        raise OpsError(f"Job {number}", "it failed", "Run again")

    with pytest.raises(OpsError, match="Job 0: it failed"):
        uploader.each(range(1), job)
    with pytest.raises(OpsError, match="Job 0: it failed"):
        uploader.each(range(1, 100), job)
    assert done == [0]


def test_the_hashes_of_a_source_are_those_of_all_its_parts(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path), "upload")
    progress.start("upload", 100, "bytes")
    bucket: Any = None
    content = bytes(range(256)) * 10
    sent = Uploader(bucket, progress, workers=2, part_size_bytes=100).digest(io.BytesIO(content), len(content))
    assert sent.sha256 == hashlib.sha256(content).hexdigest()
    assert sent.crc32 == crc32_text(zlib.crc32(content))
