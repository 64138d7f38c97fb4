"""What the modules that talk to S3 document alike."""

from __future__ import annotations


class ModuleDocFragment:
    """The options by which a bucket is reached, as `s3_client` and `Bucket` take them."""

    DOCUMENTATION = r"""
options:
  bucket_owner:
    description: Account that the bucket must belong to (12 digits). S3 refuses every request where it does not.
    type: str
    default: ""
  region:
    description: Region of the bucket. That of the environment where left out.
    type: str
    default: ""
  endpoint_url:
    description: S3 endpoint, where it is not that of AWS.
    type: str
    default: ""
  access_key:
    description: Access key for S3. What boto3's default chain finds on the host where left out.
    type: str
    default: ""
  secret_key:
    description: The secret key that goes with I(access_key).
    type: str
    default: ""
  addressing_style:
    description:
      - How a request names the bucket, V(path) for most servers other than AWS. V(auto) leaves it to boto3.
    type: str
    choices: [auto, path, virtual]
    default: auto
  ca_bundle:
    description: File on the host with the certificates of the authorities to trust, where the system's are not enough.
    type: path
    default: ""
requirements:
  - boto3
"""
