"""What to lay out, and the path of its checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules


@dataclass(frozen=True)
class LayoutRequest:
    """What to lay out: ``archive`` or ``directory`` (flat, already unpacked) to the tree at ``dest``.

    ``name_rules``, ``layout``, ``devkit``, ``labels`` and ``folder`` are those of `ArchiveRules`. ``annotations`` is an
    archive whose XML files, those in ``annotations_folder``, go next to the images. Counts of 0 are not checked.
    ``deep_check`` checks every file of a finished tree, not only its checkpoint and counts.
    """

    name_rules: str
    layout: str
    dest: str
    state_dir: str
    archive: str | None = None
    folder: str = ""
    directory: str | None = None
    devkit: str | None = None
    labels: str | None = None
    annotations: str | None = None
    annotations_folder: str = ""
    expected_images: int = 0
    expected_classes: int = 0
    deep_check: bool = False

    @property
    def rules(self) -> ArchiveRules:
        """Which names are valid, and where the classes come from."""
        return ArchiveRules(self.name_rules, self.layout, self.devkit, self.labels, self.folder)

    @property
    def partial(self) -> str:
        """Path of the unfinished tree."""
        return f"{self.dest}.partial"

    @property
    def checkpoint_path(self) -> str:
        """Path of the checkpoint."""
        return checkpoint_path(self.dest, self.state_dir)


def checkpoint_path(dest: str, state_dir: str) -> str:
    """Return the path in ``state_dir`` of the checkpoint of the tree at ``dest``."""
    return os.path.join(state_dir, f"imagenet_layout.{os.path.basename(dest)}.json")
