"""moto's settings, which it reads from the environment while it is imported: nothing here may import it."""

from __future__ import annotations

import json
import os

from lab.config import IMAGE_ID, IMAGE_NAME, IMAGE_OWNER_ID, ROOT_DEVICE, Paths


def set_environment(paths: Paths) -> None:
    """Choose moto's settings for this process."""
    image = {
        "ami_id": IMAGE_ID,
        "name": IMAGE_NAME,
        "description": "Debian 12 as this machine has it",
        "owner_id": IMAGE_OWNER_ID,
        "public": True,
        "virtualization_type": "hvm",
        "architecture": "x86_64",
        "state": "available",
        "creation_date": "2025-08-14T22:04:00.000Z",
        "image_type": "machine",
        "image_location": f"{IMAGE_OWNER_ID}/{IMAGE_NAME}",
        "hypervisor": "xen",
        "root_device_type": "ebs",
        "root_device_name": ROOT_DEVICE,
        "sriov": "simple",
    }
    paths.directory.mkdir(exist_ok=True)
    paths.images.write_text(json.dumps([image]))
    paths.temporary.mkdir(exist_ok=True)
    os.environ.update(
        {
            # Without it every region begins with 1,300 images and as many snapshots.
            "MOTO_AMIS_PATH": str(paths.images),
            "MOTO_ENABLE_AMI_VALIDATION": "true",
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
            # Else the bucket of a request to aws.lab would be "aws".
            "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true",
            "TMPDIR": str(paths.temporary),
        }
    )
