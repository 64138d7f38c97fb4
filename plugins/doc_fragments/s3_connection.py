"""The options that the modules for S3 have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of the connection to a bucket, as `s3_client` and `Bucket` take them."""

    DOCUMENTATION = r"""
options:
  bucket_owner:
    description: Account that must own the bucket (12 digits). Otherwise S3 rejects every request.
    type: str
    default: ""
  region:
    description: Region of the bucket. By default, that of the environment.
    type: str
    default: ""
  endpoint_url:
    description: S3 endpoint, if it is not AWS.
    type: str
    default: ""
  access_key:
    description: Access key for S3. By default, the credentials that boto3 finds on the host.
    type: str
    default: ""
  secret_key:
    description: Secret key of I(access_key).
    type: str
    default: ""
  session_token:
    description: Session token, if I(access_key) is temporary.
    type: str
    default: ""
  addressing_style:
    description:
      - How requests address the bucket; V(path) for most servers other than AWS. V(auto) leaves it to boto3.
    type: str
    choices: [auto, path, virtual]
    default: auto
  ca_bundle:
    description: File on the host with the CA certificates to trust, if those of the system are not enough.
    type: path
    default: ""
requirements:
  - boto3
"""
