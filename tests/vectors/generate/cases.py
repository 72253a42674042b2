"""The kinds of cases, each made for every scheme that it fits."""

import base64
import hashlib
import json
import re

from schemes import NOW, Basic, Box, Mac, Token, encode

UPPER = lambda text: re.sub(r"[a-z]", lambda m: m[0].upper(), text)


def rewritten(body: bytes) -> bytes:
    return json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()


class Kinds:
    """Collects a scheme's cases: (kind, expect, why, request, secrets, now)."""

    def __init__(self, scheme):
        self.scheme = scheme
        self.out = []

    def add(self, kind, expect, why, request, secrets=None, now=NOW, **more):
        if kind in self.scheme.skip or f"{expect}-{kind}" in self.scheme.skip:
            return
        secrets = [self.scheme.secret(1)] if secrets is None else secrets
        self.out.append((f"{expect}-{kind}", expect, why, request, secrets, now, more))

    def accept(self, kind, why, request, secrets=None, now=NOW, **more):
        self.add(kind, "accept", why, request, secrets, now, **more)

    def reject(self, kind, why, request, secrets=None, now=NOW, **more):
        self.add(kind, "reject", why, request, secrets, now, **more)


def of(scheme):
    kinds = Kinds(scheme)
    if isinstance(scheme, (Token, Basic)):
        credentials(kinds)
    elif hasattr(scheme, "own"):
        if getattr(scheme, "kind", None):
            common(kinds)
        scheme.own(kinds)
    else:
        common(kinds)
        macs(kinds)
    return kinds.out


def common(kinds):
    """What fits every scheme that signs the body."""
    s = kinds.scheme
    other, mine = s.secret(2), s.secret(1)
    plain = s.signed(s.body(0))
    kinds.accept("basic", "a plain well-signed delivery", plain)
    kinds.accept("tricky-body", "a body that does not survive being parsed and written again", s.signed(s.body(1)))
    kinds.accept("crlf-body", "a body in lines, with CR LF and an end of line", s.signed(s.body(2)))
    kinds.accept("header-case", "header names in capital letters", plain.copy(headers=[[UPPER(k), v] for k, v in plain.headers]))
    kinds.accept("header-case-low", "header names in small letters", plain.copy(headers=[[k.lower(), v] for k, v in plain.headers]))
    if s.public_key is None and not isinstance(s, Box):
        kinds.accept("second-secret", "two secrets are configured, the second one signed", plain, [other, mine])
        kinds.reject("wrong-key", "signed with a key that is not configured", s.signed(s.body(0), secret=other))
        kinds.reject("two-wrong-keys", "two secrets are configured, neither signed", s.signed(s.body(0), secret=s.secret(3)), [other, mine])
    kinds.reject("body-changed", "one letter of the body was changed", plain.copy(body=plain.body.replace(b"plain", b"plaiN")))
    kinds.reject("body-lengthened", "bytes were added to the body", plain.copy(body=plain.body + b"{}"))
    kinds.reject("body-newline", "a line feed was added to the body", plain.copy(body=plain.body + b"\n"))
    kinds.reject("body-emptied", "the body was taken away", plain.copy(body=b""))
    kinds.reject("body-cut", "the body's last byte was taken away", plain.copy(body=plain.body[:-1]))
    tricky = s.signed(s.body(1))
    if tricky.body.startswith(b"{"):
        kinds.reject("body-rewritten", "the body was parsed and written again", tricky.copy(body=rewritten(tricky.body)))
    lines = s.signed(s.body(2))
    kinds.reject("body-line-ends", "the body's CR LF became LF", lines.copy(body=lines.body.replace(b"\r\n", b"\n")))
    kinds.reject("body-other", "another good body under this signature", plain.copy(body=s.body(3)))


def macs(kinds):
    s = kinds.scheme
    header = s.header or "BOX-SIGNATURE-PRIMARY"
    mine = s.secret(1)
    plain = s.signed(s.body(0))
    size = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}[s.algorithm]

    def with_tags(*tags, **over):
        return s.signed(s.body(0), tags=list(tags), **over)

    wrong = encode(s.encoding, hashlib.new(s.algorithm, b"wrong").digest())
    right = encode(s.encoding, s.tag(s.signed(s.body(0)), mine, *read_back(s, plain)))

    # the signature
    missing = plain.copy()
    missing.put(header, None)
    kinds.reject("signature-missing", "the signature header is missing", missing)
    empty = plain.copy()
    empty.put(header, "")
    kinds.reject("signature-empty", "the signature header is empty", empty)
    kinds.reject("signature-none", "the signature is the empty text", with_tags(""))
    kinds.reject("signature-cut", "the signature lacks its last character", with_tags(right.rstrip("=")[:-1]))
    kinds.reject("signature-half", "the first half of the signature", with_tags(right[: len(right) // 2]))
    kinds.reject("signature-lengthened", "a character was added to the signature", with_tags(right + "0"))
    flipped = ("0" if right[5] != "0" else "1") if s.encoding == "hex" else ("A" if right[5] != "A" else "B")
    kinds.reject("signature-changed", "one character of the signature was changed", with_tags(right[:5] + flipped + right[6:]))
    kinds.reject("signature-wrong-encoding", "the right digest in another encoding", s.signed(s.body(0), encoding="base64" if s.encoding == "hex" else "hex"))
    kinds.reject("signature-is-secret", "the secret itself as signature", with_tags(mine))
    kinds.reject("signature-zero", "a signature of zeros", with_tags(encode(s.encoding, bytes(size))))
    kinds.reject("signature-word", "a signature that is no signature", with_tags("null"))
    other = s.draft(s.body(3))
    kinds.reject("signature-of-other-body", "the signature of another body", s.signed(s.body(0), over=other))
    kinds.reject("signature-of-empty-body", "the signature of an empty body", s.signed(s.body(0), over=s.draft(b"")))
    if not s.digest:
        kinds.reject("unkeyed-digest", "a digest without a key", with_tags(encode(s.encoding, hashlib.new(s.algorithm, plain.body).digest())))
        kinds.reject("empty-key", "signed with an empty key", with_tags(encode(s.encoding, __import__("hmac").new(b"", s.content(plain, *read_back(s, plain), ""), s.algorithm).digest())))
    weaker = "md5" if s.algorithm == "sha1" else "sha1"
    kinds.reject("other-algorithm", f"the same with {weaker}", s.signed(s.body(0), algorithm=weaker))
    stronger = "sha256" if s.algorithm in ("sha1", "sha512") else "sha512"
    kinds.reject("longer-algorithm", f"the same with {stronger}", s.signed(s.body(0), algorithm=stronger))
    if s.prefix or s.form:
        bare = plain.copy()
        bare.put(header, right)
        kinds.reject("signature-bare", "the signature without what stands around it", bare)
    if s.prefix:
        strange = plain.copy()
        strange.put(header, "md5=" + right)
        kinds.reject("unknown-prefix", "the signature behind another algorithm's name", strange)
    if s.form and s.form[0] == "list":
        version = s.form[2]
        unknown = version.replace("1", "9") if version else None
        if version:
            strange = plain.copy()
            strange.put(header, unknown + right)
            kinds.reject("unknown-version", "the right signature under a version that does not exist", strange)
            both = plain.copy()
            both.put(header, s.form[1].join([unknown + wrong, version + right]))
            kinds.accept("unknown-version-beside", "a version that does not exist stands beside a good signature", both)
        kinds.accept("second-signature", "two signatures, the second one is ours", with_tags(wrong, None))
        kinds.reject("two-wrong-signatures", "two signatures, none is ours", with_tags(wrong, wrong[::-1] if s.encoding == "hex" else wrong))
    if s.form and s.form[0] == "first-is-time":
        kinds.accept("second-signature", "two signatures, the second one is ours", with_tags(wrong, None))
        kinds.reject("two-wrong-signatures", "two signatures, none is ours", with_tags(wrong, wrong))
    if s.form and s.form[0] == "pairs":
        renamed = plain.copy()
        _, separator, assign, name = s.form
        renamed.edit(header, lambda value: value.replace(f"{name}{assign}{s.prefix}", f"zz{assign}{s.prefix}"))
        kinds.reject("unknown-version", "the right signature under a name that does not exist", renamed)
        if s.judges:
            kinds.accept("second-signature", "two signatures, the second one is ours", with_tags(wrong, None))
    if s.form is None and not isinstance(s, Box):
        twice = plain.copy()
        twice.headers.append([header, s.prefix + wrong])
        kinds.reject("two-headers", "two signature headers, the second one is wrong", twice)

    if isinstance(s, Box):
        boxes(kinds, plain)

    # the time
    if s.time:
        times(kinds, plain)
    if s.id_header:
        renamed = plain.copy()
        renamed.put(s.id_header, "msg_other")
        kinds.reject("id-changed", "the message's id was changed", renamed)
        missing = plain.copy()
        missing.put(s.id_header, None)
        kinds.reject("id-missing", "the message's id is missing", missing)
    if "{u}" in s.template:
        kinds.reject("url-changed", "the URL's path was changed", plain.copy(url=plain.url + "x"))
        kinds.reject("url-query", "a query was added to the URL", plain.copy(url=plain.url + "?a=1"))
        kinds.reject("url-host", "the same path on another host", plain.copy(url=plain.url.replace("hooks.", "other.")))
    if "{m}" in s.template:
        kinds.reject("method-changed", "the method was changed", plain.copy(method="PUT"))


def boxes(kinds, plain):
    """Two keys, each with its own header."""
    s = kinds.scheme
    first, second = s.secret(1), s.secret(2)
    primary = lambda secret: s.signed(s.body(0), secret=secret).get("BOX-SIGNATURE-PRIMARY")

    def with_headers(one, two):
        request = plain.copy()
        request.put("BOX-SIGNATURE-PRIMARY", one)
        request.put("BOX-SIGNATURE-SECONDARY", two)
        return request

    both = [first, second]
    kinds.accept("both", "both keys signed", with_headers(primary(first), primary(second)), both)
    kinds.accept("secondary", "the second key's signature is good, the first one's is of an older key", with_headers(primary(s.secret(3)), primary(second)), both)
    kinds.accept("primary", "the first key's signature is good, the second one's is of an older key", with_headers(primary(first), primary(s.secret(3))), both)
    kinds.reject("swapped", "each key's signature in the other's header", with_headers(primary(second), primary(first)), both)
    kinds.reject("secondary-in-primary", "the second key's signature in the first one's header", with_headers(primary(second), None), both)
    kinds.reject("two-wrong-keys", "neither key signed", with_headers(primary(s.secret(3)), primary(s.secret(3))), both)
    kinds.reject("wrong-key", "signed with a key that is not configured", with_headers(primary(second), None))


def read_back(s, request):
    """The time and id that a signed request carries."""
    t = None
    if s.time:
        t = request.get(s.time.header) if s.time.header else s.read(request)[0]
    return t, (request.get(s.id_header) if s.id_header else None)


def times(kinds, plain, alone=True):
    s = kinds.scheme
    time = s.time
    if time.past is not None:
        kinds.accept("just-inside", "a time just inside the tolerance", s.signed(s.body(0), at=NOW - time.past + 3))
        kinds.reject("stale", "a time just outside the tolerance", s.signed(s.body(0), at=NOW - time.past - 3))
        kinds.reject("very-stale", "a good delivery of a day ago", plain, now=NOW + 86_400)
    if time.future is not None:
        if time.future > 10:
            kinds.accept("ahead-inside", "a sender's clock that is ahead, inside the tolerance", s.signed(s.body(0), at=NOW + time.future - 3))
        kinds.reject("future", "a time too far ahead", s.signed(s.body(0), at=NOW + time.future + 3))

    def over(text):
        """The time is another one than was signed."""
        request = plain.copy()
        if time.header:
            request.put(time.header, text)
        else:
            was = s.read(plain)[0]
            request.edit(s.header, lambda value: value.replace(was, text, 1))
        return request

    kinds.reject("time-changed", "the time was changed after signing", over(moment_of(s, NOW + 1)))
    kinds.reject("time-word", "a time that is no time", over("now"))
    kinds.reject("time-empty", "an empty time", over(""))
    if time.unit == "s":
        kinds.reject("time-zeros", "the signed time with a zero in front", over("0" + moment_of(s, NOW)))
    if time.header:
        missing = plain.copy()
        missing.put(time.header, None)
        kinds.reject("time-missing", "the time's header is missing", missing)
    else:
        missing = plain.copy()
        was = s.read(plain)[0]
        missing.edit(s.header, lambda value: re.sub(rf"^{re.escape((time.field + '=') if time.field else '')}{was}[,;] ?", "", value))
        kinds.reject("time-missing", "the time is missing", missing)
    if alone and ("." in s.template or ":" in s.template):
        kinds.reject("time-not-signed", "the signature of the body alone", s.signed(s.body(0), tags=[encode(s.encoding, body_alone(s, plain))]))


def body_alone(s, request):
    import hmac

    return hmac.new(s.key(s.secret(1)), request.body, s.algorithm).digest()


def moment_of(s, at):
    from schemes import moment

    return moment(s.time.unit, at)


def credentials(kinds):
    s = kinds.scheme
    mine, other = s.secret(1), s.secret(2)
    plain = s.signed(s.body(0))
    basic = isinstance(s, Basic)
    query = getattr(s, "query", None)
    header = "Authorization" if basic else s.header
    kinds.accept("basic", "a plain delivery", plain)
    kinds.accept("body-not-covered", "the credential says nothing about the body", plain.copy(body=s.body(3)))
    kinds.accept("second-secret", "two secrets are configured, the second one was sent", plain, [other, mine])
    kinds.reject("wrong-secret", "a secret that is not configured", s.signed(s.body(0), secret=other))
    kinds.reject("two-wrong-secrets", "two secrets are configured, neither was sent", s.signed(s.body(0), secret=s.secret(3)), [other, mine])
    if not query:
        kinds.accept("header-case", "header names in capital letters", plain.copy(headers=[[UPPER(k), v] for k, v in plain.headers]))
        kinds.accept("header-case-low", "header names in small letters", plain.copy(headers=[[k.lower(), v] for k, v in plain.headers]))
        missing = plain.copy()
        missing.put(header, None)
        kinds.reject("missing", "no credential at all", missing)
        moved = missing.copy()
        moved.put("X-Other-Token", mine)
        kinds.reject("other-header", "the credential in another header", moved)
        twice = s.signed(s.body(0), secret=other)
        twice.headers.append([header, plain.get(header)])
        kinds.reject("two-headers", "two credentials, the second one is good", twice)
        kinds.reject("in-query", "the credential in the URL instead of the header", missing.copy(url=s.url + f"?token={mine}"))
    else:
        kinds.reject("missing", "no credential at all", plain.copy(url=s.url))
        kinds.reject("other-parameter", "the credential in another query parameter", plain.copy(url=f"{s.url}?tokens={mine}"))
        kinds.reject("in-path", "the credential in the path", plain.copy(url=f"{s.url}/{mine}"))
        kinds.reject("two-parameters", "two credentials, the second one is good", plain.copy(url=f"{s.url}?{query}={other}&{query}={mine}"))
        moved = plain.copy(url=s.url)
        moved.put("Authorization", f"Bearer {mine}")
        kinds.reject("in-header", "the credential in a header instead of the URL", moved)
    if basic:
        raw = lambda text: base64.b64encode(text.encode()).decode()
        user, word = mine.split(":", 1)

        def sends(value):
            request = plain.copy()
            request.put("Authorization", value)
            return request

        kinds.accept("scheme-case", "the scheme's name in small letters", sends("basic " + raw(mine)))
        for kind, why, value in [
            ("empty", "an empty header", ""),
            ("empty-pair", "empty credentials", "Basic "),
            ("no-scheme", "the credentials without the scheme's name", raw(mine)),
            ("bearer", "the credentials as a bearer token", "Bearer " + raw(mine)),
            ("not-encoded", "the credentials in plain text", "Basic " + mine),
            ("wrong-user", "another user with the right password", "Basic " + raw("root:" + word)),
            ("wrong-password", "the right user with another password", "Basic " + raw(user + ":password")),
            ("empty-password", "the right user without a password", "Basic " + raw(user + ":")),
            ("no-colon", "the user alone", "Basic " + raw(user)),
            ("swapped", "user and password changed places", "Basic " + raw(f"{word}:{user}")),
            ("password-cut", "the password lacks its last character", "Basic " + raw(mine[:-1])),
            ("password-lengthened", "a character was added to the password", "Basic " + raw(mine + "x")),
            ("password-case", "the password in capital letters", "Basic " + raw(f"{user}:{UPPER(word)}")),
        ]:
            kinds.reject(kind, why, sends(value))
        return
    for kind, why, secret in [
        ("empty", "an empty credential", ""),
        ("cut", "the credential lacks its last character", mine[:-1]),
        ("half", "the first half of the credential", mine[: len(mine) // 2]),
        ("lengthened", "a character was added to the credential", mine + "x"),
        ("doubled", "the credential twice", mine + mine),
        ("letter-case", "the credential in capital letters", UPPER(mine)),
        ("base64", "the credential in base64", base64.b64encode(mine.encode()).decode().rstrip("=")),
        ("digest", "the credential's digest", hashlib.sha256(mine.encode()).hexdigest()),
        ("word", "a word instead of the credential", "null"),
    ]:
        kinds.reject(kind, why, s.signed(s.body(0), secret=secret))
    if getattr(s, "prefix", ""):
        bare = plain.copy()
        bare.put(header, mine)
        kinds.reject("no-prefix", "the credential without what stands before it", bare)
        basic = plain.copy()
        basic.put(header, "Basic " + base64.b64encode(mine.encode()).decode())
        kinds.reject("other-scheme", "the credential under another authentication scheme", basic)
        kinds.reject("prefix-only", "only what stands before the credential", s.signed(s.body(0), secret=""))
