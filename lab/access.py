"""Who may call: access keys, session tokens, the owner of a bucket, how often; and a count of what was called."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from moto.core.authorization import ActionAuthenticatorMixin
from moto.core.responses import BaseResponse
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.sts.models import sts_backends

from lab.config import (
    ACCOUNT_ID,
    CONTROLLER_ACCESS_KEY,
    CONTROLLER_SECRET_KEY,
    OTHER_ACCOUNT_BUCKET,
    OTHER_ACCOUNT_ID,
    REGION,
)
from lab.machine import LabError
from lab.patching import error_answer, wrap
from lab.rules import ApiError

PARTITION = "aws"
CONTROLLER_USER = "lab-controller"
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")
_V2 = re.compile(r"^AWS ([^:]+):")


class TokenBucket:
    """EC2's throttling: a bucket of ``burst`` calls that refills by ``rate`` calls a second; ``rate`` 0 is no limit."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._left = float(burst)
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one call out of the bucket; False where it is empty."""
        if self._rate <= 0:
            return True
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Calls:
    """How often each action was called, as ``ec2:DescribeVolumes``, and how many calls were throttled."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Count one call of action ``name``."""
        with self._lock:
            self._counts[name] += 1

    def reset(self) -> None:
        """Begin again from nothing."""
        with self._lock:
            self._counts.clear()

    def to_json(self) -> dict[str, Any]:
        """Return the counts as GET /lab/calls shows them."""
        with self._lock:
            return {"total": sum(self._counts.values()), "calls": dict(sorted(self._counts.items()))}


def access_key_of(authorization: str, query: dict[str, Any]) -> str | None:
    """Return the access key id that signed a request, from its Authorization header or a presigned URL's query."""
    match = _CREDENTIAL.search(authorization) or _V2.search(authorization)
    if match:
        return match.group(1)
    for name in ("X-Amz-Credential", "AWSAccessKeyId"):
        if query.get(name):
            return str(query[name][0]).split("/")[0]
    return None


class Access:
    """The patches at moto's one entrance of each call."""

    def __init__(self, bucket: TokenBucket, calls: Calls, changed: Callable[[str], None]) -> None:
        self._bucket = bucket
        self._calls = calls
        self._changed = changed

    def install(self) -> None:
        """Change moto."""
        wrap(BaseResponse, "get_access_key")(lambda _, response: _key(response) or "")
        self._install_actions()
        self._install_s3()

    def create_accounts(self) -> None:
        """Make the controller's user with its fixed key, and somebody else's bucket."""
        iam = iam_backends[ACCOUNT_ID][PARTITION]
        iam.create_user(REGION, CONTROLLER_USER)
        key = iam.create_access_key(CONTROLLER_USER)
        del iam.access_keys[key.access_key_id]
        key.access_key_id, key.secret_access_key = CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY
        iam.access_keys[CONTROLLER_ACCESS_KEY] = key
        s3_backends[OTHER_ACCOUNT_ID][PARTITION].create_bucket(OTHER_ACCOUNT_BUCKET, REGION)

    def _install_actions(self) -> None:
        @wrap(BaseResponse, "call_action")
        def call_action(original: Any, response: Any) -> Any:
            service, action = response.service_name, response._get_action()  # noqa: SLF001 - moto has no other name
            self._calls.add(f"{service}:{action}")
            try:
                check_key(response, "AuthFailure" if service == "ec2" else "InvalidClientTokenId")
                if service == "ec2":
                    self._throttle()
                answer = original(response)
            except ApiError as error:
                return error_answer(response, error)
            except NotImplementedError as error:
                return error_answer(response, ApiError("UnsupportedOperation", f"Not part of the lab: {error}"))
            except LabError as error:  # the machine failed: the disk is full, a command is missing
                return error_answer(response, ApiError("InternalError", str(error), 500))
            self._changed(action)
            return answer

    def _throttle(self) -> None:
        if not self._bucket.take():
            self._calls.add("ec2:RequestLimitExceeded")
            raise ApiError("RequestLimitExceeded", "Request limit exceeded.", 503)

    def _install_s3(self) -> None:
        @wrap(ActionAuthenticatorMixin, "_authenticate_and_authorize_s3_action")
        def authorize(_: Any, response: Any, bucket_name: str | None = None, **__: Any) -> None:
            action = response.data.get("Action") or response.method
            self._calls.add(f"s3:{action}")
            check_bucket_exists(response, bucket_name)
            check_key(response, "InvalidAccessKeyId")
            if bucket_name is not None:
                check_bucket_owner(response, bucket_name, str(action))

        for entrance in ("bucket_response", "key_response"):

            @wrap(S3Response, entrance)
            def answer(original: Any, response: Any, *arguments: Any) -> Any:
                try:
                    return original(response, *arguments)
                except ApiError as error:
                    return error_answer(response, error)


def _key(response: Any) -> str | None:
    return access_key_of(response.headers.get("Authorization", ""), response.querystring)


def check_key(response: Any, code: str) -> None:
    """Raise the error ``code`` unless a key that the lab has given out signed the request."""
    key = _key(response)
    if key is None and response.service_name == "s3":
        raise ApiError("AccessDenied", "Access Denied", 403)
    iam = iam_backends[ACCOUNT_ID][PARTITION]
    if key is None or key not in iam.access_keys:
        messages = {
            "AuthFailure": "AWS was not able to validate the provided access credentials",
            "InvalidClientTokenId": "The security token included in the request is invalid.",
            "InvalidAccessKeyId": "The AWS Access Key Id you provided does not exist in our records.",
        }
        raise ApiError(code, messages[code], 401 if code == "AuthFailure" else 403)
    role = sts_backends[ACCOUNT_ID][PARTITION].get_assumed_role_from_access_key(key)
    if role is not None and response.headers.get("X-Amz-Security-Token") != role.session_token:
        raise ApiError("InvalidToken", "The provided token is malformed or otherwise invalid.", 400)


def check_bucket_exists(response: Any, bucket_name: str | None) -> None:
    """Raise NoSuchBucket for an unsigned request to a bucket that nobody has: S3 says so to everybody."""
    if _key(response) is None and bucket_name is not None and bucket_name not in s3_backends.bucket_accounts:
        raise ApiError("NoSuchBucket", "The specified bucket does not exist", 404)


def check_bucket_owner(response: Any, bucket_name: str, action: str) -> None:
    """Raise AccessDenied where the bucket is another account's, or not that of the account the caller expects."""
    _, owner = s3_backends.bucket_accounts.get(bucket_name, (None, None))
    if owner is None:
        return
    expected = response.headers.get("x-amz-expected-bucket-owner", owner)
    # Who creates a bucket whose name is taken hears BucketAlreadyExists, from moto.
    if expected != owner or (owner != response.current_account and action != "CreateBucket"):
        raise ApiError("AccessDenied", "Access Denied", 403)
