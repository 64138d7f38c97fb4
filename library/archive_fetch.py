#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: archive_fetch
short_description: Download an archive of any size, over several connections, resumably and verified
description:
  - Downloads a file to I(dest), over I(connections) connections where the server gives ranges, else over one.
  - Resumes after whatever ended an earlier run, a C(kill -9) or a power cut included, from the bytes on disk. What has
    arrived is in C(<dest>.part), what of it is safe in C(<dest>.part.json).
  - Computes MD5 and SHA-256 while the file arrives and gives it its name only when size and hashes are as expected. A
    file that is not is set aside as C(<dest>.rejected).
  - Notices a file that changes on the server half way (If-Range with its ETag or date), a truncated answer, an answer
    with other bytes than were requested, and an HTML page or a login form in place of the file.
  - A file that is already at I(dest) is hashed once and adopted where it is the expected one, else it is not changed
    and the module fails.
  - A verified archive is recorded in I(state_dir), with the checksums of its pieces of 16 MiB; the next run then needs
    milliseconds. Should the archive turn out damaged later (I(deep_check)), or a download of it that is not over
    HTTPS, only the pieces that differ are fetched again, from another of I(urls) where there is one.
  - Shows its progress in C(<state_dir>/archive_fetch.progress.json).
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  urls:
    description:
      - Where the file is, best first. Mirrors of the same size are used together; one that fails is left out while
        another answers.
      - Beside C(http) and C(https), paths and C(file) URLs of the host itself; such a file is copied.
      - C(s3://bucket/key) and C(s3://bucket/key?versionId=...) are read with I(access_key), or what boto3 finds on the
        host, such as its instance profile (C(s3:GetObject), and C(s3:ListBucket) to tell an absent object from one
        that is not allowed). They need boto3 on the host.
      - Proxies are taken from the environment (C(http_proxy), C(https_proxy), C(no_proxy)).
    type: list
    elements: str
    required: true
  dest:
    description: Path of the file on the host. Its directory is made where it is missing.
    type: path
    required: true
  state_dir:
    description: Where records, locks and progress are kept; on the data volume, so that they travel with the data.
    type: path
    required: true
  size_bytes:
    description: The expected size. Another size on the server is an error before the first byte is taken.
    type: int
  md5:
    description: The expected MD5.
    type: str
  sha256:
    description: The expected SHA-256.
    type: str
  username:
    description:
      - User name for basic authentication. Without it the URL's own is used, or what C(~/.netrc) (or the file that
        C(NETRC) names) has for the host.
      - Credentials go to the host of the URL only, never to one that it redirects to.
    type: str
  password:
    description: Password for I(username).
    type: str
  headers:
    description: More request headers, such as C(Authorization) or C(Cookie). They go to the host of the URL only.
    type: dict
  connections:
    description: How many connections to use at a time. Be polite; 4 is what a browser would do.
    type: int
    default: 4
  timeout_seconds:
    description:
      - How long the server may be silent, or send less than 1 KiB per second, before the connection is dropped and
        retried.
    type: int
    default: 60
  retries:
    description:
      - How many times in a row to try again without a single byte arriving. The pauses between grow from half a second
        to a minute; a server that asks for a longer one (Retry-After) is obeyed.
    type: int
    default: 8
  region:
    description: Region of the bucket of an C(s3) URL. That of the environment where left out.
    type: str
    default: ""
  endpoint_url:
    description: S3 endpoint, where it is not that of AWS.
    type: str
    default: ""
  addressing_style:
    description:
      - How a request to it names the bucket, V(path) for most servers other than AWS. V(auto) leaves it to boto3.
    type: str
    choices: [auto, path, virtual]
    default: auto
  ca_bundle:
    description: File on the host with the certificates of the authorities to trust for S3, beside the system's own.
    type: path
    default: ""
  access_key:
    description: Access key for C(s3) URLs. What boto3's default chain finds on the host where left out.
    type: str
    default: ""
  secret_key:
    description: The secret key that goes with I(access_key).
    type: str
    default: ""
  session_token:
    description: Session token, if I(access_key) is temporary.
    type: str
    default: ""
  bytes_per_second:
    description: The most that all connections together may take; 0 is no limit.
    type: int
    default: 0
  quiet_hours:
    description:
      - A time of day in which nothing is downloaded, such as C(08:00-18:30), in the host's local time (UTC on most
        cloud images); C(22:00-06:00) spans midnight. The download continues afterwards.
      - A server without ranges cannot resume in the middle; such a download begins outside of these hours and is not
        stopped by them.
    type: str
    default: ""
  deep_check:
    description:
      - Read an archive again that was verified before, and repair it where it was damaged since. Without, size and
        modification time tell that it is unchanged.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Writes nothing; asks the server and says how many bytes would be downloaded. A file that is at I(dest) and was
        never verified is judged by its size alone; I(deep_check) reads it in check mode too.
    support: full
  diff_mode:
    description: Shows the file that would come, or has come.
    support: full
seealso:
  - module: imagenet_layout
  - module: ansible.builtin.get_url
"""

EXAMPLES = r"""
- name: Fetch the validation images
  archive_fetch:
    urls:
      - https://image-net.org/data/ILSVRC/2012/ILSVRC2012_img_val.tar
    dest: /data/imagenet/archives/ILSVRC2012_img_val.tar
    state_dir: /data/imagenet/.state
    size_bytes: 6744924160
    md5: 29b22e2961454d5413ddabcf34fc5622
    username: "{{ imagenet_username }}"
    password: "{{ imagenet_access_key }}"

- name: Fetch slowly, at night, from the bucket of another team or else from the web
  archive_fetch:
    urls:
      - s3://datasets-of-another-team/imagenet/ILSVRC2012_img_train.tar
      - https://image-net.org/data/ILSVRC/2012/ILSVRC2012_img_train.tar
    dest: /data/imagenet/archives/ILSVRC2012_img_train.tar
    state_dir: /data/imagenet/.state
    size_bytes: 147897477120
    md5: 1d675b47d978889d74fa0da5fadfb00e
    bytes_per_second: 20000000
    quiet_hours: 08:00-18:30

- name: Take an archive that is already on a network filesystem
  archive_fetch:
    urls:
      - /mnt/datasets/ILSVRC2012_img_train.tar
    dest: /data/imagenet/archives/ILSVRC2012_img_train.tar
    state_dir: /data/imagenet/.state
    size_bytes: 147897477120
    md5: 1d675b47d978889d74fa0da5fadfb00e
"""

RETURN = r"""
dest:
  description: Path of the file.
  returned: success
  type: str
  sample: /data/imagenet/archives/ILSVRC2012_img_val.tar
size_bytes:
  description: Its size in bytes.
  returned: success
  type: int
  sample: 6744924160
md5:
  description: Its MD5. In check mode what is expected, empty where nothing is.
  returned: success
  type: str
  sample: 29b22e2961454d5413ddabcf34fc5622
sha256:
  description: Its SHA-256. In check mode what is expected, empty where nothing is.
  returned: success
  type: str
downloaded_bytes:
  description: How many bytes this run downloaded, or would download.
  returned: success
  type: int
  sample: 6744924160
resumed_bytes:
  description: How many bytes earlier runs had left.
  returned: success
  type: int
  sample: 0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, Wanted, fetch


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "size_bytes": {"type": "int"},
            "md5": {"type": "str"},
            "sha256": {"type": "str"},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "headers": {"type": "dict", "no_log": True},
            "connections": {"type": "int", "default": 4},
            "timeout_seconds": {"type": "int", "default": 60},
            "retries": {"type": "int", "default": 8},
            "region": {"type": "str", "default": ""},
            "endpoint_url": {"type": "str", "default": ""},
            "addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"], "default": "auto"},
            "ca_bundle": {"type": "path", "default": ""},
            "access_key": {"type": "str", "default": ""},
            "secret_key": {"type": "str", "default": "", "no_log": True},
            "session_token": {"type": "str", "default": "", "no_log": True},
            "bytes_per_second": {"type": "int", "default": 0},
            "quiet_hours": {"type": "str", "default": ""},
            "deep_check": {"type": "bool", "default": False},
        },
        required_by={"password": "username"},
        supports_check_mode=True,
    )
    params = module.params
    request = FetchRequest(
        urls=params["urls"],
        dest=params["dest"],
        state_dir=params["state_dir"],
        # An empty value means the same as none: variables of a data set have a default.
        wanted=Wanted(params["size_bytes"] or None, _lower(params["md5"]), _lower(params["sha256"])),
        username=params["username"] or None,
        password=params["password"] or None,
        headers={name: str(value) for name, value in (params["headers"] or {}).items()},
        connections=params["connections"],
        timeout_seconds=params["timeout_seconds"],
        retries=params["retries"],
        region=params["region"],
        endpoint_url=params["endpoint_url"],
        addressing_style=params["addressing_style"],
        ca_bundle=params["ca_bundle"],
        access_key=params["access_key"],
        secret_key=params["secret_key"],
        session_token=params["session_token"],
        bytes_per_second=params["bytes_per_second"],
        quiet_hours=params["quiet_hours"],
        deep_check=params["deep_check"],
    )

    run(module, lambda: fetch(request, check_mode=module.check_mode, warn=module.warn))


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None


if __name__ == "__main__":
    main()
