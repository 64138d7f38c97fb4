#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: imagenet_layout
short_description: Lay out the images of an archive as a tree with a directory for each class
description:
  - Turns an archive of class archives (C(ILSVRC2012_img_train.tar)), a flat one whose images have labels
    (C(ILSVRC2012_img_val.tar)), or one with a directory for each class (C(imagenette2.tgz)) into the tree
    C(<dest>/<class>/<image>). The archive, a zip or a tar, is read once, forwards; no class archive is ever written to
    the disk.
  - Also takes images that are unpacked already, by renaming them or the directories of their classes.
  - Puts annotations, such as ILSVRC2012's bounding boxes, beside their images.
  - Labels go by the name of a file, never by its position.
  - The tree grows in C(<dest>.partial) and gets its name when it is complete. After a C(kill -9) or a power cut the
    next run goes on from the last journal point; what it makes is the same to the byte.
  - Refuses paths that lead out of the archive, links, devices, names that do not belong to the split, names that are
    there twice, and damage, each with the name of the entry and its offset in the archive.
  - A finished tree is recognised by its journal in I(state_dir) and by counting its files; O(deep_check) looks at each.
  - Shows its progress in C(<state_dir>/imagenet_layout.progress.json).
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  split:
    description:
      - Which names are right. C(train) wants classes such as C(n01440764) and images such as C(n01440764_10026.JPEG);
        C(validation) wants images such as C(ILSVRC2012_val_00000001.JPEG); C(any) takes any plain name, and images with
        an extension of JPEG or PNG.
    type: str
    choices: [train, validation, any]
    required: true
  layout:
    description:
      - V(class_archives) for an archive that holds a tar archive for each class.
      - V(class_directories) for an archive that holds a directory for each class.
      - V(labelled_files) for images whose classes are in a file with O(labels), or in the O(devkit).
    type: str
    choices: [class_archives, class_directories, labelled_files]
    required: true
  archive:
    description: The archive, a zip or a tar (plain, or in gzip, bzip2 or xz; V(class_archives) not in a zip). One of
      O(archive) and O(directory) is needed.
    type: path
  folder:
    description:
      - The directory of the archive that the split lies in, such as V(imagenette2/train); what is elsewhere is left to
        other splits. The whole archive by default.
      - With O(split=any), what desktops leave behind (C(.DS_Store), C(__MACOSX), C(Thumbs.db)) and other files than
        images directly in the folder (a read-me) are passed over.
    type: str
    default: ""
  directory:
    description:
      - A directory with images that are unpacked already. For V(labelled_files) they are flat, and renamed into
        O(dest); otherwise there is a directory for each class, and these are renamed. O(dest) may be the same
        directory and must be on the same volume. Nothing is moved before everything has its place.
    type: path
  devkit:
    description:
      - The development kit C(ILSVRC2012_devkit_t12.tar.gz), or the directory that was unpacked from it. Needed for
        V(labelled_files) without I(labels).
    type: path
  labels:
    description:
      - A file with the classes of V(labelled_files), used in place of the I(devkit). Its form is recognised. A list of
        WordNet ids has one in each line, in the order of the names of ILSVRC2012's validation images
        (C(imagenet_2012_validation_synset_labels.txt)). A CSV has the columns C(ImageId,PredictionString)
        (Kaggle's C(LOC_val_solution.csv)), or C(file,label) for any data set.
    type: path
  annotations:
    description:
      - An archive (zip, or tar in any compression) with a C(X.xml) for images C(X.JPEG), such as
        C(ILSVRC2012_bbox_train_v2.tar.gz) and C(ILSVRC2012_bbox_val_v3.tgz). Each is put beside its image; those whose
        image is not in the tree are counted and left out.
    type: path
  annotations_folder:
    description: The directory of I(annotations) that they lie in. The whole archive by default.
    type: str
    default: ""
  dest:
    description: Path of the tree. It must not hold anything that this module did not put there.
    type: path
    required: true
  state_dir:
    description: Where the journal, locks and progress are kept; on the data volume, so that they travel with the data.
    type: path
    required: true
  expected_images:
    description: How many images the tree must have; 0 for any number.
    type: int
    default: 0
  expected_classes:
    description: How many classes the tree must have; 0 for any number.
    type: int
    default: 0
  deep_check:
    description:
      - Whether to look at every file of a finished tree, at whether it is one and at the sizes of each class, where
        otherwise the names are counted. A million files take minutes on a spinning disk.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Writes nothing. What an archive holds is known only after reading it, so where the tree would come from one, the
        expected counts are returned; an archive that is not there is taken to be fetched by an earlier task.
    support: full
  diff_mode:
    description: Shows the counts of the tree that would come, or has come.
    support: full
requirements:
  - numpy and scipy, for I(devkit)
seealso:
  - module: archive_fetch
  - module: recordio_pack
"""

EXAMPLES = r"""
- name: Lay out the training images
  imagenet_layout:
    split: train
    layout: class_archives
    archive: /data/imagenet/archives/ILSVRC2012_img_train.tar
    dest: /data/imagenet/train
    state_dir: /data/imagenet/.state
    expected_images: 1281167
    expected_classes: 1000

- name: Lay out the training images of Imagenette, with others in the same archive
  imagenet_layout:
    split: any
    layout: class_directories
    archive: /data/imagenette/archives/imagenette2.tgz
    folder: imagenette2/train
    dest: /data/imagenette/train
    state_dir: /data/imagenette/.state

- name: Lay out the validation images with their bounding boxes
  imagenet_layout:
    split: validation
    layout: labelled_files
    archive: /data/imagenet/archives/ILSVRC2012_img_val.tar
    labels: /data/imagenet/archives/imagenet_2012_validation_synset_labels.txt
    annotations: /data/imagenet/archives/ILSVRC2012_bbox_val_v3.tgz
    dest: /data/imagenet/validation
    state_dir: /data/imagenet/.state

- name: Lay out validation images that were unpacked long ago
  imagenet_layout:
    split: validation
    layout: labelled_files
    directory: /data/imagenet/validation
    devkit: /data/imagenet/archives/ILSVRC2012_devkit_t12.tar.gz
    dest: /data/imagenet/validation
    state_dir: /data/imagenet/.state
    expected_images: 50000
    expected_classes: 1000
"""

RETURN = r"""
split:
  description: The split, as asked for.
  returned: success
  type: str
  sample: train
images:
  description: How many images the tree has.
  returned: success
  type: int
  sample: 1281167
classes:
  description: How many classes the tree has.
  returned: success
  type: int
  sample: 1000
bytes:
  description: How many bytes its images have, taken together.
  returned: success
  type: int
annotations:
  description: How many annotations lie beside its images; 0 in check mode for those that are still to come.
  returned: success
  type: int
  sample: 50000
annotations_without_image:
  description: How many annotations of the archive have no image in the tree.
  returned: success
  type: int
  sample: 0
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "split": {"type": "str", "required": True, "choices": ["train", "validation", "any"]},
            "layout": {
                "type": "str",
                "required": True,
                "choices": ["class_archives", "class_directories", "labelled_files"],
            },
            "archive": {"type": "path"},
            "folder": {"type": "str", "default": ""},
            "directory": {"type": "path"},
            "devkit": {"type": "path"},
            "labels": {"type": "path"},
            "annotations": {"type": "path"},
            "annotations_folder": {"type": "str", "default": ""},
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "expected_images": {"type": "int", "default": 0},
            "expected_classes": {"type": "int", "default": 0},
            "deep_check": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("archive", "directory")],
        required_one_of=[("archive", "directory")],
        required_if=[("layout", "labelled_files", ["devkit", "labels"], True)],
        supports_check_mode=True,
    )
    request = LayoutRequest(**module.params)

    def work() -> dict[str, Any]:
        return lay_out(request, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
