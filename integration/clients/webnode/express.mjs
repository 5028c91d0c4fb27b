// The web application of the tests on Express. What all of them do is said in
// ../../web_test.go.
import express from "express";
import serverless from "serverless-http";

const app = express();

app.get("/hello/:name", (req, res) => {
  res.json({ text: `${req.query.greeting ?? "hello"}, ${req.params.name}`, n: [req.query.n ?? []].flat() });
});
app.post("/echo", express.raw({ type: "*/*", limit: "6mb" }), (req, res) => {
  res.type("application/octet-stream").send(req.body);
});
app.get("/login", (req, res) => {
  res.cookie("a", "b").cookie("c", "d", { maxAge: 7000 }).redirect("/hello/you");
});
app.get("/whoami", (req, res) => {
  const cookies = Object.fromEntries(req.headers.cookie.split("; ").map((c) => c.split("=")));
  res.json(`${cookies.a} ${cookies.c}`);
});

export const handler = serverless(app, { binary: ["application/octet-stream"] });
