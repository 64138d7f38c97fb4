"""Errors of the AWS SDK, described so that a person can act on them."""

from __future__ import annotations

import re
from typing import Any

from ansible.module_utils.imagenet_ops.core.errors import OpsError

# Next steps by error code. The codes of EC2 are in its API reference under "Error codes", those of S3 under "Error
# responses"; a HEAD has no body, so there the code is the HTTP status.
RENEW = "Renew the credentials (instance profile, `aws sso login`, session token) and rerun; completed work is kept"
ALLOW = "Allow the action to this user or role (docs/permissions.md lists all) and rerun"
CHECK_KEYS = "Check the access key, the secret key and the Region they are for"
LATER = "Rerun in a few minutes; completed work is skipped"
FAILING = (
    "Server error (5xx) after all retries: rerun in a few minutes; if it persists, check the server's log (for AWS, "
    "health.aws.amazon.com). Completed work is skipped"
)
REGION = "Set the Region to that of the bucket"
# To a HEAD, S3 says no more: nothing in the body, and of an expired token no more than the status.
NO_REASON = f"S3 gives no reason here; most often the credentials have expired. {RENEW}"
TODO_BY_CODE = {
    "ExpiredToken": RENEW,
    "ExpiredTokenException": RENEW,
    "RequestExpired": RENEW,
    "400": NO_REASON,
    "TokenRefreshRequired": RENEW,
    "UnauthorizedOperation": ALLOW,
    "AccessDenied": ALLOW,
    "AccessDeniedException": ALLOW,
    "403": ALLOW,
    "AuthFailure": CHECK_KEYS,
    "InvalidClientTokenId": CHECK_KEYS,
    "InvalidAccessKeyId": CHECK_KEYS,
    "SignatureDoesNotMatch": CHECK_KEYS,
    "InvalidToken": CHECK_KEYS,
    "RequestTimeTooSkewed": "Set the clock of this machine (chrony, systemd-timesyncd) and rerun",
    "RequestLimitExceeded": LATER,
    "Throttling": LATER,
    "SlowDown": LATER,
    "InternalError": LATER,
    "ServiceUnavailable": LATER,
    "429": LATER,
    "500": FAILING,
    "502": FAILING,
    "503": FAILING,
    "504": FAILING,
    "InsufficientVolumeCapacity": "Choose another volume type, or rerun later",
    "VolumeLimitExceeded": "Raise the EBS quota of this volume type in Service Quotas, or delete unused volumes",
    "MaxIOPSLimitExceeded": "Raise the IOPS quota of this volume type in Service Quotas, or request fewer",
    "AttachmentLimitExceeded": "Detach a volume from that instance, or use an instance type with more attachments",
    "PermanentRedirect": REGION,
    "301": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "InvalidObjectState": "The object is archived: restore it first (aws s3api restore-object)",
    "NoSuchBucket": "Create the bucket (playbooks/prepare.yml does) or correct its name and Region",
}
# botocore's own errors, by class: there was no answer to take a code from.
TODO_BY_CLASS = {
    "NoCredentialsError": "Give the host an instance profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID for this run",
    "PartialCredentialsError": "Set both the access key and the secret key, or neither",
    "CredentialRetrievalError": RENEW,
    "TokenRetrievalError": RENEW,
    "SSOTokenLoadError": RENEW,
    "UnauthorizedSSOTokenError": RENEW,
    "NoRegionError": "Set the region",
    "ProfileNotFound": "Correct the name of the profile, or add it to ~/.aws/config",
    "EndpointConnectionError": "Check the network, the region and endpoint_url, then rerun",
    "ConnectTimeoutError": "Check the network, the region and endpoint_url, then rerun",
    "ResponseParserError": "This was no answer of AWS: look for a proxy on the way to the endpoint, check endpoint_url "
    "and that its server knows this operation, then rerun",
    "SSLError": "Check the certificate of the endpoint. If its authority is your own, set the file with the "
    "authority's certificate (data_s3_ca_bundle for S3, else AWS_CA_BUNDLE)",
}
# Codes of answers that may be another in a minute: those that botocore's retry mode "standard" retries
# (botocore/retries/standard.py), the ones of a server that fails (S3 sends them without a status too, in the body of a
# 200), and that of S3 for a client that sends too slowly.
TRANSIENT_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "InternalError",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
        "Unavailable",
    }
)
_TOO_MANY_REQUESTS = 429
_NOT_IMPLEMENTED = 501
DEFAULT_TODO = "Fix the cause above and rerun; completed work is skipped"


def sdk_errors() -> tuple[type[Exception], ...]:
    """Return the classes of every error that the AWS SDK raises, for an ``except``.

    Imported when it is called, since a host without boto3 gets an error of its own.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as said above
    from botocore.parsers import ResponseParserError  # noqa: PLC0415 - likewise; it is none of the two

    return (BotoCoreError, ClientError, ResponseParserError)


def error_code(error: Exception) -> str:
    """Return the code in an answer of AWS (``VolumeInUse``), or the name of the SDK's own error where none came."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code") or type(error).__name__)


def error_message(error: Exception) -> str:
    """Return the message in an answer of AWS, in one line.

    The encoded part that only AWS can read is left out, and the page that a proxy sent in place of an answer.
    """
    response: dict[str, Any] = getattr(error, "response", None) or {}
    message = str(response.get("Error", {}).get("Message") or error)
    for end in ("Encoded authorization failure message", "Further retries may succeed"):
        message = message.split(end, maxsplit=1)[0]
    return " ".join(message.split()).rstrip(".")


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed in a minute; the only place that decides it.

    It decides as botocore's retry mode "standard" does, but for these: a certificate that is refused (SSLError) stays
    refused; every status from 500 on may pass and not just four of them, for proxies and other servers than AWS have
    their own (507, 520, 529), except 501, by which they say that they will never do it; a body that was cut or damaged
    (IncompleteReadError, FlexibleChecksumError) comes whole the next time, which botocore leaves to whoever reads it;
    and a proxy that sent a page of its own in place of the answer (ResponseParserError) may let the next one pass.
    """
    from botocore import exceptions, parsers  # noqa: PLC0415 - as in sdk_errors

    if isinstance(error, exceptions.SSLError):
        return False
    of_the_way = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.FlexibleChecksumError,
        parsers.ResponseParserError,
    )
    if isinstance(error, of_the_way):
        return True
    code = error_code(error)
    response: dict[str, Any] = getattr(error, "response", None) or {}
    # The answer to a HEAD has no body; there the code is the status.
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") or (
        int(code) if re.fullmatch("[0-9]{3}", code) else 0
    )
    fails = status == _TOO_MANY_REQUESTS or (status >= 500 and status != _NOT_IMPLEMENTED)
    return fails or code in TRANSIENT_CODES


def explain(error: Exception, what: str) -> OpsError:
    """Return ``error`` of the SDK as an OpsError about ``what``: code, message, next step."""
    code = error_code(error)
    todo = TODO_BY_CODE.get(code) or TODO_BY_CLASS.get(type(error).__name__) or DEFAULT_TODO
    return OpsError(what, f"{code}: {error_message(error)}", todo)
