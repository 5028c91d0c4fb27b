"""A Python function on the unmodified awslambdaric.

    cd examples/python && /usr/bin/python3.11 -m pip install -t . -r requirements.txt
    sandboxd run --runtime python3.11 --handler app.handler examples/python
"""

import sys


def handler(event, context):
    print("handling", context.aws_request_id)
    return {"requestId": context.aws_request_id, "python": sys.version.split()[0], "event": event}
