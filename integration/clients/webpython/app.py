"""The web application of the tests on FastAPI. What all of them do is said in
../../web_test.go."""

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from mangum import Mangum

app = FastAPI()


@app.api_route("/hello/{name}", methods=["GET", "HEAD"])
def hello(name: str, greeting: str = "hello", n: list[str] = Query([])):
    return {"text": f"{greeting}, {name}", "n": n}


@app.post("/echo")
async def echo(request: Request):
    return Response(await request.body(), media_type="application/octet-stream")


@app.get("/login")
def login():
    response = RedirectResponse("/hello/you", status_code=302)
    response.set_cookie("a", "b")
    response.set_cookie("c", "d", max_age=7)
    return response


@app.get("/whoami")
def whoami(request: Request):
    return request.cookies["a"] + " " + request.cookies["c"]


handler = Mangum(app, lifespan="off")
