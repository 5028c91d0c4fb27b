"""Calls a function through boto3 and prints what came back, as ../../callers_test.go
says."""

import json
import sys

import boto3
import botocore.config
import botocore.exceptions

endpoint, call, name, payload = sys.argv[1:]
client = boto3.client("lambda", endpoint_url=endpoint, config=botocore.config.Config(retries={"total_max_attempts": 1}))


def show(**value):
    print(json.dumps(value), flush=True)


try:
    if call == "stream":
        answer = client.invoke_with_response_stream(FunctionName=name, Payload=payload, LogType="Tail")
        for event in answer["EventStream"]:
            if "PayloadChunk" in event:
                show(chunk=event["PayloadChunk"]["Payload"].decode())
            else:
                end = event["InvokeComplete"]
                answer |= {"FunctionError": end.get("ErrorCode"), "LogResult": end.get("LogResult"), "Details": end.get("ErrorDetails")}
        body = ""
    else:
        answer = client.invoke(FunctionName=name, InvocationType=call, Payload=payload, LogType="Tail")
        body = answer["Payload"].read().decode()
    show(
        status=answer["StatusCode"],
        version=answer.get("ExecutedVersion"),
        id=answer["ResponseMetadata"]["RequestId"],
        error=answer.get("FunctionError"),
        details=answer.get("Details"),
        tail=answer.get("LogResult"),
        payload=body,
    )
except botocore.exceptions.ClientError as e:
    show(status=e.response["ResponseMetadata"]["HTTPStatusCode"], exception=e.response["Error"]["Code"])
