package httpevent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// IntegrationResponse is the content type of an answer that begins with a prelude (RT-75).
const IntegrationResponse = "application/vnd.awslambda.http-integration-response"

// StreamType is the Content-Type of a streamed response for which the function gives none.
const StreamType = "application/octet-stream"

// delimiter ends a prelude (RT-75).
var delimiter = make([]byte, 8)

// Prelude reads the beginning of an answer of the type [IntegrationResponse], which comes in
// pieces. The zero value is ready for use.
type Prelude struct{ text []byte }

// Add adds a piece. When the prelude is complete, Add returns the response that it describes,
// without a body, and the part of the answer after it; before that it returns nil. After an
// error or a response, Add must not be called any more.
func (p *Prelude) Add(piece []byte) (*Response, []byte, error) {
	from := max(len(p.text)-len(delimiter), 0)
	p.text = append(p.text, piece...)
	at := bytes.Index(p.text[from:], delimiter)
	switch {
	case at < 0 && len(p.text) > MaxHead:
		return nil, nil, fmt.Errorf("the first %d bytes of the answer have no end of a prelude, which is 8 NUL bytes", MaxHead)
	case at < 0:
		return nil, nil, nil
	}
	at += from
	text := bytes.TrimSpace(p.text[:at])
	if !json.Valid(text) || text[0] != '{' {
		return nil, nil, errors.New("the prelude of the answer is not a JSON object")
	}
	head := head{defaultType: StreamType}
	for name, value := range members(text) {
		head.take(name, value)
	}
	res, err := head.response()
	return res, p.text[at+len(delimiter):], err
}

// Empty reports whether no byte was added.
func (p *Prelude) Empty() bool { return len(p.text) == 0 }
