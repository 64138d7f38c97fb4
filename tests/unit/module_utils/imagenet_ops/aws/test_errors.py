from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.errors import error_code, explain, is_transient, sdk_errors
from botocore import exceptions
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from botocore.parsers import ResponseParserError
from botocore.retries import standard


def refused(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "CreateVolume")


def test_an_answer_of_aws_is_described_with_its_code_its_words_and_the_next_step() -> None:
    error = refused("ExpiredToken", "The provided token has expired.")
    assert str(explain(error, "Bucket imagenet")) == (
        "Bucket imagenet: ExpiredToken: The provided token has expired. Renew the credentials (instance profile, "
        "`aws sso login`, session token) and rerun; completed work is kept"
    )


def test_what_only_aws_can_read_is_left_out() -> None:
    error = refused(
        "UnauthorizedOperation",
        "You are not authorized to perform this operation. User: arn:x is not authorized to perform: ec2:CreateVolume. "
        "Encoded authorization failure message: pHkJaGx0",
    )
    text = str(explain(error, "No volume"))
    assert "ec2:CreateVolume. Allow the action" in text
    assert "pHkJ" not in text


@pytest.mark.parametrize("code", ["PermanentRedirect", "301", "AuthorizationHeaderMalformed"])
def test_a_bucket_in_another_region(code: str) -> None:
    assert explain(refused(code, "Elsewhere."), "Bucket b").todo == "Set the Region to that of the bucket"


@pytest.mark.parametrize("code", ["500", "502", "503", "504"])
def test_a_server_that_fails_without_a_word(code: str) -> None:
    """A HEAD has no body, so there is nothing but the status."""
    error = ClientError({"Error": {"Code": code, "Message": "Internal Server Error"}}, "HeadObject")
    assert str(explain(error, "s3://bucket/labels.tsv")) == (
        f"s3://bucket/labels.tsv: {code}: Internal Server Error. Server error (5xx) after all retries: rerun in a few "
        "minutes; if it persists, check the server's log (for AWS, health.aws.amazon.com). Completed work is skipped"
    )


def test_expired_credentials_where_s3_gives_no_reason() -> None:
    """The answer to a HEAD has no body, so the code is the status."""
    error = ClientError({"Error": {"Code": "400", "Message": "Bad Request"}}, "HeadObject")
    assert str(explain(error, "s3://bucket/labels.tsv")) == (
        "s3://bucket/labels.tsv: 400: Bad Request. S3 gives no reason here; most often the credentials have expired. "
        "Renew the credentials (instance profile, `aws sso login`, session token) and rerun; completed work is kept"
    )


def test_an_unknown_code_still_says_what_to_do() -> None:
    assert str(explain(refused("Strange", "No\n  way."), "Volume")) == (
        "Volume: Strange: No way. Fix the cause above and rerun; completed work is skipped"
    )


@pytest.mark.parametrize(
    ("error", "code", "todo"),
    [
        (NoCredentialsError(), "NoCredentialsError", "Give the host an instance profile"),
        (EndpointConnectionError(endpoint_url="http://x"), "EndpointConnectionError", "Check the network"),
    ],
)
def test_errors_without_an_answer(error: Exception, code: str, todo: str) -> None:
    assert isinstance(error, sdk_errors())
    assert error_code(error) == code
    assert explain(error, "EC2").todo.startswith(todo)


def test_a_dead_endpoint_is_an_error_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    config = Config(retries={"total_max_attempts": 1})
    client = boto3.client("ec2", region_name="us-east-1", endpoint_url="http://127.0.0.1:9", config=config)
    with pytest.raises(sdk_errors()) as caught:
        client.describe_volumes()
    assert explain(caught.value, "EC2").todo == "Check the network, the region and endpoint_url, then rerun"


class Page(BaseHTTPRequestHandler):
    """A proxy that cannot reach AWS and says so in a page for people."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(502)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html>\n<html><title>Bad gateway<p>Ask your administrator.")

    def log_message(self, *_arguments: object) -> None:
        pass


def test_the_page_of_a_proxy_is_an_error_of_the_sdk() -> None:
    """botocore reads a page that begins with <html> as an error of AWS, and fails at any other."""
    config = Config(retries={"total_max_attempts": 1})
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        client = boto3.client("ec2", endpoint_url=f"http://127.0.0.1:{server.server_port}", config=config, **keys)
        with pytest.raises(sdk_errors()) as caught:
            client.describe_volumes()
        server.shutdown()
    assert is_transient(caught.value)
    assert re.fullmatch(
        r"EC2: ResponseParserError: Unable to parse response \(.*\), invalid XML received. This was no answer of AWS: "
        r"look for a proxy on the way to the endpoint, .*",
        str(explain(caught.value, "EC2")),
    )


def answered(status: int, code: str) -> ClientError:
    error = refused(code, "No.")
    error.response["ResponseMetadata"] = {
        "HTTPStatusCode": status, "RequestId": "", "HostId": "", "HTTPHeaders": {}, "RetryAttempts": 0,
    }  # fmt: skip
    return error


def botocore_retries(error: Exception) -> bool:
    """Whether botocore's retry mode "standard" sends the request again after ``error``."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    context = standard.RetryContext(
        attempt_number=1,
        operation_model=None,
        parsed_response=response,
        http_response=None if status is None else AWSResponse("http://s3", status, {}, None),
        caught_exception=None if isinstance(error, ClientError) else error,
    )
    checkers = (standard.TransientRetryableChecker(), standard.ThrottledRetryableChecker())
    return status == 429 or any(checker.is_retryable(context) for checker in checkers)


# Each error, whether it passes, and whether botocore judges alike; where it does not, is_transient says why.
ERRORS = [
    *((answered(400, code), True, True) for code in standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES),
    *((answered(400, code), True, True) for code in standard.TransientRetryableChecker._TRANSIENT_ERROR_CODES),
    *((answered(status, str(status)), True, True) for status in (429, 500, 502, 503, 504)),
    (answered(429, "Strange"), True, True),
    (answered(503, "SlowDown"), True, True),
    (answered(500, "InternalError"), True, True),
    (exceptions.ConnectTimeoutError(endpoint_url="http://s3"), True, True),
    (exceptions.ReadTimeoutError(endpoint_url="http://s3"), True, True),
    (exceptions.EndpointConnectionError(endpoint_url="http://s3"), True, True),
    (exceptions.ProxyConnectionError(proxy_url="http://proxy"), True, True),
    (exceptions.ConnectionClosedError(endpoint_url="http://s3"), True, True),
    (exceptions.ResponseStreamingError(error="cut"), True, True),
    (exceptions.HTTPClientError(error="cut"), True, True),
    (answered(400, "ExpiredToken"), False, True),
    (answered(403, "AccessDenied"), False, True),
    (answered(403, "403"), False, True),
    (answered(403, "RequestTimeTooSkewed"), False, True),
    (answered(404, "NoSuchKey"), False, True),
    (answered(412, "PreconditionFailed"), False, True),
    (answered(416, "InvalidRange"), False, True),
    (answered(501, "NotImplemented"), False, True),
    (exceptions.NoCredentialsError(), False, True),
    (exceptions.ParamValidationError(report="no key"), False, True),
    # Where we know better.
    (exceptions.SSLError(endpoint_url="https://s3", error="bad certificate"), False, False),
    (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), True, False),
    (exceptions.FlexibleChecksumError(error_msg="damaged"), True, False),
    (ResponseParserError("Unable to parse response"), True, False),
    *((answered(status, str(status)), True, False) for status in (507, 520, 529)),
    (refused("503", "Service Unavailable"), True, False),
    (refused("InternalError", "We encountered an internal error."), True, False),
    (refused("ServiceUnavailable", "Reduce your request rate."), True, False),
]


@pytest.mark.parametrize(
    ("error", "passes", "as_botocore"),
    ERRORS,
    ids=[f"{error_code(error)}-{number}" for number, (error, *_) in enumerate(ERRORS)],
)
def test_which_errors_may_pass(error: Exception, passes: bool, as_botocore: bool) -> None:
    assert is_transient(error) is passes
    assert (botocore_retries(error) is passes) is as_botocore
