"""The function of the clients matrix on awslambdaric. What all functions of the matrix
do is said in ../../clients_test.go."""

import logging
import time

calls = 0


class Refused(Exception):
    pass


def handler(event, context):
    global calls
    calls += 1
    match event.get("do"):
        case "fail":
            raise Refused("as asked")
        case "log":
            logging.getLogger().warning("a message")
        case "sleep":
            time.sleep(3600)
    return {
        "requestId": context.aws_request_id,
        "function": context.function_name,
        "version": context.function_version,
        "memory": int(context.memory_limit_in_mb),
        "calls": calls,
        "event": event,
    }
