"""Signs requests with botocore, sends them as they are, and prints the answers, as
../../signature_test.go says."""

import http.client
import json
import sys
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

endpoint, key, secret = sys.argv[1:]
credentials = Credentials(key, secret)
answers = {}
for case in json.load(sys.stdin):
    body = case["body"].encode()
    request = AWSRequest(case["method"], endpoint + case["target"], headers=case["headers"] or {}, data=body)
    if case["expires"]:
        SigV4QueryAuth(credentials, "lambda", "us-east-1", case["expires"]).add_auth(request)
    else:
        SigV4Auth(credentials, "lambda", "us-east-1").add_auth(request)
    url = urlsplit(request.url)
    connection = http.client.HTTPConnection(url.netloc)
    connection.putrequest(case["method"], request.url[len(endpoint) :], skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answers[case["name"]] = connection.getresponse().read().decode()
    connection.close()
json.dump(answers, sys.stdout)
