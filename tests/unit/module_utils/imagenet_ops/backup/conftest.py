from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import backup_once
from tests.fakes.s3_upload_server import S3UploadServer


@pytest.fixture
def backups(server: S3UploadServer) -> Iterator[backup_once.Backups]:
    """Processes that back up with the credentials of ``server``."""
    assert server
    with backup_once.Backups() as running:
        yield running
