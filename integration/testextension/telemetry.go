package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// subscribe asks for telemetry and notes the status of the answer.
func (e *extension) subscribe(what string) {
	t := e.conf.Telemetry
	req, err := http.NewRequest("PUT", "http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+t.Path, strings.NewReader(t.Body))
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("Lambda-Extension-Identifier", e.id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	e.note(what, "status", strconv.Itoa(resp.StatusCode))
}

// listen starts the listener of the subscription.
func (e *extension) listen() error {
	t := e.conf.Telemetry
	l, err := net.Listen("tcp", fmt.Sprintf("sandbox.localdomain:%d", t.Port))
	if err != nil {
		return err
	}
	file, err := os.Create(script.TelemetryLog(e.name))
	if err != nil {
		return err
	}
	k := &keeper{file: file, pause: time.Duration(t.AnswerMS) * time.Millisecond}
	if t.Protocol == "TCP" {
		go k.lines(l)
	} else {
		go func() { log.Print(http.Serve(l, k)) }()
	}
	return nil
}

// keeper writes down what is delivered.
type keeper struct {
	pause time.Duration
	mu    sync.Mutex
	file  *os.File
	posts int
}

// ServeHTTP takes one batch.
func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var events []script.Delivered
	if err := json.Unmarshal(body, &events); err != nil {
		log.Printf("batch %q: %v", body, err)
	}
	time.Sleep(k.pause)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.posts++
	for _, d := range events {
		d.Batch = k.posts
		k.keep(d)
	}
}

// lines takes the events of one connection.
func (k *keeper) lines(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		log.Print(err)
		return
	}
	for dec := json.NewDecoder(c); ; {
		var d script.Delivered
		if err := dec.Decode(&d); err != nil {
			log.Print(err)
			return
		}
		k.keep(d)
	}
}

func (k *keeper) keep(d script.Delivered) {
	var text string
	if json.Unmarshal(d.Record, &text) == nil && len(text) > 100 {
		d.Record = json.RawMessage(strconv.Quote(text[:100]))
	}
	if _, err := k.file.WriteString(script.Encode(d) + "\n"); err != nil {
		log.Print(err)
	}
}
