// Command echo is a function of the tests of `sandboxd serve`. To the event {"nonce": …} it
// answers which code and which setting it runs with, and the nonce. It speaks HTTP over the
// bare socket, so that its program, of which a test has many in its store, is small.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"regexp"
	"strconv"
	"strings"
)

const invocation = "/2018-06-01/runtime/invocation/"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

var nonceForm = regexp.MustCompile(`"nonce": *"([0-9a-z-]+)"`)

func run() error {
	code, err := os.ReadFile("marker")
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err != nil {
		return err
	}
	defer conn.Close()
	api := &client{conn: conn, r: textproto.NewReader(bufio.NewReader(conn))}
	for {
		head, event, err := api.do("GET", invocation+"next", "")
		if err != nil {
			return err
		}
		nonce := nonceForm.FindStringSubmatch(event)
		if nonce == nil {
			return fmt.Errorf("event %q has no nonce", event)
		}
		answer := fmt.Sprintf(`{"code":%q,"setting":%q,"nonce":%q}`, strings.TrimSpace(string(code)), os.Getenv("SETTING"), nonce[1])
		if _, _, err := api.do("POST", invocation+head.Get("Lambda-Runtime-Aws-Request-Id")+"/response", answer); err != nil {
			return err
		}
	}
}

// client sends requests over one connection.
type client struct {
	conn net.Conn
	r    *textproto.Reader
}

func (c *client) do(method, path, body string) (head textproto.MIMEHeader, answer string, err error) {
	if _, err := fmt.Fprintf(c.conn, "%s %s HTTP/1.1\r\nHost: runtime\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body); err != nil {
		return nil, "", err
	}
	status, err := c.r.ReadLine()
	if err != nil {
		return nil, "", err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 2") {
		return nil, "", fmt.Errorf("%s %s: %s", method, path, status)
	}
	if head, err = c.r.ReadMIMEHeader(); err != nil {
		return nil, "", err
	}
	n, err := strconv.Atoi(head.Get("Content-Length"))
	if err != nil {
		return nil, "", fmt.Errorf("%s %s: %w", method, path, err)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(c.r.R, text)
	return head, string(text), err
}
