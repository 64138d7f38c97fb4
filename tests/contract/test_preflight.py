"""What preflight asks of AWS where the lab stands in for it."""

from __future__ import annotations

import boto3
import jinja2
import pytest
from botocore.config import Config

from tests.contract import checks, tree


def bucket_url(bucket: str, region: str) -> str:
    """The URL of the check whether a bucket exists, with the role's own default and expression."""
    tasks = checks.tasks_of(tree.yaml_of("roles/preflight/tasks/main.yml"))
    expression = next(task["ansible.builtin.uri"]["url"] for task in tasks if "ansible.builtin.uri" in task)
    defaults, names = tree.yaml_of("roles/preflight/defaults/main.yml"), tree.yaml_of("roles/preflight/vars/main.yml")
    variables = {**defaults, **names, "preflight_bucket_name": bucket, "aws_region": region}
    return jinja2.Environment(autoescape=True).from_string(expression).render(variables)


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"])
@pytest.mark.parametrize("bucket", ["imagenet-backup", "data.example.com"])
def test_a_bucket_is_looked_for_where_the_sdk_finds_it(bucket: str, region: str) -> None:
    """A name with dots is in the path, for no certificate covers it, and each partition has a domain of its own."""
    client = boto3.client(
        "s3",
        region_name=region,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "path", "us_east_1_regional_endpoint": "regional"}
        ),
    )
    wanted = client.generate_presigned_url("head_bucket", Params={"Bucket": bucket}).split("?")[0]
    assert bucket_url(bucket, region) == wanted
