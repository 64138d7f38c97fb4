from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils.imagenet_ops.backup.request import RestoreFile
from ansible.module_utils.imagenet_ops.backup.verified_files import VerifiedFiles

FILE = RestoreFile("recordio/train.rec", 3, "ab" * 32, None)


def test_a_proved_file_is_known_to_the_next_run_until_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / FILE.path
    record = str(tmp_path / "s3_restore.json")
    files = VerifiedFiles(str(tmp_path), record)
    assert files.look(FILE) == "absent"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    assert files.look(FILE) == "unknown"
    files.remember(FILE)
    assert files.look(FILE) == "right"
    assert VerifiedFiles(str(tmp_path), record).look(FILE) == "unknown"  # nothing is saved yet
    files.save()
    assert VerifiedFiles(str(tmp_path), record).look(FILE) == "right"
    assert files.look(RestoreFile(FILE.path, 3, "cd" * 32, None)) == "unknown"
    os.utime(path, ns=(1, 1))
    assert files.look(FILE) == "unknown"
    path.write_bytes(b"abcd")
    assert files.look(FILE) == "different"


def test_it_is_saved_once_an_interval_and_only_if_there_is_news(tmp_path: Path) -> None:
    (tmp_path / "recordio").mkdir()
    (tmp_path / FILE.path).write_bytes(b"abc")
    record = tmp_path / "s3_restore.json"
    files = VerifiedFiles(str(tmp_path), str(record))
    files.save()
    assert not record.exists()
    files.remember(FILE)
    files.save(at_most_every_seconds=3600)
    assert not record.exists()
    files.save()
    assert record.exists()
