"""Tokens with claims (JWS compact), signatures by public keys, and what fits no pattern."""

import base64
import hashlib
import hmac
import json
import urllib.parse
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from schemes import NOW, Mac, Scheme, Time, encode, moment, seconds_of, seeded, text_secret


# -- keys that are always the same --


def prime(name: str) -> int:
    small = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    n = int.from_bytes(seeded(name, 128)) | (3 << 1022) | 1
    while True:
        n += 2
        if any(n % p == 0 for p in range(3, 2000, 2)):
            continue
        d, s = n - 1, 0
        while d % 2 == 0:
            d, s = d // 2, s + 1
        for base in small:
            x = pow(base, d, n)
            if x not in (1, n - 1) and not any((x := pow(x, 2, n)) == n - 1 for _ in range(s - 1)):
                break
        else:
            if (n - 1) % 65537:
                return n


def rsa_key(name: str):
    p, q = prime(f"{name} p"), prime(f"{name} q")
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def ec_key(name: str):
    return ec.derive_private_key(int.from_bytes(seeded(name, 31)), ec.SECP256R1())


def ed_key(name: str):
    return ed25519.Ed25519PrivateKey.from_private_bytes(seeded(name, 32))


KEYS = {}


def key_of(kind: str, name: str):
    if (kind, name) not in KEYS:
        KEYS[kind, name] = {"rsa": rsa_key, "ecdsa": ec_key, "ed25519": ed_key}[kind](name)
    return KEYS[kind, name]


def pem(key) -> str:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def url64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def jwk(key, kid: str) -> dict:
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        return {"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": url64(numbers.n.to_bytes(256)), "e": "AQAB"}
    return {"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": url64(numbers.x.to_bytes(32)), "y": url64(numbers.y.to_bytes(32))}


def sign_with(key, data: bytes, algorithm: str = "sha256", raw: bool = False) -> bytes:
    hashed = {"sha1": hashes.SHA1, "sha256": hashes.SHA256, "sha512": hashes.SHA512}[algorithm]()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashed)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        der = key.sign(data, ec.ECDSA(hashed, deterministic_signing=True))
        if not raw:
            return der
        r, s = decode_dss_signature(der)
        return r.to_bytes(32) + s.to_bytes(32)
    return key.sign(data)


# -- tokens --


@dataclass
class Jwt(Scheme):
    header: str = None
    prefix: str = ""
    algorithm: str = "HS256"
    # What the token says beside the body's digest; `None` removes a claim.
    claims: dict = field(default_factory=dict)
    body_claim: tuple = None  # name, encoding
    checks: tuple = ()  # of iss, aud, exp, iat, qsh
    issuer_param: str = None
    whole_body: bool = False  # the body itself is the token
    kid: str = None
    agrees: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.asymmetric():
            self.kid = "key-1"
            self.params = {**self.params, "jwks": {"keys": [jwk(self.key(1), "key-1"), jwk(self.key(2), "key-2")]}}

    def asymmetric(self):
        return not self.algorithm.startswith("HS")

    def key(self, n):
        return key_of("rsa" if self.algorithm.startswith("RS") else "ecdsa", f"{self.name} {n}")

    def claim_set(self, request, at, change):
        claims = {name: value(request, at) if callable(value) else value for name, value in self.claims.items()}
        if self.body_claim:
            name, encoding = self.body_claim
            claims[name] = encode(encoding, hashlib.sha256(request.body).digest())
        claims |= change or {}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, claims, secret, *, header=None, key=None, signature=None, algorithm=None):
        algorithm = algorithm or self.algorithm
        head = {"typ": "JWT", "alg": algorithm} | ({"kid": self.kid} if self.kid else {}) | (header or {})
        head = {name: value for name, value in head.items() if value is not None}
        signed = ".".join(url64(json.dumps(part, separators=(",", ":")).encode()) for part in (head, claims))
        if signature is None:
            if algorithm.startswith("HS"):
                signature = hmac.new(secret if isinstance(secret, bytes) else secret.encode(), signed.encode(), "sha" + algorithm[2:]).digest()
            else:
                signature = sign_with(key or self.key(1), signed.encode(), "sha" + algorithm[2:], raw=True)
        return f"{signed}.{url64(signature)}"

    def secrets(self):
        return [] if self.asymmetric() else [self.secret(1)]

    def secret(self, n):
        return text_secret(f"{self.name} {n}") + text_secret(f"{self.name} more {n}")[:10]

    def sign(self, request, secret, at, *, claims=None, over=None, **how):
        self.place(request, self.token(self.claim_set(over or request, at, claims), secret, **how))

    def place(self, request, token):
        if self.whole_body:
            request.body = token.encode()
        else:
            request.put(self.header, self.prefix + token if token is not None else None)

    def good(self, request, secret, now):
        value = request.body.decode() if self.whole_body else request.get(self.header) or ""
        if not value.startswith(self.prefix):
            return False
        token = value[len(self.prefix):]
        parts = token.split(".")
        if len(parts) != 3 or not all(parts):
            return False
        try:
            head, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in parts[:2])
        except ValueError:
            return False
        if head.get("alg") != self.algorithm:
            return False
        if self.algorithm.startswith("HS"):
            wanted = url64(hmac.new((secret or "").encode(), ".".join(parts[:2]).encode(), "sha" + self.algorithm[2:]).digest())
            if parts[2] != wanted:
                return False
        elif self.token_signature(parts) is False:
            return False
        if "iss" in self.checks and claims.get("iss") != self.claims["iss"]:
            return False
        if "aud" in self.checks and claims.get("aud") != self.claims["aud"]:
            return False
        if "exp" in self.checks and (not isinstance(claims.get("exp"), int) or claims["exp"] < now):
            return False
        if "nbf" in claims and claims["nbf"] > now + 60:
            return False
        if "iat" in self.checks and abs(now - claims.get("iat", 0)) > 300:
            return False
        if "qsh" in self.checks and claims.get("qsh") != query_hash(request, None):
            return False
        if self.body_claim and claims.get(self.body_claim[0]) != encode(self.body_claim[1], hashlib.sha256(request.body).digest()):
            return False
        return True

    def token_signature(self, parts):
        return parts[2] == url64(sign_with(self.key(1), ".".join(parts[:2]).encode(), "sha" + self.algorithm[2:], raw=True))

    def own(self, kinds):
        mine = self.secret(1)
        secrets = self.secrets()
        s = self

        def made(body=None, **how):
            return s.signed(s.body(0) if body is None else body, **how)

        def accept(kind, why, request, configured=None, now=NOW, **more):
            kinds.accept(kind, why, request, secrets if configured is None else configured, now, **more)

        def reject(kind, why, request, configured=None, now=NOW, **more):
            kinds.reject(kind, why, request, secrets if configured is None else configured, now, **more)

        plain = made()
        value = plain.body.decode() if s.whole_body else plain.get(s.header)[len(s.prefix):]

        def holds(token, raw=False):
            request = plain.copy()
            if s.whole_body:
                request.body = token.encode()
            else:
                request.put(s.header, token if raw else s.prefix + token)
            return request

        accept("basic", "a plain well-signed delivery", plain)
        head, claims, signature = value.split(".")
        if not s.whole_body:
            low = plain.copy(headers=[[name.lower(), text] for name, text in plain.headers])
            accept("header-case", "header names in small letters", low)
            missing = plain.copy()
            missing.put(s.header, None)
            reject("missing", "no token at all", missing)
            twice = plain.copy()
            twice.headers.append([s.header, s.prefix + value[:-4] + "AAAA"])
            reject("two-headers", "two tokens, the second one is bad", twice)
        if s.prefix:
            reject("no-prefix", "the token without what stands before it", holds(value, raw=True))
            reject("other-scheme", "the token under another authentication scheme", holds("Basic " + value, raw=True))
        if not s.asymmetric():
            accept("second-secret", "two secrets are configured, the second one signed", plain, [s.secret(2), mine])
            reject("wrong-key", "signed with a key that is not configured", made(secret=s.secret(2)))
            reject("secret-as-token", "the secret itself as token", holds(mine))
            for algorithm in ("HS512", "HS384"):
                reject(f"other-algorithm-{algorithm.lower()}", "another algorithm than is allowed", made(algorithm=algorithm))
        else:
            accept("second-key", "signed with the set's second key, which it names", made(header={"kid": "key-2"}, key=s.key(2)))
            reject("wrong-key", "signed with the set's second key, naming the first one", made(key=s.key(2)))
            reject("unknown-key", "a key that is not in the set", made(key=s.key(3)))
            reject("unknown-kid", "a key id that is not in the set", made(header={"kid": "key-9"}))
            reject("hmac-by-public-key", "HS256 with the public key as secret", made(algorithm="HS256", secret=pem(s.key(1)).encode()))
            reject("own-jwk", "the token brings its own key", made(key=s.key(3), header={"jwk": jwk(s.key(3), "key-1")}))
        reject("alg-none", "a token without a signature that says so", holds(f"{url64(json.dumps({'typ': 'JWT', 'alg': 'none'}).encode())}.{claims}."))
        reject("alg-none-signed", "alg none with the old signature", made(header={"alg": "none"}))
        reject("alg-None", "alg None in another letter case", made(header={"alg": "NonE"}, signature=b"\0"))
        reject("alg-missing", "a header without an algorithm", made(header={"alg": None}))
        reject("empty", "an empty token", holds(""))
        reject("word", "a word instead of a token", holds("token"))
        reject("signature-empty", "the signature was taken away", holds(f"{head}.{claims}."))
        reject("signature-gone", "the token has two parts", holds(f"{head}.{claims}"))
        reject("four-parts", "the token has four parts", holds(f"{value}.{signature}"))
        reject("signature-cut", "half of the signature", holds(f"{head}.{claims}.{signature[: len(signature) // 2]}"))
        reject("signature-changed", "one character of the signature was changed", holds(f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"))
        forged = url64(json.dumps(json.loads(base64.urlsafe_b64decode(claims + "==")) | {"admin": True}).encode())
        reject("claims-changed", "a claim was added after signing", holds(f"{head}.{forged}.{signature}"))
        reject("claims-not-json", "claims that are no JSON, signed", holds(self.resigned(head, url64(b"claims"), mine)))
        if "iss" in s.checks:
            reject("issuer-wrong", "another issuer", made(claims={"iss": "somebody"}), reference="iss" in s.skip)
            reject("issuer-missing", "no issuer", made(claims={"iss": None}), reference="iss" in s.skip)
        if "aud" in s.checks:
            reject("audience-wrong", "another audience", made(claims={"aud": "https://other.example.com"}))
            reject("audience-missing", "no audience", made(claims={"aud": None}))
            accept("audience-list", "the audience is one of several", made(claims={"aud": ["https://other.example.com", s.claims["aud"]]}))
        if "exp" in s.checks:
            reject("expired", "a token that ran out an hour ago", made(claims={"exp": NOW - 3600}), reference="exp" in s.skip)
            reject("expiry-missing", "a token that never runs out", made(claims={"exp": None}), reference="no-exp" in s.skip)
            reject("expiry-word", "an expiry that is no number", made(claims={"exp": "tomorrow"}), reference="exp" in s.skip)
        if "iat" in s.checks:
            reject("stale", "a token of an hour ago", made(claims={"iat": NOW - 3600}), reference="iat" in s.skip)
        if s.claims:
            reject("not-yet", "a token that counts from tomorrow", made(claims={"nbf": NOW + 86_400}), reference="nbf" in s.skip)
        if "qsh" in s.checks:
            reject("query-hash-missing", "no digest of the query", made(claims={"qsh": None}))
            reject("query-hash-wrong", "the digest of another query", made(claims={"qsh": hashlib.sha256(b"GET&/&").hexdigest()}))
            reject("url-changed", "another path under this token", plain.copy(url=plain.url.replace("/in/", "/out/")))
            reject("query-changed", "a parameter was added to the query", plain.copy(url=plain.url + "&admin=1"))
            reject("method-changed", "another method under this token", plain.copy(method="PUT"))
            accept("query-order", "the query's parameters in another order", plain.copy(url=plain.url.replace("b=2&a=1", "a=1&b=2")))
        if s.body_claim:
            name, encoding = s.body_claim
            accept("tricky-body", "a body that does not survive being parsed and written again", made(s.body(1)))
            accept("crlf-body", "a body in lines, with CR LF and an end of line", made(s.body(2)))
            reject("body-changed", "one letter of the body was changed", plain.copy(body=plain.body.replace(b"plain", b"plaiN")))
            reject("body-lengthened", "bytes were added to the body", plain.copy(body=plain.body + b"{}"))
            reject("body-newline", "a line feed was added to the body", plain.copy(body=plain.body + b"\n"))
            reject("body-emptied", "the body was taken away", plain.copy(body=b""))
            reject("body-other", "another body under this token", plain.copy(body=s.body(3)))
            reject("digest-missing", "the token does not name the body", made(claims={name: None}))
            reject("digest-empty", "the digest is the empty text", made(claims={name: ""}))
            digest = hashlib.sha256(plain.body).digest()
            reject("digest-encoding", "the body's digest in another encoding", made(claims={name: encode("base64" if encoding == "hex" else "hex", digest)}))
            reject("digest-weaker", "the body's SHA-1", made(claims={name: encode(encoding, hashlib.sha1(plain.body).digest())}))
        elif not s.whole_body:
            accept("body-not-covered", "the token says nothing about the body", plain.copy(body=s.body(3)))

    def resigned(self, head, claims, secret):
        signed = f"{head}.{claims}".encode()
        if self.asymmetric():
            return f"{head}.{claims}.{url64(sign_with(self.key(1), signed, 'sha' + self.algorithm[2:], raw=True))}"
        return f"{head}.{claims}.{url64(hmac.new(secret.encode(), signed, 'sha' + self.algorithm[2:]).digest())}"


def query_hash(request, _):
    """Atlassian's digest of method, path and sorted query."""
    at = urllib.parse.urlsplit(request.url)
    query: dict = {}
    for name, value in urllib.parse.parse_qsl(at.query, keep_blank_values=True):
        query.setdefault(name, []).append(value)
    quote = lambda text: urllib.parse.quote(text, safe="-_.~")
    pairs = [f"{quote(name)}={','.join(quote(value) for value in sorted(values))}" for name, values in sorted(query.items(), key=lambda item: quote(item[0])) if name != "jwt"]
    return hashlib.sha256(f"{request.method}&{at.path}&{'&'.join(pairs)}".encode()).hexdigest()


# -- signatures by public keys --


@dataclass
class Signature(Mac):
    """As a MAC, by a private key; `handed` is the form in which the provider hands the public one out."""

    kind: str = "ed25519"
    handed: str = "pem"
    agrees: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.public_key = self.public(1)

    def key_pair(self, n):
        return key_of(self.kind, f"{self.name} {n}")

    def public(self, n):
        public = self.key_pair(n).public_key()
        if self.handed == "pem":
            return pem(self.key_pair(n))
        if self.handed == "spki":
            return base64.b64encode(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).decode()
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return raw.hex() if self.handed == "hex" else base64.b64encode(raw).decode()

    def secret(self, n):
        return f"key {n}"

    def tag(self, request, secret, t, i, algorithm=None):
        return sign_with(self.key_pair(int(secret.split()[1])), self.content(request, t, i, ""), algorithm or self.algorithm)

    def good(self, request, secret, now):
        return super().good(request, "key 1", now)

    def own(self, kinds):
        s = self
        plain = s.signed(s.body(0))
        right = s.read(plain)[1][0]
        add = lambda kind, why, request, now=NOW: kinds.reject(kind, why, request, [], now)
        kinds.out = [(kind, expect, why, request, [], now, more) for kind, expect, why, request, _, now, more in kinds.out]

        def with_tag(text):
            return s.signed(s.body(0), tags=[text])

        missing = plain.copy()
        missing.put(s.header, None)
        add("signature-missing", "the signature header is missing", missing)
        empty = plain.copy()
        empty.put(s.header, "")
        add("signature-empty", "the signature header is empty", empty)
        add("wrong-key", "signed with another private key", s.signed(s.body(0), secret=s.secret(2)))
        add("signature-cut", "half of the signature", with_tag(right[: len(right) // 2]))
        flip = lambda at: right[:at] + ("0" if right[at] != "0" else "1") + right[at + 1:]
        add("signature-changed", "one character of the signature was changed", with_tag(flip(9)))
        add("signature-changed-late", "one character near the signature's end was changed", with_tag(flip(len(right) - 9)))
        add("signature-wrong-encoding", "the signature in another encoding", s.signed(s.body(0), encoding="base64" if s.encoding == "hex" else "hex"))
        add("signature-zero", "a signature of zeros", with_tag(encode(s.encoding, bytes(64))))
        add("signature-word", "a signature that is no signature", with_tag("null"))
        add("signature-of-other-body", "the signature of another body", s.signed(s.body(0), over=s.draft(s.body(3))))
        add("signature-of-empty-body", "the signature of an empty body", s.signed(s.body(0), over=s.draft(b"")))
        add("public-key-as-signature", "the public key as signature", with_tag(s.public_key.replace("\n", "")[:88]))
        add("hmac-by-public-key", "an HMAC with the public key as secret", with_tag(encode(s.encoding, hmac.new(s.public_key.encode(), s.content(plain, *back(s, plain), ""), "sha256").digest())))
        if s.kind != "ed25519":
            add("other-algorithm", "the signature over another digest", s.signed(s.body(0), algorithm="sha1" if s.algorithm != "sha1" else "sha256"))
            add("longer-algorithm", "the signature over a longer digest", s.signed(s.body(0), algorithm="sha512"))
        twice = plain.copy()
        twice.headers.append([s.header, encode(s.encoding, bytes(64))])
        add("two-headers", "two signature headers, the second one is bad", twice)
        if s.time:
            from cases import times

            class Bare:
                scheme = s
                accept = staticmethod(lambda kind, why, request, secrets=None, now=NOW: kinds.accept(kind, why, request, [], now))
                reject = staticmethod(lambda kind, why, request, secrets=None, now=NOW: kinds.reject(kind, why, request, [], now))

            times(Bare, plain, alone=False)
        if s.id_header:
            renamed = plain.copy()
            renamed.put(s.id_header, "msg_other")
            add("id-changed", "the message's id was changed", renamed)
            gone = plain.copy()
            gone.put(s.id_header, None)
            add("id-missing", "the message's id is missing", gone)


@dataclass
class Travis(Signature):
    """Travis CI signs the form field `payload`, decoded."""

    content_type: str = "application/x-www-form-urlencoded"

    def body(self, n):
        return urllib.parse.urlencode({"payload": super().body(n)}).encode()

    def content(self, request, t, i, secret):
        return urllib.parse.parse_qs(request.body.decode(), keep_blank_values=True).get("payload", [""])[0].encode()


def back(s, request):
    from cases import read_back

    return read_back(s, request)


# -- what fits no pattern --


@dataclass
class Graph(Scheme):
    """Microsoft Graph: every notification of a request names the subscription's `clientState`. It signs nothing."""

    def note(self, state, **more):
        return {"subscriptionId": "7f105c7d-2dc5-4530-97cd-4e7ae6534c07", "clientState": state, "changeType": "created", "resource": "Users/u/Messages/m"} | more

    def sign(self, request, secret, at, **_):
        request.body = json.dumps({"value": [self.note(secret)]}).encode()

    def good(self, request, secret, now):
        try:
            notes = json.loads(request.body)["value"]
            return bool(notes) and isinstance(notes, list) and all(note["clientState"] == secret for note in notes)
        except (ValueError, KeyError, TypeError):
            return False

    def own(self, kinds):
        mine, other = self.secret(1), self.secret(2)

        def holds(*states, whole=None):
            notes = [self.note(state) if not isinstance(state, dict) else state for state in states]
            return self.draft(json.dumps(whole if whole is not None else {"value": notes}).encode())

        kinds.out = []
        kinds.accept("basic", "one notification", holds(mine))
        kinds.accept("several", "three notifications", holds(mine, mine, mine))
        kinds.accept("second-secret", "two states are configured, the second one was sent", holds(mine), [other, mine])
        kinds.accept("escaped", "the state is written with escapes", self.draft(holds(mine).body.replace(mine[:1].encode(), f"\\u{ord(mine[0]):04x}".encode())))
        none = self.note(mine)
        del none["clientState"]
        for kind, why, request in [
            ("wrong-state", "another state", holds(other)),
            ("one-of-two", "the second notification has another state", holds(mine, other)),
            ("first-of-two", "the first notification has another state", holds(other, mine)),
            ("missing", "the notification has no state", holds(none)),
            ("missing-in-second", "the second notification has no state", holds(mine, none)),
            ("empty", "the state is the empty text", holds("")),
            ("null", "the state is null", holds(None)),
            ("cut", "the state lacks its last character", holds(mine[:-1])),
            ("lengthened", "a character was added to the state", holds(mine + "x")),
            ("letter-case", "the state in capital letters", holds(mine.upper())),
            ("array", "the state is in an array", holds({**self.note(mine), "clientState": [mine]})),
            ("no-notifications", "a request without a notification", holds()),
            ("no-value", "a request without `value`", holds(whole={"clientState": mine})),
            ("value-object", "`value` is no array", holds(whole={"value": self.note(mine)})),
            ("empty-body", "an empty body", self.draft(b"")),
            ("not-json", "a body that is no JSON", self.draft(f"clientState={mine}".encode())),
            ("state-in-header", "the state in a header", self.header_state(holds(none), mine)),
            ("state-in-query", "the state in the URL", holds(none).copy(url=f"{self.url}?clientState={mine}")),
        ]:
            kinds.reject(kind, why, request)

    def header_state(self, request, state):
        request.put("clientState", state)
        return request


@dataclass
class DropboxSign(Scheme):
    """Dropbox Sign: the form field `json` holds an event whose hash covers its time and type alone."""

    content_type: str = "application/x-www-form-urlencoded"

    def made(self, secret, change=None, outer=None):
        event = {"event_time": "1760000000", "event_type": "signature_request_signed", "event_metadata": {"related_signature_id": "5f2c"}}
        event["event_hash"] = hmac.new(secret.encode(), (event["event_time"] + event["event_type"]).encode(), "sha256").hexdigest()
        event |= change or {}
        event = {name: value for name, value in event.items() if value is not None}
        return self.draft(urllib.parse.urlencode({"json": json.dumps({"event": event, **(outer or {})})}).encode())

    def signed(self, body, secret=None, at=NOW, **_):
        return self.made(secret or self.secret(1))

    def body(self, n):
        return b""

    def good(self, request, secret, now):
        try:
            event = json.loads(urllib.parse.parse_qs(request.body.decode(), strict_parsing=True)["json"][0])["event"]
            return event["event_hash"] == hmac.new(secret.encode(), (event["event_time"] + event["event_type"]).encode(), "sha256").hexdigest()
        except (ValueError, KeyError, TypeError):
            return False

    def own(self, kinds):
        mine, other = self.secret(1), self.secret(2)
        good = self.made(mine)
        right = json.loads(urllib.parse.parse_qs(good.body.decode())["json"][0])["event"]["event_hash"]
        kinds.out = []
        kinds.accept("basic", "a plain well-signed event", good)
        kinds.accept("second-secret", "two secrets are configured, the second one signed", good, [other, mine])
        kinds.accept("rest-not-covered", "what stands beside the event is not signed", self.made(mine, outer={"account_guid": "63522885f9261e2b04eea043933ee7313eb674fd"}))
        for kind, why, request in [
            ("wrong-key", "signed with a key that is not configured", self.made(other)),
            ("time-changed", "the time was changed", self.made(mine, {"event_time": "1760000001"})),
            ("type-changed", "the type was changed", self.made(mine, {"event_type": "signature_request_declined"})),
            ("hash-missing", "the hash is missing", self.made(mine, {"event_hash": None})),
            ("hash-empty", "the hash is empty", self.made(mine, {"event_hash": ""})),
            ("hash-cut", "the hash lacks its last character", self.made(mine, {"event_hash": right[:-1]})),
            ("hash-lengthened", "a character was added to the hash", self.made(mine, {"event_hash": right + "0"})),
            ("hash-base64", "the hash in another encoding", self.made(mine, {"event_hash": base64.b64encode(bytes.fromhex(right)).decode()})),
            ("hash-is-secret", "the secret itself as hash", self.made(mine, {"event_hash": mine})),
            ("hash-of-digest", "a digest without a key", self.made(mine, {"event_hash": hashlib.sha256(b"1760000000signature_request_signed").hexdigest()})),
            ("hash-sha1", "the same with sha1", self.made(mine, {"event_hash": hmac.new(mine.encode(), b"1760000000signature_request_signed", "sha1").hexdigest()})),
            ("time-missing", "the time is missing", self.made(mine, {"event_time": None})),
            ("type-missing", "the type is missing", self.made(mine, {"event_type": None})),
            ("empty-body", "an empty body", good.copy(body=b"")),
            ("no-field", "a form without the field", good.copy(body=b"x=1")),
            ("not-json", "the field is no JSON", good.copy(body=b"json=event")),
        ]:
            kinds.reject(kind, why, request)


@dataclass
class Introspection(Scheme):
    """RFC 7662: the issuer's answers stand in the case, by token."""

    def secret(self, n):
        return f"gate{n}:" + text_secret(f"{self.name} {n}")

    def tokens(self):
        return {kind: "tok_" + text_secret(f"{self.name} {kind}") for kind in ("good", "ended", "foreign", "later", "unknown", "other")}

    def answers(self):
        tokens = self.tokens()
        active = {"active": True, "iss": self.params["issuer"], "client_id": "sender", "token_type": "Bearer", "exp": NOW + 300}
        return {
            tokens["good"]: active,
            tokens["other"]: active | {"client_id": "another", "scope": "hooks"},
            tokens["ended"]: {"active": False},
            tokens["foreign"]: active | {"iss": "https://other.example.com"},
            tokens["later"]: active | {"nbf": NOW + 86_400},
        }

    def sign(self, request, secret, at, token=None, **_):
        request.put("Authorization", "Bearer " + (token or self.tokens()["good"]))

    def good(self, request, secret, now):
        kind, _, token = (request.get("Authorization") or "").partition(" ")
        answer = self.answers().get(token, {"active": False})
        return kind.lower() == "bearer" and answer["active"] is True and answer["iss"] == self.params["issuer"] and answer.get("nbf", 0) <= now

    def own(self, kinds):
        tokens = self.tokens()
        plain = self.signed(self.body(0))
        more = {"params": {"introspection": self.answers()}}

        def sends(value):
            request = plain.copy()
            request.put("Authorization", value)
            return request

        good = tokens["good"]
        for kind, why, request in [
            ("basic", "the issuer knows the token", plain),
            ("other-token", "another token that the issuer knows", sends("Bearer " + tokens["other"])),
            ("scheme-case", "the scheme's name in small letters", sends("bearer " + good)),
            ("header-case", "header names in small letters", plain.copy(headers=[[name.lower(), value] for name, value in plain.headers])),
            ("body-not-covered", "the token says nothing about the body", plain.copy(body=self.body(3))),
        ]:
            kinds.accept(kind, why, request, **more)
        twice = plain.copy()
        twice.headers.append(["Authorization", "Bearer " + tokens["unknown"]])
        for kind, why, request in [
            ("inactive", "the issuer says that the token is not active", sends("Bearer " + tokens["ended"])),
            ("unknown", "the issuer does not know the token", sends("Bearer " + tokens["unknown"])),
            ("issuer-wrong", "an active token of another issuer", sends("Bearer " + tokens["foreign"])),
            ("not-yet", "a token that counts from tomorrow", sends("Bearer " + tokens["later"])),
            ("missing", "no token at all", sends(None)),
            ("empty", "an empty header", sends("")),
            ("prefix-only", "a scheme without a token", sends("Bearer ")),
            ("no-prefix", "the token without the scheme's name", sends(good)),
            ("other-scheme", "the token under another authentication scheme", sends("Basic " + good)),
            ("cut", "the token lacks its last character", sends("Bearer " + good[:-1])),
            ("lengthened", "a character was added to the token", sends("Bearer " + good + "x")),
            ("letter-case", "the token in capital letters", sends("Bearer " + good.upper())),
            ("account", "the gate's own account as token", sends("Bearer " + self.secret(1).replace(":", "."))),
            ("two-headers", "two tokens, the second one is unknown", twice),
            ("in-query", "the token in the URL", sends(None).copy(url=f"{self.url}?access_token={good}")),
        ]:
            kinds.reject(kind, why, request, **more)
