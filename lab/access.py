"""Who may call, how often, and what: access keys, session tokens, IAM policies, throttling, and a count of calls."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from moto.core.responses import BaseResponse
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.sts.models import sts_backends

from lab.authorization import PARTITION, requests_of_ec2, requests_of_iam, requests_of_kms
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
from lab.policies import Decision, Request, decide
from lab.rules import ApiError

CONTROLLER_USER = "lab-controller"
ADMINISTRATOR = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
# Everybody may ask who he is (IAM User Guide, GetCallerIdentity).
ALWAYS_ALLOWED = "sts:GetCallerIdentity"
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")
_SIGNATURE_2 = re.compile(r"^AWS ([^:]+):")
# How a service says that it does not know a key: code, message, HTTP status.
_UNKNOWN_KEY = {
    "ec2": ("AuthFailure", "AWS was not able to validate the provided access credentials", 401),
    "s3": ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", 403),
}
_UNKNOWN_KEY_ELSEWHERE = ("InvalidClientTokenId", "The security token included in the request is invalid.", 403)


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


class Callers:
    """Compares each request with the policies of its caller, and keeps what was asked for and what was refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin again from nothing."""
        self._evaluated = 0
        self._denied: list[str] = []
        self._used: dict[str, set[str]] = defaultdict(set)

    def to_json(self) -> dict[str, Any]:
        """Return how many requests were evaluated, each that was denied, and the permissions that each caller used."""
        with self._lock:
            used = {name: sorted(actions) for name, actions in sorted(self._used.items())}
            return {"evaluated": self._evaluated, "denied": list(self._denied), "used": used}

    def check(self, response: Any, requests: Iterable[Request]) -> None:
        """Raise ApiError unless a request is signed with a key of the lab whose policies allow all of ``requests``."""
        principal = _principal(response)
        policies = [*principal.policies.values(), *map(_document, principal.managed_policies.values())]
        boundary = getattr(principal, "permissions_boundary_arn", None)
        for request in requests:
            if request.action == ALWAYS_ALLOWED:
                continue
            decision = decide(policies, request)
            if decision is Decision.ALLOWED and boundary:
                policy = iam_backends[ACCOUNT_ID][PARTITION].managed_policies[boundary]
                decision = decide([_document(policy)], request)
            with self._lock:
                self._evaluated += 1
                if decision is Decision.ALLOWED:
                    self._used[principal.name].add(request.action)
                    continue
                denial = f"{principal.arn} is not authorized to perform {request.action} on {request.resource}: "
                self._denied.append(f"{denial}{decision.value} ({dict(request.context)})")
            code = "UnauthorizedOperation" if response.service_name == "ec2" else "AccessDenied"
            raise ApiError(code, f"User: {denial}{decision.value}", 403)


class Access:
    """The patches at the entrance of EC2, STS and IAM. ``changed`` is called with every action that succeeded."""

    def __init__(self, bucket: TokenBucket, calls: Calls, callers: Callers, changed: Callable[[str], None]) -> None:
        self._bucket = bucket
        self._calls = calls
        self._callers = callers
        self._changed = changed

    def install(self) -> None:
        """Change moto."""
        wrap(BaseResponse, "get_access_key")(lambda _, response: _key(response) or "")
        wrap(BaseResponse, "call_action")(self._call_action)

    def create_accounts(self) -> None:
        """Make the controller's user with its fixed key, and somebody else's bucket."""
        iam = iam_backends[ACCOUNT_ID][PARTITION]
        iam.create_user(REGION, CONTROLLER_USER)
        iam.put_user_policy(CONTROLLER_USER, "administrator", json.dumps(ADMINISTRATOR))
        key = iam.create_access_key(CONTROLLER_USER)
        del iam.access_keys[key.access_key_id]
        key.access_key_id, key.secret_access_key = CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY
        iam.access_keys[CONTROLLER_ACCESS_KEY] = key
        s3_backends[OTHER_ACCOUNT_ID][PARTITION].create_bucket(OTHER_ACCOUNT_BUCKET, REGION)

    def _call_action(self, original: Any, response: Any) -> Any:
        name = response._get_action()  # noqa: SLF001 - moto has no other name for it
        action = f"{response.service_name}:{name}"
        self._calls.add(action)
        try:
            self._callers.check(response, _requests(response, name))
            self._throttle(response)
            answer = original(response)
        except ApiError as error:
            return error_answer(response, error)
        except NotImplementedError as error:
            return error_answer(response, ApiError("UnsupportedOperation", f"Not part of the lab: {error}"))
        except LabError as error:  # the machine failed: the disk is full, a command is missing
            return error_answer(response, ApiError("InternalError", str(error), 500))
        self._changed(action)
        return answer

    def _throttle(self, response: Any) -> None:
        if response.service_name == "ec2" and not self._bucket.take():
            self._calls.add("ec2:RequestLimitExceeded")
            raise ApiError("RequestLimitExceeded", "Request limit exceeded.", 503)


def access_key_of(authorization: str, query: dict[str, Any]) -> str | None:
    """Return the access key id that signed a request, from its Authorization header or a presigned URL's query."""
    match = _CREDENTIAL.search(authorization) or _SIGNATURE_2.search(authorization)
    if match:
        return match.group(1)
    for name in ("X-Amz-Credential", "AWSAccessKeyId"):
        if query.get(name):
            return str(query[name][0]).split("/")[0]
    return None


def _principal(response: Any) -> Any:
    """Return moto's user or role whose key signed a request; raises ApiError where it is none of the lab's."""
    key, service = _key(response), response.service_name
    if key is None and service == "s3":
        raise ApiError("AccessDenied", "Access Denied", 403)
    iam = iam_backends[ACCOUNT_ID][PARTITION]
    if key is None or key not in iam.access_keys:
        raise ApiError(*_UNKNOWN_KEY.get(service, _UNKNOWN_KEY_ELSEWHERE))
    role = sts_backends[ACCOUNT_ID][PARTITION].get_assumed_role_from_access_key(key)
    if role is None:
        return iam.users[str(iam.access_keys[key].user_name)]
    if response.headers.get("X-Amz-Security-Token") != role.session_token:
        raise ApiError("InvalidToken", "The provided token is malformed or otherwise invalid.")
    return iam.get_role_by_arn(role.role_arn)


def _document(policy: Any) -> str:
    """Return the version of a managed policy that is in force."""
    return next(str(version.document) for version in policy.versions if version.is_default)


def _requests(response: Any, name: str) -> list[Request]:
    """Return what a call of EC2, IAM or another service of the query protocol must be allowed."""
    if response.service_name == "ec2":
        return requests_of_ec2(name, response.querystring, response.region)
    if response.service_name == "iam":
        return requests_of_iam(name, response.querystring)
    if response.service_name == "kms":
        return requests_of_kms(name, json.loads(response.body or "{}"))
    return [Request(f"{response.service_name}:{name}")]


def _key(response: Any) -> str | None:
    return access_key_of(response.headers.get("Authorization", ""), response.querystring)
