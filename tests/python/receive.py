"""Verifies requests as receivers do, by the providers' own libraries.

JSON on standard input: [{provider, method, url, headers: {lower-case name: value}, body: base64, secret}, …]
Prints {"PROVIDER": true | "why not", …}
"""

import base64
import json
import sys
import traceback
import urllib.parse


def hubspot(request, headers, body, secret):
    from hubspot.utils.signature import Signature

    return Signature.is_valid(
        signature=headers["x-hubspot-signature-v3"], client_secret=secret, request_body=body, http_uri=request["url"], http_method=request["method"],
        signature_version="v3", timestamp=headers["x-hubspot-request-timestamp"],
    )


def razorpay(request, headers, body, secret):
    from razorpay import Client

    return Client(auth=("key", "secret")).utility.verify_webhook_signature(body, headers["x-razorpay-signature"], secret)


def resend(request, headers, body, secret):
    from resend import Webhooks

    named = {"id": headers["svix-id"], "timestamp": headers["svix-timestamp"], "signature": headers["svix-signature"]}
    Webhooks.verify({"payload": body, "headers": named, "webhook_secret": secret})
    return True


def slack(request, headers, body, secret):
    from slack_sdk.signature import SignatureVerifier

    return SignatureVerifier(secret).is_valid_request(body, headers)


def square(request, headers, body, secret):
    from square.utils.webhooks_helper import verify_signature

    return verify_signature(request_body=body, signature_header=headers["x-square-hmacsha256-signature"], signature_key=secret, notification_url=request["url"])


def standardwebhooks(request, headers, body, secret):
    from standardwebhooks import Webhook

    Webhook(secret).verify(body, headers)
    return True


def stripe(request, headers, body, secret):
    from stripe import WebhookSignature

    return WebhookSignature.verify_header(body, headers["stripe-signature"], secret, 300)


def twilio(request, headers, body, secret):
    from twilio.request_validator import RequestValidator

    form = headers["content-type"].startswith("application/x-www-form-urlencoded")
    parameters = dict(urllib.parse.parse_qsl(body, keep_blank_values=True)) if form else body
    return RequestValidator(secret).validate(request["url"], parameters, headers["x-twilio-signature"])


def workos(request, headers, body, secret):
    from workos.webhooks._verification import verify_header

    verify_header(event_body=body.encode(), event_signature=headers["workos-signature"], secret=secret)
    return True


verdicts = {}
for request in json.load(sys.stdin):
    name = request["provider"]
    try:
        verdict = globals()[name](request, request["headers"], base64.b64decode(request["body"]).decode(), request["secret"])
        verdicts[name] = True if verdict is None else verdict
    except Exception:
        verdicts[name] = traceback.format_exc()
print(json.dumps(verdicts))
