"""What the last moto for Python 3.9 lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

if sys.version_info < (3, 10):
    from moto.s3.models import FakeMultipart
    from moto.s3.utils import compute_checksum, user_settable_fields

    @pytest.fixture(scope="session", autouse=True)
    def whole_checksums() -> Iterator[None]:
        """Let moto keep the checksum of a whole object where it is asked for, as S3 does, and not one of its parts'."""
        of_parts = FakeMultipart.complete

        def complete(self: Any, body: Any) -> Any:
            content, etag, checksum = of_parts(self, body)
            if self.metadata.get("x-amz-checksum-type") == "FULL_OBJECT":
                checksum = compute_checksum(bytes(content), self.metadata["x-amz-checksum-algorithm"]).decode()
            return content, etag, checksum

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moto.s3.utils.user_settable_fields", {*user_settable_fields, "x-amz-checksum-type"})
            patch.setattr(FakeMultipart, "complete", complete)
            yield
