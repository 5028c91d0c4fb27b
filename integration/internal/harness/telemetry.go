package harness

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

const telemetryPath = "/2022-07-01/telemetry"

// Subscriber is an extension that subscribes to everything, and asks again with the first
// INVOKE, in a step named "late". Each batch that comes over HTTP is answered after a pause.
func Subscriber(protocol string, port, timeoutMS int, pause time.Duration) []script.Step {
	destination := fmt.Sprintf(`{"protocol":"TCP","port":%d}`, port)
	if protocol == "HTTP" {
		destination = fmt.Sprintf(`{"protocol":"HTTP","URI":"http://sandbox.localdomain:%d/path"}`, port)
	}
	body := fmt.Sprintf(`{"schemaVersion":"2022-12-13","types":["platform","function","extension"],"destination":%s,"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":%d}}`,
		destination, timeoutMS)
	subscribe := func(name string) script.Step {
		return script.Step{Op: "call", Name: name, Method: "PUT", Path: telemetryPath, Data: body, Headers: map[string]string{"Lambda-Extension-Identifier": "{ext}"}}
	}
	return []script.Step{Both, {Op: "listen", Name: "telemetry", Method: strings.ToLower(protocol), N: int64(port), MS: pause.Milliseconds()},
		subscribe("subscribed"), {Op: "serve", N: 1, Steps: []script.Step{subscribe("late")}}, {Op: "serve"}}
}

// Delivery is one event that a subscriber got.
type Delivery struct {
	Batch      int64 `json:"-"` // number of the POST; 1 with TCP
	Time, Type string
	Record     json.RawMessage
}

// Delivered are the events that a subscriber has got, the first of them if there are very
// many.
func (d *Daemon) Delivered(name string) (all []Delivery) {
	d.T.Helper()
	for _, e := range d.Journal().By(name).Named("telemetry") {
		one := Delivery{Batch: e.N}
		if err := json.Unmarshal([]byte(e.Text), &one); err != nil || e.Error != "" {
			d.T.Fatalf("%+v: %v", e, err)
		}
		all = append(all, one)
	}
	return all
}
