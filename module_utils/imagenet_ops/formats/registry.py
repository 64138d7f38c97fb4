"""The record formats by the names that ``data_formats`` has."""

from __future__ import annotations

from ansible.module_utils.imagenet_ops.formats.format import Format
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO

FORMATS: dict[str, Format] = {form.name: form for form in (RECORDIO,)}
