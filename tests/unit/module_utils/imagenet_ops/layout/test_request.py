from __future__ import annotations

from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest


def test_where_a_tree_and_its_checkpoint_lie_and_which_names_are_right() -> None:
    request = LayoutRequest(
        "train", "class_archives", "/data/train", "/data/.state", devkit="/devkit.tar.gz", labels="/labels", folder="a"
    )
    assert request.partial == "/data/train.partial"
    assert request.checkpoint_path == "/data/.state/imagenet_layout.train.json"
    assert request.rules == ArchiveRules("train", "class_archives", "/devkit.tar.gz", "/labels", "a")
