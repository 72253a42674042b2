"""The providers' own libraries as judges: each says whether it accepts a request. The time that they see is the case's.

Python libraries are called here, Node libraries through judges.mjs. Their versions are read from what is installed.
"""

import base64
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import subprocess
import time as real_time
from unittest import mock

HERE = pathlib.Path(__file__).parent
TOOLS = pathlib.Path(os.environ["CASE_TOOLS"])


# Where the libraries ask `datetime` for the time.
READ_DATETIME = ["standardwebhooks.webhooks", "jwt.api_jwt", "orb.resources.webhooks.webhooks"]


@contextlib.contextmanager
def clock(now):
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(now, tz)

    with contextlib.ExitStack() as all:
        all.enter_context(mock.patch.object(real_time, "time", lambda: float(now)))
        for module in READ_DATETIME:
            all.enter_context(mock.patch(f"{module}.datetime", Then))
        yield


class Judge:
    """`what` is the verdict's source as a case's `oracle` names it."""

    what = ""

    def accepts(self, scheme, request, secrets, now, more) -> bool:
        raise NotImplementedError


def headers_of(request):
    joined = {}
    for name, value in request.headers:
        name = name.lower()
        joined[name] = joined[name] + ", " + value if name in joined else value
    return joined


THIRD_PARTY = {"nuxt-webhook-validators", "@hookflo/tern", "jose"}


class Node(Judge):
    process = None

    def __init__(self, name, package, function, each=True):
        """A provider's own package, but for THIRD_PARTY; `each`: it takes one secret at a time."""
        self.name, self.each = name, each
        version = json.loads((TOOLS / "node/node_modules" / package / "package.json").read_text())["version"]
        source = "npm, third party" if package in THIRD_PARTY else "npm"
        self.what = f"{package} {version} ({source}) {function}"

    def accepts(self, scheme, request, secrets, now, more):
        tries = [[secret] for secret in secrets] if self.each and secrets else [secrets]
        return any(self.ask(scheme, request, one, now, more) for one in tries)

    def ask(self, scheme, request, secrets, now, more):
        if Node.process is None:
            env = dict(os.environ, CASE_TOOLS=str(TOOLS.resolve()))
            command = ["node", "--import", str(HERE / "imports.mjs"), str(HERE / "judges.mjs")]
            Node.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        call = {
            "judge": self.name, "method": request.method, "url": request.url, "headers": headers_of(request), "body": base64.b64encode(request.body).decode(),
            "secrets": secrets, "params": {**scheme.params, **more.get("params", {})}, "public_key": more.get("public_key", scheme.public_key), "now": now,
        }
        Node.process.stdin.write(json.dumps(call).encode() + b"\n")
        Node.process.stdin.flush()
        answer = json.loads(Node.process.stdout.readline())
        self.last = answer.get("error")
        return answer["ok"]


class Python(Judge):
    def __init__(self, package, function, run, each=True):
        self.what = f"{package} {importlib.metadata.version(package)} (PyPI) {function}"
        self.run, self.each = run, each

    def accepts(self, scheme, request, secrets, now, more):
        with clock(now):
            for one in [[secret] for secret in secrets] if self.each and secrets else [secrets]:
                try:
                    if self.run(request, headers_of(request), one, {**scheme.params, **more.get("params", {})}, more.get("public_key", scheme.public_key)):
                        return True
                except Exception as error:  # a library refuses in many ways
                    self.last = repr(error)
        return False


def text(request):
    return request.body.decode("utf-8")


def standard(request, headers, secrets, *_):
    from standardwebhooks import Webhook

    Webhook(secrets[0]).verify(text(request), headers)
    return True


def adyen(request, headers, secrets, *_):
    from Adyen.util import is_valid_hmac_payload

    return is_valid_hmac_payload(headers["hmacsignature"], secrets[0], request.body)


def cloudinary(request, headers, secrets, params, _):
    import cloudinary
    from cloudinary.utils import verify_notification_signature

    cloudinary.config(api_secret=secrets[0])
    return verify_notification_signature(text(request), headers["x-cld-timestamp"], headers["x-cld-signature"], algorithm=params.get("algorithm", "sha1"))


def elevenlabs(request, headers, secrets, *_):
    from elevenlabs.webhooks_custom import WebhooksClient

    WebhooksClient.construct_event(None, text(request), headers["elevenlabs-signature"], secrets[0])
    return True


def increase(request, headers, secrets, *_):
    # What `increase.webhooks` is given is handed to standardwebhooks as it stands.
    from increase import Increase

    Increase(api_key="k").events.unwrap(text(request), headers=headers, key=secrets[0])
    return True


def lithic(request, headers, secrets, *_):
    from lithic import Lithic

    Lithic(api_key="k").webhooks.verify_signature(text(request), headers, secret=secrets[0])
    return True


def modern_treasury(request, headers, secrets, *_):
    from modern_treasury import ModernTreasury

    return ModernTreasury(api_key="k", organization_id="o").webhooks.validate_signature(text(request), headers, key=secrets[0])


def mollie(request, headers, secrets, *_):
    from mollie.utils.webhooks.signature_validator import SignatureValidator

    return SignatureValidator(secrets).validate_payload(text(request), headers.get("x-mollie-signature"))


def onfido(request, headers, secrets, *_):
    from onfido.webhook_event_verifier import OnfidoInvalidSignatureError, WebhookEventVerifier

    try:
        WebhookEventVerifier(secrets[0]).read_payload(text(request), headers["x-sha2-signature"])
    except OnfidoInvalidSignatureError:
        return False
    except KeyError:
        return False
    except Exception:  # the event's shape, once the signature was good
        pass
    return True


def orb(request, headers, secrets, *_):
    from orb import Orb

    Orb(api_key="k").webhooks.verify_signature(text(request), headers, secret=secrets[0])
    return True


def pusher(request, headers, secrets, *_):
    from pusher.authentication_client import AuthenticationClient

    client = AuthenticationClient(app_id="1", key="app-key", secret=secrets[0], ssl=True)
    return client.validate_webhook(headers["x-pusher-key"], headers["x-pusher-signature"], text(request)) is not None


def replicate(request, headers, secrets, *_):
    from replicate.webhook import Webhooks, WebhookSigningSecret

    Webhooks.validate(headers=headers, body=text(request), secret=WebhookSigningSecret(key=secrets[0]))
    return True


def smartcar(request, headers, secrets, *_):
    import smartcar

    return smartcar.verify_payload(secrets[0], headers["sc-signature"], text(request))


def telnyx(request, headers, secrets, params, public_key):
    from telnyx.lib.webhook_verification import verify_webhook_signature

    verify_webhook_signature(request.body, headers, public_key)
    return True


def livekit(request, headers, secrets, params, _):
    from livekit.api import TokenVerifier, WebhookReceiver

    WebhookReceiver(TokenVerifier(params["issuer"], secrets[0])).receive(text(request), headers["authorization"])
    return True


def vonage(request, headers, secrets, *_):
    import hashlib

    import jwt
    from vonage_jwt.verify_jwt import verify_signature

    token = headers["authorization"].removeprefix("Bearer ")
    if not verify_signature(token, secrets[0]):
        return False
    return jwt.decode(token, options={"verify_signature": False})["payload_hash"] == hashlib.sha256(request.body).hexdigest()


def dropbox_sign(request, headers, secrets, *_):
    import urllib.parse
    from types import SimpleNamespace

    from dropbox_sign.event_callback_helper import EventCallbackHelper

    event = json.loads(urllib.parse.parse_qs(text(request), strict_parsing=True)["json"][0])["event"]
    return EventCallbackHelper.is_valid(secrets[0], SimpleNamespace(event=SimpleNamespace(**event)))


class Reference(Judge):
    """No library: the signer of schemes.py reads the request back."""

    def __init__(self, docs):
        self.what = f"tests/vectors/generate/schemes.py, a signer in Python written from {docs}"

    def accepts(self, scheme, request, secrets, now, more):
        return any(scheme.good(request, secret, now) for secret in secrets or [None])


