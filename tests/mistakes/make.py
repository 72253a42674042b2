"""Makes mistakes.json: requests that a provider signed rightly, each with one of the usual mistakes made afterwards.

Signed with Python's hmac and hashlib by what each provider documents; nothing of hooklatch takes part. Some start from the
accept cases of tests/vectors, whose signatures the providers' own libraries made. Run it beside this file: python3 make.py
"""

import base64
import gzip
import hashlib
import hmac
import json
import pathlib
import urllib.parse

NOW = 1760000000
HERE = pathlib.Path(__file__).parent
BODY = b'{"id":"evt_1","type":"invoice.paid","data":{"b":2,"a":"caf\xc3\xa9/x"}}'
URL = "https://hooks.example.com/in?b=2&a=1"
SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def mac(key, text, algorithm="sha256"):
    key = key.encode() if isinstance(key, str) else key
    return hmac.new(key, text, algorithm)


def hex_of(*args):
    return mac(*args).hexdigest()


def b64_of(*args):
    return base64.b64encode(mac(*args).digest()).decode()


def request(body=BODY, url=URL, method="POST", kind="application/json", **headers):
    return {"method": method, "url": url, "headers": [["Content-Type", kind]] + [[n.replace("_", "-"), v] for n, v in headers.items()], "body": body}


# -- providers --

def github(body=BODY, key=SECRET):
    return request(body, X_Hub_Signature_256="sha256=" + hex_of(key, body), X_GitHub_Event="push")


def stripe(body=BODY, key=WHSEC, at=NOW, signed_at=None):
    text = str(signed_at or at).encode() + b"." + body
    return request(body, Stripe_Signature=f"t={at},v1={hex_of(key, text)}")


def shopify(body=BODY, key=SECRET):
    return request(body, X_Shopify_Hmac_SHA256=b64_of(key, body), X_Shopify_Topic="orders/create", X_Shopify_Shop_Domain="example.myshopify.com",
                   X_Shopify_API_Version="2025-10", X_Shopify_Webhook_Id="b54557e4-bdd9-4b37-8a5f-bf7d70bcd043")


def slack(body=BODY, key=SECRET, at=NOW, signed_at=None):
    text = b"v0:" + str(signed_at or at).encode() + b":" + body
    return request(body, X_Slack_Request_Timestamp=str(at), X_Slack_Signature="v0=" + hex_of(key, text))


def standard(prefix="webhook", body=BODY, key=None, at=NOW, id="msg_p5jXN8AQM9LWM0D4loKWxJek"):
    key = base64.b64decode(WHSEC.removeprefix("whsec_")) if key is None else key
    signature = "v1," + b64_of(key, f"{id}.{at}.".encode() + body)
    return request(body, **{f"{prefix}-id": id, f"{prefix}-timestamp": str(at), f"{prefix}-signature": signature})


def twilio(params=(("Body", "hi there"), ("From", "+14158675309")), url=URL, key=SECRET, signed_url=None, kind="application/x-www-form-urlencoded"):
    text = (signed_url or url) + "".join(n + v for n, v in sorted(params))
    body = urllib.parse.urlencode(params).encode()
    return request(body, url, kind=kind, X_Twilio_Signature=base64.b64encode(mac(key, text.encode(), "sha1").digest()).decode())


def hubspot(body=BODY, url=URL, key=SECRET, at=NOW * 1000, signed_url=None, method="POST", signed_method=None):
    text = f"{signed_method or method}{signed_url or url}".encode() + body + str(at).encode()
    return request(body, url, method, X_HubSpot_Signature_v3=b64_of(key, text), X_HubSpot_Request_Timestamp=str(at))


def square(body=BODY, url=URL, key=SECRET, signed_url=None):
    return request(body, url, x_square_hmacsha256_signature=b64_of(key, (signed_url or url).encode() + body))


def paddle(body=BODY, key=SECRET, at=NOW):
    return request(body, Paddle_Signature=f"ts={at};h1={hex_of(key, str(at).encode() + b':' + body)}")


# -- mistakes --

TABLE = []


def seed(name, provider, cause, made, secrets=(SECRET,), change=None, now=NOW, **more):
    made = json.loads(json.dumps({k: v for k, v in made.items() if k != "body"})) | {"body": made["body"]}
    if change:
        change(made)
    body = base64.b64encode(made.pop("body")).decode()
    TABLE.append({"cause": cause, "id": f"{provider}/{name}", "provider": provider, **made, "body_base64": body, "secrets": list(secrets), "now": now, "expect": "reject", **more})


def body(change):
    def run(made):
        made["body"] = change(made["body"])
    return run


def header(name, change):
    def run(made):
        found = [h for h in made["headers"] if h[0].lower() == name.lower()]
        assert found, name
        for h in found:
            h[1] = change(h[1])
    return run


def rename(name, new):
    def run(made):
        for h in made["headers"]:
            if h[0].lower() == name.lower():
                h[0] = new
    return run


def drop(name):
    def run(made):
        made["headers"] = [h for h in made["headers"] if h[0].lower() != name.lower()]
    return run


def url(new):
    def run(made):
        made["url"] = new
    return run


def loaded(**style):
    return lambda b: json.dumps(json.loads(b), **style).encode()


# secrets
seed("secret-with-newline", "github", "secret_blank", github(), [SECRET + "\n"])
seed("secret-with-blank", "stripe", "secret_blank", stripe(), [" " + WHSEC])
seed("sender-secret-with-newline", "shopify", "secret_blank", shopify(key=SECRET + "\n"))
seed("secret-in-quotes", "slack", "secret_quoted", slack(), ['"' + SECRET + '"'])
seed("secret-with-bom", "github", "secret_bom", github(), ["\ufeff" + SECRET])
seed("secret-with-its-name", "github", "secret_name", github(), ["GITHUB_SECRET=" + SECRET])
seed("secret-in-capitals", "paddle", "secret_case", paddle(), [SECRET.upper()])
seed("whsec-not-decoded-by-sender", "standardwebhooks", "secret_encoding", standard(key=WHSEC.encode()), [WHSEC])
seed("whsec-cut-off-by-sender", "stripe", "secret_whsec", stripe(key=WHSEC.removeprefix("whsec_")), [WHSEC])
seed("whsec-decoded-by-sender", "stripe", "secret_whsec", stripe(key=base64.b64decode(WHSEC.removeprefix("whsec_"))), [WHSEC])
seed("whsec-with-newline", "svix", "secret_blank", standard("svix"), [WHSEC + "\n"])
seed("secret-base64-of-the-real-one", "github", "secret_encoding", github(), [base64.b64encode(SECRET.encode()).decode()])
seed("secret-hex-decoded-by-sender", "shopify", "secret_encoding", shopify(key=bytes.fromhex("00ff" * 16)), ["00ff" * 16])
seed("secret-base64-decoded-by-sender", "slack", "secret_encoding", slack(key=base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")), ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
seed("secret-hex-where-base64-is-due", "standardwebhooks", "secret_encoding", standard(), [base64.b64decode(WHSEC.removeprefix("whsec_")).hex() + "zz"[:0]])
seed("secret-of-another-route", "github", "secret_other", github(key="the secret of the other route"), others=["the secret of the other route"])
seed("secret-sent-as-it-is", "github", "secret_sent", request(X_Hub_Signature_256=SECRET))

# the signature's place and dress
seed("prefix-missing", "github", "signature_prefix", github(), change=header("X-Hub-Signature-256", lambda v: v.removeprefix("sha256=")))
seed("version-missing", "slack", "signature_prefix", slack(), change=header("X-Slack-Signature", lambda v: v.removeprefix("v0=")))
seed("base64-where-hex-is-due", "github", "signature_encoding", request(X_Hub_Signature_256="sha256=" + b64_of(SECRET, BODY)))
seed("hex-where-base64-is-due", "shopify", "signature_encoding", shopify(), change=header("X-Shopify-Hmac-SHA256", lambda v: base64.b64decode(v).hex()))
seed("base64-of-hex", "shopify", "signature_encoding", shopify(), change=header("X-Shopify-Hmac-SHA256", lambda v: base64.b64encode(base64.b64decode(v).hex().encode()).decode()))
seed("capital-hex", "slack", "signature_encoding", slack(), change=header("X-Slack-Signature", lambda v: "v0=" + v[3:].upper()))
seed("joined-twice", "shopify", "signature_twice", shopify(), change=header("X-Shopify-Hmac-SHA256", lambda v: v + ", " + v))
seed("header-twice", "github", "signature_twice", github(), change=lambda m: m["headers"].append(["X-Hub-Signature-256", m["headers"][1][1]]))
seed("renamed-by-a-proxy", "paddle", "signature_renamed", paddle(), change=rename("Paddle-Signature", "X-Original-Paddle-Signature"))
seed("cut", "github", "signature_cut", github(), change=header("X-Hub-Signature-256", lambda v: v[:47]))
seed("in-quotes", "shopify", "signature_dressed", shopify(), change=header("X-Shopify-Hmac-SHA256", lambda v: f'"{v}"'))
seed("plus-read-as-blank", "shopify", "signature_dressed", next(made for n in range(99) for made in [shopify(b'{"n":%d}' % n)] if "+" in made["headers"][1][1]), change=header("X-Shopify-Hmac-SHA256", lambda v: v.replace("+", " ")))
seed("missing", "github", "signature_missing", github(), change=drop("X-Hub-Signature-256"), reason="signature_missing")
seed("older-algorithm", "github", "signature_algorithm", request(X_Hub_Signature_256="sha256=" + hex_of(SECRET, BODY, "sha1")))
seed("sha512", "shopify", "signature_algorithm", request(X_Shopify_Hmac_SHA256=b64_of(SECRET, BODY, "sha512"), X_Shopify_Topic="t", X_Shopify_Shop_Domain="example.myshopify.com", X_Shopify_API_Version="2025-10", X_Shopify_Webhook_Id="b54557e4-bdd9-4b37-8a5f-bf7d70bcd043"))
seed("plain-digest", "github", "signature_text", request(X_Hub_Signature_256="sha256=" + hashlib.sha256(SECRET.encode() + BODY).hexdigest()))
seed("time-left-out-of-the-text", "slack", "signature_text", request(X_Slack_Request_Timestamp=str(NOW), X_Slack_Signature="v0=" + hex_of(SECRET, BODY)))
seed("another-preset", "gitea", "provider_other", github())
seed("svix-names", "standardwebhooks", "provider_other", standard("svix"), [WHSEC])

# bodies
seed("newline-added", "github", "body_newline_added", github(), change=body(lambda b: b + b"\n"))
seed("newline-lost", "stripe", "body_newline_lost", stripe(BODY + b"\n"), [WHSEC], change=body(lambda b: b.strip()))
seed("crlf", "paddle", "body_line_ends", paddle(b'{\n "a": 1\n}\n'), change=body(lambda b: b.replace(b"\n", b"\r\n")))
seed("lf", "shopify", "body_line_ends", shopify(b'{\r\n "a": 1\r\n}\r\n'), change=body(lambda b: b.replace(b"\r\n", b"\n")))
seed("bom", "slack", "body_bom", slack(), change=body(lambda b: b"\xef\xbb\xbf" + b))
seed("python-json", "github", "body_rewritten", github(), change=body(loaded()))
seed("pretty", "stripe", "body_rewritten", stripe(), [WHSEC], change=body(loaded(indent=2, ensure_ascii=False)))
seed("pretty-signed-compact-here", "shopify", "body_rewritten", shopify(loaded(indent=4, ensure_ascii=False)(BODY)), change=body(loaded(separators=(",", ":"), ensure_ascii=False)))
seed("sorted-keys-signed", "slack", "body_rewritten", slack(loaded(sort_keys=True, separators=(",", ":"), ensure_ascii=False)(BODY)), change=body(lambda _: BODY))
seed("unicode-escapes-signed", "paddle", "body_rewritten", paddle(loaded(separators=(",", ":"))(BODY)), change=body(lambda _: BODY))
seed("php-escapes-signed", "square", "body_rewritten", square(loaded(separators=(",", ":"))(BODY).replace(b"/", b"\\/")), change=body(lambda _: BODY))
seed("latin-1", "github", "body_charset", github(BODY.decode().encode("latin-1")), change=body(lambda b: b.decode("latin-1").encode()))
seed("still-gzipped", "shopify", "body_coding", shopify(), change=body(gzip.compress))
seed("gunzipped", "github", "body_coding", github(gzip.compress(BODY)), change=lambda m: (body(lambda _: BODY)(m), m["headers"].append(["Content-Encoding", "gzip"])))
seed("lambda-base64", "stripe", "body_base64", stripe(), [WHSEC], change=body(base64.b64encode))
seed("json-in-json", "github", "body_json_string", github(), change=body(lambda b: json.dumps(b.decode()).encode()))
seed("form-as-json", "slack", "body_form_parsed", slack(b"token=x&text=hi+there&user=U1") | {"headers": [["Content-Type", "application/x-www-form-urlencoded"]] + slack(b"token=x&text=hi+there&user=U1")["headers"][1:]}, change=body(lambda b: json.dumps(dict(urllib.parse.parse_qsl(b.decode()))).encode()))
seed("form-with-other-escapes", "slack", "body_form_parsed", slack(b"text=hi%20there%2f&user=U1") | {"headers": [["Content-Type", "application/x-www-form-urlencoded"]] + slack(b"text=hi%20there%2f&user=U1")["headers"][1:]}, change=body(lambda b: urllib.parse.urlencode(urllib.parse.parse_qsl(b.decode())).encode()))
seed("body-read-already", "github", "body_empty", github(), change=lambda m: (m["headers"].append(["Content-Length", str(len(BODY))]), body(lambda _: b"")(m)))
seed("cut-on-the-way", "github", "body_length", github(), change=lambda m: (m["headers"].append(["Content-Length", str(len(BODY))]), body(lambda b: b[:40])(m)))

# URLs
seed("http-behind-tls", "twilio", "url_scheme", twilio(), change=url(URL.replace("https", "http")))
seed("inner-host", "square", "url_host", square(), change=lambda m: (url("https://10.0.0.7:3000/in?b=2&a=1")(m), m["headers"].append(["X-Forwarded-Host", "hooks.example.com"])))
seed("port", "hubspot", "url_port", hubspot(), change=url(URL.replace("example.com", "example.com:8443")))
seed("slash-at-the-end", "square", "url_slash", square(url="https://hooks.example.com/in"), change=url("https://hooks.example.com/in/"))
seed("query-order", "twilio", "url_query_order", twilio(), change=url("https://hooks.example.com/in?a=1&b=2"))
seed("query-encoding", "hubspot", "url_encoding", hubspot(url="https://hooks.example.com/in?n=a%20b"), change=url("https://hooks.example.com/in?n=a+b"))
seed("query-left-out", "square", "url_query", square(signed_url="https://hooks.example.com/in"))
seed("prefix-taken-off", "square", "url_path", square(), change=lambda m: (url("https://hooks.example.com/?b=2&a=1")(m), m["headers"].append(["X-Original-URI", "/in?b=2&a=1"])))
seed("redirected-as-get", "hubspot", "method_changed", hubspot(), change=lambda m: m.update(method="GET"))

# times and ids
seed("sender-clock-behind", "stripe", "time_skew", stripe(at=NOW - 431), [WHSEC], reason="timestamp_stale")
seed("sender-clock-ahead", "slack", "time_skew", slack(at=NOW + 3600), reason="timestamp_future")
seed("milliseconds-in-the-header", "slack", "time_unit", slack(at=NOW * 1000))
seed("milliseconds-signed", "paddle", "time_unit", paddle(at=NOW * 1000), change=header("Paddle-Signature", lambda v: v.replace("000;", ";")))
seed("seconds-where-ms-are-due", "hubspot", "time_unit", hubspot(at=NOW))
seed("time-changed", "slack", "time_changed", slack(), change=header("X-Slack-Request-Timestamp", lambda v: str(int(v) + 42)))
seed("time-rewritten-by-a-proxy", "standardwebhooks", "time_changed", standard(), [WHSEC], change=lambda m: (m["headers"].append(["X-Sent-At", str(NOW)]), header("webhook-timestamp", lambda v: str(int(v) + 200))(m)))
seed("time-missing", "slack", "time_missing", slack(), change=drop("X-Slack-Request-Timestamp"), reason="timestamp_missing")
seed("id-missing", "standardwebhooks", "id_missing", standard(), [WHSEC], change=drop("webhook-id"), reason="signature_missing")
seed("id-renamed", "svix", "id_missing", standard("svix"), [WHSEC], change=rename("svix-id", "X-Message-Id"))
seed("id-changed", "standardwebhooks", "id_changed", standard(), [WHSEC], change=lambda m: (m["headers"].append(["X-Original-Id", "msg_p5jXN8AQM9LWM0D4loKWxJek"]), header("webhook-id", lambda v: "req-1")(m)))

# tokens
seed("bearer-before-the-token", "gitlab", "token_form", request(X_Gitlab_Token="Bearer " + SECRET))
seed("token-in-another-header", "telegram", "signature_renamed", request(X_Token_From_Telegram=SECRET))
seed("token-with-newline", "gitlab", "secret_blank", request(X_Gitlab_Token=SECRET), [SECRET + "\n"])

# accept cases that the providers' own libraries signed, damaged


def vector(provider, id):
    cases = json.loads((HERE / "../vectors" / f"{provider}.json").read_text())
    case = next(case for case in cases if case["id"] == f"{provider}/{id}")
    made = {"method": case["method"], "url": case["url"], "headers": case["headers"], "body": base64.b64decode(case["body_base64"])}
    return made, case


for provider, id in [("razorpay", "accept-basic"), ("line", "accept-basic"), ("linear", "accept-basic"), ("zoom", "accept-basic"), ("dropbox", "accept-basic"), ("workos", "accept-basic")]:
    made, case = vector(provider, id)
    seed("newline-added", provider, "body_newline_added", made, case["secrets"], change=body(lambda b: b + b"\n"), now=case["now"])
    seed("secret-with-newline", provider, "secret_blank", made, [case["secrets"][0] + "\n"], now=case["now"])

(HERE / "mistakes.json").write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE) + "\n]\n")
print(len(TABLE), "mistakes,", len({row["cause"] for row in TABLE}), "causes,", len({row["provider"] for row in TABLE}), "providers")
