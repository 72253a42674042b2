"""Makes ../<provider>.json for every provider of providers.py. Run it with ./run; it needs no network and always writes the same.

A case is written only where every judge says what the case expects: a library that lets something pass makes no case of it.
"""

import base64
import json
import pathlib
import re
import sys

import cases
from judges import Reference
from providers import schemes
from schemes import NOW

OUT = pathlib.Path(__file__).parent.parent
# Only the names: a provider without a preset gets no file.
PRESETS = set(re.findall(r"^\[([a-z0-9-]+)\]$", (OUT.parent.parent / "src/verify/providers.toml").read_text(), re.M))


def storable(request):
    """What can stand in HTTP: header values of visible ASCII, no blanks around them."""
    return all(re.fullmatch(r"[!-~]([ -~]*[!-~])?|", value) for _, value in request.headers)


def of(scheme):
    asked = scheme.judges or [Reference(scheme.docs)]
    own = Reference("")
    written, left_out = [], []
    seen = set()
    for kind, expect, why, request, secrets, now, more in cases.of(scheme):
        if not storable(request):
            continue
        wanted = expect == "accept"
        judges = [Reference(scheme.docs)] if more.get("reference") else asked
        verdicts = [judge.accepts(scheme, request, secrets, now, more) for judge in judges]
        if not scheme.judges or not scheme.agrees or own.accepts(scheme, request, secrets, now, more) == wanted:
            disagree = [judge.what for judge, verdict in zip(judges, verdicts) if verdict != wanted]
        else:
            disagree = ["schemes.py"]
        if disagree:
            errors = [text for judge in judges if (text := getattr(judge, "last", None)) and wanted]
            left_out.append(f"{kind}: {', '.join(disagree)} says otherwise" + (f" ({errors})" if errors else ""))
            continue
        case = {
            "id": f"{scheme.name}/{kind}", "provider": scheme.name, "oracle": "; ".join(judge.what for judge in judges), "method": request.method, "url": request.url,
            "headers": request.headers, "body_base64": base64.b64encode(request.body).decode(), "secrets": secrets,
        }
        key = more.get("public_key", scheme.public_key)
        if key:
            case["public_key"] = key
        params = {**{name: value for name, value in scheme.params.items() if name not in ("algorithm", "jose")}, **{name: value for name, value in more.get("params", {}).items() if name != "jose"}}
        if params:
            case["params"] = params
        time = getattr(scheme, "time", None)
        if time and time.past is not None:
            case["tolerance_seconds"] = time.past
        case |= {"now": now, "expect": expect, "why": why}
        same = json.dumps([case[name] for name in ("method", "url", "headers", "body_base64", "secrets", "now")] + [case.get("params"), case.get("public_key")])
        if same in seen:
            continue
        seen.add(same)
        written.append(case)
    return written, left_out


def main():
    wanted = set(sys.argv[1:])
    total, poor = 0, []
    for scheme in schemes():
        if wanted and scheme.name not in wanted:
            continue
        if scheme.name not in PRESETS:
            print(f"{scheme.name}: there is no such preset")
            continue
        written, left_out = of(scheme)
        accepts = sum(case["expect"] == "accept" for case in written)
        rejects = len(written) - accepts
        total += len(written)
        print(f"{scheme.name}: {accepts} to accept, {rejects} to reject" + "".join(f"\n    left out: {line}" for line in left_out))
        if accepts < 1 or rejects < 8:
            poor.append(scheme.name)
            continue
        text = "[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in written) + "\n]\n"
        (OUT / f"{scheme.name}.json").write_text(text)
    print(f"{total} cases, judged at {NOW}")
    if poor:
        sys.exit(f"too few cases: {', '.join(poor)}")


main()
