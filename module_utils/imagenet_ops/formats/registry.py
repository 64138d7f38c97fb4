"""The record formats by the names that ``data_formats`` has."""

from __future__ import annotations

from ansible.module_utils.imagenet_ops.formats.format import Format
from ansible.module_utils.imagenet_ops.formats.mds import MDS
from ansible.module_utils.imagenet_ops.formats.parquet import PARQUET
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO
from ansible.module_utils.imagenet_ops.formats.tfrecord import TFRECORD
from ansible.module_utils.imagenet_ops.formats.webdataset import WEBDATASET

FORMATS: dict[str, Format] = {form.name: form for form in (RECORDIO, WEBDATASET, MDS, TFRECORD, PARQUET)}
