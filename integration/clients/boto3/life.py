"""Leads a function through its life with boto3 and prints what it saw, as
../../serve_test.go says."""

import base64
import json
import sys
import urllib.request

import boto3
import botocore.config
import botocore.exceptions

first, second = (open(name, "rb").read() for name in sys.argv[1:])
client = boto3.client("lambda", config=botocore.config.Config(retries={"total_max_attempts": 1}))
name = "life"
seen = {}


def refused(call, **arguments):
    try:
        call(**arguments)
        return ""
    except botocore.exceptions.ClientError as e:
        return e.response["Error"]["Code"]


def invoke():
    answer = client.invoke(FunctionName=name, Payload=b"{}", LogType="Tail")
    seen["tail"] = base64.b64decode(answer["LogResult"]).decode()
    return answer["Payload"].read().decode()


created = client.create_function(
    FunctionName=name,
    Runtime="provided.al2023",
    Handler="x",
    Role="arn:aws:iam::000000000000:role/none",
    Timeout=60,
    Code={"ZipFile": first},
    Environment={"Variables": {"MARK": "a"}},
)
seen["created"] = created["State"]
client.get_waiter("function_active_v2").wait(FunctionName=name)
seen["invoked"] = invoke()
seen["dryRun"] = client.invoke(FunctionName=name, InvocationType="DryRun")["StatusCode"]
seen["event"] = refused(client.invoke, FunctionName=name, InvocationType="Event", Payload=b"{}")
stream = client.invoke_with_response_stream(FunctionName=name, Payload=b'"stream"')["EventStream"]
seen["streamed"] = b"".join(e["PayloadChunk"]["Payload"] for e in stream if "PayloadChunk" in e).decode()

updated = client.update_function_code(FunctionName=name, ZipFile=second)
client.get_waiter("function_updated_v2").wait(FunctionName=name)
seen["newCode"] = invoke()
client.update_function_configuration(FunctionName=name, Description="changed", Environment={"Variables": {"MARK": "b"}})
client.get_waiter("function_updated_v2").wait(FunctionName=name)
seen["newConfiguration"] = invoke()

got = client.get_function(FunctionName=name)
seen["description"] = got["Configuration"]["Description"]
seen["revisions"] = len({created["RevisionId"], updated["RevisionId"], got["Configuration"]["RevisionId"]})
with urllib.request.urlopen(got["Code"]["Location"]) as response:
    seen["downloaded"] = response.read() == second
seen["listed"] = [f["FunctionName"] for page in client.get_paginator("list_functions").paginate() for f in page["Functions"]]
client.delete_function(FunctionName=name)
seen["deleted"] = refused(client.get_function, FunctionName=name)
print(json.dumps(seen))
