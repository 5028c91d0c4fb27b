// The web application of the tests on Hono. What all of them do is said in
// ../../web_test.go.
import { existsSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

import { Hono } from "hono";
import { handle, streamHandle } from "hono/aws-lambda";
import { getCookie, setCookie } from "hono/cookie";
import { stream } from "hono/streaming";

const app = new Hono();

app.get("/hello/:name", (c) =>
  c.json({ text: `${c.req.query("greeting") ?? "hello"}, ${c.req.param("name")}`, n: c.req.queries("n") ?? [] }),
);
app.post("/echo", async (c) => c.body(await c.req.arrayBuffer(), 200, { "Content-Type": "application/octet-stream" }));
app.get("/login", (c) => {
  setCookie(c, "a", "b");
  setCookie(c, "c", "d", { maxAge: 7 });
  return c.redirect("/hello/you");
});
app.get("/whoami", (c) => c.json(`${getCookie(c, "a")} ${getCookie(c, "c")}`));
app.get("/parts", (c) =>
  stream(c, async (s) => {
    await s.write("first ");
    while (!existsSync("/var/task/go-on")) await setTimeout(10);
    await s.write("second");
  }),
);

export const handler = handle(app);
export const streaming = streamHandle(app);
