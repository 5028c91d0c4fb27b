#!/usr/bin/env python3
"""Makes lambda/model.json: what the Lambda API declares of its operations and shapes.

The source is the service model in the Python package botocore (Apache-2.0), in the version
that is pinned below. Only facts are taken: names, methods, paths, types and constraints, no
documentation. The file is committed; run this again to take a newer version:

    python3 -m pip download --no-deps botocore==VERSION --dest DIR
    scripts/lambda-model.py DIR/botocore-VERSION-py3-none-any.whl > lambda/model.json
"""

import gzip
import hashlib
import json
import sys
import zipfile

VERSION = "1.44.8"
WHEEL_SHA256 = "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043"
PATH = "botocore/data/lambda/2015-03-31/service-2.json.gz"


def shape(s):
    """Returns the facts of a shape, without its documentation."""
    out = {k: s[k] for k in ("type", "min", "max", "pattern", "enum", "required", "payload") if k in s}
    for flag in ("sensitive", "streaming", "box", "exception", "eventstream"):
        if s.get(flag):
            out[flag] = True
    if "members" in s:
        out["members"] = [member(name, m) for name, m in s["members"].items()]
    for part in ("member", "key", "value"):
        if part in s:
            out[part] = s[part]["shape"]
    if "error" in s:
        out["status"] = s["error"]["httpStatusCode"]
    return out


def member(name, m):
    """Returns the facts of a member of a structure, which keep their order."""
    out = {"name": name, "shape": m["shape"]}
    if "location" in m:
        out["location"], out["as"] = m["location"], m.get("locationName", name)
    return out


def operation(o):
    """Returns the facts of an operation."""
    out = {
        "name": o["name"],
        "method": o["http"]["method"],
        "path": o["http"]["requestUri"],
        "status": o["http"].get("responseCode", 200),
    }
    for side in ("input", "output"):
        if side in o:
            out[side] = o[side]["shape"]
    out["errors"] = [e["shape"] for e in o.get("errors", [])]
    return out


def lines(entries, brackets):
    """Returns a list or object with an entry a line, so that updates are readable as diffs."""
    return brackets[0] + "\n  " + ",\n  ".join(entries) + "\n " + brackets[1]


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def main():
    wheel = sys.argv[1]
    with open(wheel, "rb") as f:
        got = hashlib.sha256(f.read()).hexdigest()
    if got != WHEEL_SHA256:
        sys.exit(f"{wheel} has the SHA-256 {got}, not that of botocore {VERSION}: see VERSION in this script")
    with zipfile.ZipFile(wheel) as z:
        model = json.loads(gzip.decompress(z.read(PATH)))
    head = {
        "source": f"botocore {VERSION}, {PATH}",
        "licence": "Apache-2.0; Copyright Amazon.com, Inc. or its affiliates",
        "made-by": "scripts/lambda-model.py",
    }
    parts = [f"{compact(k)}: {compact(v)}" for k, v in head.items()]
    ops = [compact(operation(o)) for _, o in sorted(model["operations"].items())]
    parts.append('"operations": ' + lines(ops, "[]"))
    shapes = [f"{compact(n)}:{compact(shape(s))}" for n, s in sorted(model["shapes"].items())]
    parts.append('"shapes": ' + lines(shapes, "{}"))
    print("{\n " + ",\n ".join(parts) + "\n}")


main()
