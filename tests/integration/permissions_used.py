"""After a whole run of the integration tests: every permission of every policy was used, and how many were evaluated.

    python -m tests.integration.permissions_used

What no test can use in the lab is listed here with the reason; anything else that nobody used is a fault of a policy.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.contract import permissions

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_THE_LAB: Mapping[str, str] = {
    "kms:CreateGrant": "KMS evaluates who uses a key behind the calls of EC2 and S3; the lab has no such calls",
    "kms:Decrypt": "likewise",
    "kms:GenerateDataKeyWithoutPlaintext": "likewise",
    "kms:ReEncryptFrom": "likewise",
    "kms:ReEncryptTo": "likewise",
    "ec2:DescribeInstanceTypes": "only the limits of hosts with many volumes are looked up",
    "s3:DeleteObject": "the lab's buckets have versions, and those are deleted",
    "s3:ListMultipartUploadParts": "only an upload that was killed between two parts is resumed (test_emulators.py)",
}


def actions_of(name: str) -> set[str]:
    """What a policy grants."""
    return actions_in(permissions.policy_of(name)["Statement"])


def actions_in(statements: Iterable[Mapping[str, Any]]) -> set[str]:
    """The actions of statements."""
    return {
        action
        for one in statements
        for action in (one["Action"] if isinstance(one["Action"], list) else [one["Action"]])
    }


def used(lines: Iterable[str]) -> tuple[int, dict[str, set[str]]]:
    """How many permissions were evaluated, and which ones of each policy were used, by what the runs recorded."""
    evaluated = 0
    found: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        run = json.loads(line)
        evaluated += run["evaluated"]
        for name, actions in run["used"].items():
            found[name] |= set(actions)
    return evaluated, found


def main() -> int:
    """Print the figures; return 1 where a permission was not used."""
    files = sorted((ROOT / ".cache" / "test-labs").glob("*/permissions.jsonl"))
    evaluated, found = used(line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    # What launches a host is the same in three policies; the playbook that needs a part of it is not always the same.
    hosts = ("drill", "prepare", "restore")
    common = set.intersection(*map(actions_of, hosts))
    for name in hosts:
        found[name] |= common & set().union(*(found[other] for other in hosts))
    unused = {}
    for name in [*permissions.names(), permissions.HOST]:
        granted = actions_of(name)
        left = sorted(granted - found[name] - NOT_IN_THE_LAB.keys())
        sys.stdout.write(f"{name}: {len(granted & found[name])} of {len(granted)} permissions used\n")
        if left:
            unused[name] = left
    sys.stdout.write(f"{evaluated} permissions evaluated\n")
    for name, left in unused.items():
        sys.stdout.write(f"{name} grants what no test used: {', '.join(left)}\n")
    return 1 if unused else 0


if __name__ == "__main__":
    sys.exit(main())
