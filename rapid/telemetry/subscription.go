package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// API is one of the two APIs for subscriptions (TL-01). Error types of the API begin with its
// text.
type API string

// The two APIs.
const (
	TelemetryAPI API = "Telemetry"
	LogsAPI      API = "Logs"
)

// Schema versions (TL-03).
const (
	schema2020 = "2020-08-15" // Logs, its default
	schema2021 = "2021-03-18" // Logs, adds platform.runtimeDone
	schema2022 = "2022-07-01" // Telemetry, function records are strings (TL-25)
)

var schemas = map[API][]string{
	LogsAPI:      {schema2020, schema2021},
	TelemetryAPI: {schema2022, "2022-12-13", "2025-01-29"},
}

// Buffering limits (TL-06) and defaults (TL-07).
const (
	leastItems, mostItems     = 1000, 10000
	leastBytes, mostBytes     = 262144, 1048576
	leastTimeout, mostTimeout = 25, 30000

	defaultItems, defaultBytes, defaultTimeout = 10000, 262144, 1000
)

// Subscription is a valid subscription of an extension. Use ParseSubscription. It is not
// changed afterwards.
type Subscription struct {
	API      API
	Schema   string
	Types    []Source // without duplicates, in the order given
	Protocol string   // "HTTP" or "TCP"
	URI      string   // HTTP only, as given
	Method   string   // HTTP only: POST, or PUT in the Logs API (TL-15)
	Port     int      // port on the sandbox's loopback address
	MaxItems int
	MaxBytes int
	Timeout  time.Duration
}

// to returns a text that identifies the destination.
func (s *Subscription) to() string {
	return fmt.Sprintf("%s %s %s %d", s.Protocol, s.Method, s.URI, s.Port)
}

// destination is the address of an extension's listener in JSON. Other members, such as
// encoding in old samples, are ignored (TL-02).
type destination struct {
	Protocol string `json:"protocol"`
	URI      string `json:"URI"`
	Method   string `json:"method"`
	Port     *int   `json:"port"`
}

// buffering has the limits of batches; nil means that one is not given.
type buffering struct {
	MaxItems *int `json:"maxItems"`
	MaxBytes *int `json:"maxBytes"`
	Timeout  *int `json:"timeoutMs"`
}

// ParseSubscription parses and checks the body of a subscription. The error names every
// violation (TL-09). apiPort is the port of the Runtime API, which is not allowed as a
// destination.
func ParseSubscription(api API, body []byte, apiPort int) (*Subscription, error) {
	var b struct {
		Schema      string      `json:"schemaVersion"`
		Types       []string    `json:"types"`
		Destination destination `json:"destination"`
		Buffering   buffering   `json:"buffering"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("subscription is not valid JSON of the documented form: %w", err)
	}
	s := &Subscription{API: api, Schema: b.Schema}
	var wrong violations
	if s.Schema == "" && api == LogsAPI {
		s.Schema = schema2020
	}
	if !slices.Contains(schemas[api], s.Schema) {
		wrong.add("schemaVersion should be one of %s", strings.Join(schemas[api], ", "))
	}
	if len(b.Types) == 0 {
		wrong.add("types should not be empty")
	}
	for _, t := range b.Types {
		switch source := Source(t); {
		case source != FromPlatform && source != FromFunction && source != FromExtension:
			wrong.add("types should be platform, function or extension")
		case !slices.Contains(s.Types, source): // TL-04
			s.Types = append(s.Types, source)
		}
	}
	s.address(&b.Destination, apiPort, &wrong)
	s.MaxItems = within(b.Buffering.MaxItems, "maxItems", defaultItems, leastItems, mostItems, &wrong)
	s.MaxBytes = within(b.Buffering.MaxBytes, "maxBytes", defaultBytes, leastBytes, mostBytes, &wrong)
	s.Timeout = time.Duration(within(b.Buffering.Timeout, "timeoutMs", defaultTimeout, leastTimeout, mostTimeout, &wrong)) * time.Millisecond
	if len(wrong) > 0 {
		return nil, wrong
	}
	return s, nil
}

// address checks the address of the extension's listener (TL-05). Only the port of it is
// used: every connection goes to the sandbox's loopback address (TL-23).
func (s *Subscription) address(d *destination, apiPort int, wrong *violations) {
	s.Protocol = d.Protocol
	switch d.Protocol {
	case "HTTP":
		s.http(d, wrong)
	case "TCP":
		if d.Port == nil {
			wrong.add("port is not provided")
			return
		}
		s.Port = *d.Port
	default:
		wrong.add("protocol should be HTTP or TCP")
		return
	}
	if s.Port == 0 && len(*wrong) > 0 {
		return
	}
	if s.Port < 1 || s.Port > 65535 {
		wrong.add("port should be between 1 and 65535")
	} else if s.Port == apiPort {
		wrong.add("port %d is that of the Runtime API", apiPort)
	}
}

func (s *Subscription) http(d *destination, wrong *violations) {
	u, err := url.Parse(d.URI)
	switch {
	case d.URI == "":
		wrong.add("URI is not provided")
	case err != nil || u.Opaque != "" || u.User != nil:
		wrong.add("URI is not valid")
	case u.Scheme != "http":
		wrong.add("URI scheme should be http")
	case u.Hostname() != "sandbox.localdomain" && u.Hostname() != "sandbox":
		wrong.add("URI host should be sandbox.localdomain")
	case u.Port() == "":
		wrong.add("URI port is not provided")
	default:
		s.URI = d.URI
		s.Port, _ = strconv.Atoi(u.Port()) // Parse ensures digits; address checks the range
	}
	s.Method = http.MethodPost
	switch {
	case s.API != LogsAPI || d.Method == "" || d.Method == http.MethodPost:
	case d.Method == http.MethodPut:
		s.Method = http.MethodPut
	default:
		wrong.add("method should be POST or PUT")
	}
}

// within returns the given value, or standard if it is nil. It adds a violation if the value
// is not between least and most.
func within(given *int, name string, standard, least, most int, wrong *violations) int {
	if given == nil {
		return standard
	}
	if *given < least || *given > most {
		wrong.add("%s should be between %d and %d", name, least, most)
	}
	return *given
}

// violations lists what is wrong with a subscription.
type violations []string

func (v *violations) add(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(*v, s) {
		*v = append(*v, s)
	}
}

func (v violations) Error() string { return strings.Join(v, "; ") }

// event renders a record in the form of the subscription (section 3.3). ok is false if the
// subscription does not include it.
func (s *Subscription) event(r *Record, objects bool) (event []byte, ok bool) {
	if !slices.Contains(s.Types, r.Source) {
		return nil, false
	}
	e := struct {
		Time   Timestamp `json:"time"`
		Type   string    `json:"type"`
		Record any       `json:"record"`
	}{Time: Timestamp(r.Time), Type: string(r.Source)}
	switch {
	case r.Platform != nil && s.API == LogsAPI:
		e.Type, e.Record = logsRecord(r.Platform, s.Schema)
	case r.Platform != nil:
		e.Type, e.Record = telemetryRecord(r.Platform)
	default:
		e.Record = r.Text
		if objects && s.API == TelemetryAPI && s.Schema != schema2022 && strings.HasPrefix(strings.TrimSpace(r.Text), "{") {
			if text := []byte(r.Text); json.Valid(text) && utf8.Valid(text) {
				e.Record = json.RawMessage(text) // TL-25
			}
		}
	}
	if e.Type == "" {
		return nil, false
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil { // cannot happen
		return nil, false
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), true
}

// telemetryRecord returns the record for the Telemetry API. It omits what only the Logs API
// has (TL-51).
func telemetryRecord(p Platform) (string, any) {
	switch r := p.(type) {
	case *Fault:
		return "", nil
	case *Subscribed:
		if r.API != TelemetryAPI {
			return "", nil
		}
	}
	return p.Type(), p
}

// logsRecord returns type and record in the form of TL-49. The type is "" if the Logs API does
// not have such a record.
func logsRecord(p Platform, schema string) (string, any) {
	type object = map[string]any
	switch r := p.(type) {
	case *Start:
		return p.Type(), object{"requestId": r.RequestID, "version": r.Version}
	case *End:
		return "platform.end", object{"requestId": r.RequestID}
	case *Report:
		return p.Type(), object{"requestId": r.RequestID, "metrics": r.Metrics}
	case *RuntimeDone:
		status := r.Status
		if status == Error { // TL-52
			status = Failure
		}
		if schema == schema2021 {
			return p.Type(), object{"requestId": r.RequestID, "status": status}
		}
	case *Subscribed:
		if r.API == LogsAPI {
			return p.Type(), p
		}
	case *Extension, *LogsDropped, *Fault:
		return p.Type(), p
	}
	return "", nil
}
