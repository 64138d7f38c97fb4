"""What is to be laid out, and where its journal lies."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules


@dataclass(frozen=True)
class LayoutRequest:
    """What to lay out: ``archive`` or ``directory`` (flat, already unpacked) to the tree at ``dest``.

    ``split``, ``layout``, ``devkit``, ``labels`` and ``folder`` are those of `ArchiveRules`. ``annotations`` is an
    archive whose XML files, those in ``annotations_folder``, go beside the images. Counts of 0 are not checked.
    ``deep_check`` looks at every file of a finished tree and not only at its journal and counts.
    """

    split: str
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
        """Which names are right, and where the classes come from."""
        return ArchiveRules(self.split, self.layout, self.devkit, self.labels, self.folder)

    @property
    def partial(self) -> str:
        """Where the tree grows."""
        return f"{self.dest}.partial"

    @property
    def journal(self) -> str:
        """Where the journal lies."""
        return journal_path(self.dest, self.state_dir)


def journal_path(dest: str, state_dir: str) -> str:
    """Return where in ``state_dir`` the journal of the tree at ``dest`` lies."""
    return os.path.join(state_dir, f"imagenet_layout.{os.path.basename(dest)}.json")
