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
// error or a response, Add must not be called any more. The part is valid as long as the piece.
func (p *Prelude) Add(piece []byte) (*Response, []byte, error) {
	all := piece                                 // no copy of an answer in one piece
	from := max(len(p.text)-len(delimiter)+1, 0) // what is before has been searched
	if len(p.text) > 0 {
		p.text = append(p.text, piece...)
		all = p.text
	}
	at := bytes.Index(all[from:min(len(all), MaxHead+len(delimiter))], delimiter)
	switch {
	case at < 0 && len(all) > MaxHead:
		return nil, nil, fmt.Errorf("the first %d bytes of the answer have no end of a prelude, which is 8 NUL bytes", MaxHead)
	case at < 0:
		if len(p.text) == 0 {
			p.text = bytes.Clone(piece)
		}
		return nil, nil, nil
	}
	at += from
	text := bytes.TrimSpace(all[:at])
	if !json.Valid(text) || text[0] != '{' {
		return nil, nil, errors.New("the prelude of the answer is not a JSON object")
	}
	head := head{defaultType: StreamType}
	for name, value := range members(text) {
		head.take(name, value)
	}
	res, err := head.response()
	return res, all[at+len(delimiter):], err
}

// Empty reports whether no byte of an incomplete prelude was added.
func (p *Prelude) Empty() bool { return len(p.text) == 0 }
