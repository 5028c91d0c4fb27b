package lambda

import (
	"encoding/base64"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Values of a request have these types: object for structures, []any for lists, mapping for
// maps, string (also for timestamps), int64, float64, bool, and []byte for blobs. What the
// request leaves out, or has as null, is absent.
type object map[string]any

// mapping is a map of the API in the order of the request.
type mapping []pair

type pair struct {
	key   string
	value any
}

// strings returns the map as one of Go.
func (m mapping) strings() map[string]string {
	all := make(map[string]string, len(m))
	for _, p := range m {
		all[p.key], _ = p.value.(string)
	}
	return all
}

func (o object) text(name string) string     { s, _ := o[name].(string); return s }
func (o object) number(name string) int      { n, _ := o[name].(int64); return int(n) }
func (o object) flag(name string) bool       { b, _ := o[name].(bool); return b }
func (o object) object(name string) object   { s, _ := o[name].(object); return s }
func (o object) mapping(name string) mapping { m, _ := o[name].(mapping); return m }
func (o object) has(name string) bool        { _, ok := o[name]; return ok }

// list returns a list of strings.
func (o object) list(name string) []string {
	elements, _ := o[name].([]any)
	all := make([]string, 0, len(elements))
	for _, e := range elements {
		s, _ := e.(string)
		all = append(all, s)
	}
	return all
}

// A decoder makes values of what a request has.
type decoder struct {
	m      *model
	upload func(io.Reader) error // takes the code of a function, which is not kept in memory
	code   string                // path of the member that is the code; "" if there is none

	uploaded bool
}

// parameters takes the members of a structure that are in the path, the query and the headers.
func (d *decoder) parameters(s *shape, into object, path map[string]string, r *http.Request) error {
	var query url.Values
	if r.URL.RawQuery != "" {
		query = r.URL.Query()
	}
	for i := range s.Members {
		m := &s.Members[i]
		var text string
		var ok bool
		switch m.Location {
		case "uri":
			text, ok = path[m.As]
		case "querystring":
			if values := query[m.As]; len(values) > 0 {
				if d.m.shape(m.Shape).Type == "list" {
					list := make([]any, len(values))
					for i, v := range values {
						list[i] = v
					}
					into[m.Name] = list
					continue
				}
				text, ok = values[0], true
			}
		case "header":
			text, ok = r.Header.Get(m.As), len(r.Header.Values(m.As)) > 0
		}
		if !ok {
			continue
		}
		v, err := d.scalar(d.m.shape(m.Shape), "STRING_VALUE", text)
		if err != nil {
			return err
		}
		into[m.Name] = v
	}
	return nil
}

// scalar makes a value of the text of a path, query or header.
func (d *decoder) scalar(s *shape, token, text string) (any, error) {
	switch s.Type {
	case "string", "timestamp":
		return text, nil
	case "integer", "long":
		if n, err := strconv.ParseInt(text, 10, bits(s)); err == nil {
			return n, nil
		}
	case "boolean":
		if text == "true" || text == "false" {
			return text == "true", nil
		}
	}
	return nil, badType(s, token)
}

func bits(s *shape) int {
	if s.Type == "integer" {
		return 32
	}
	return 64
}

// body reads the members of a structure that are in the body, up to its end.
func (d *decoder) body(s *shape, into object, body io.Reader) error {
	j := newJSONReader(body)
	if _, err := j.r.Peek(1); errors.Is(err, io.EOF) { // an empty body is an empty structure
		return nil
	}
	if _, err := d.structure(j, s, "", into); err != nil {
		return err
	}
	return j.end()
}

// structure reads an object into a structure.
func (d *decoder) structure(j *jsonReader, s *shape, at string, into object) (any, error) {
	c, err := j.peek()
	if err != nil {
		return nil, err
	}
	if c != '{' {
		return nil, d.mismatch(j, s, c)
	}
	return into, j.object(func(name string) error {
		m := s.member(name)
		if m == nil || m.Location != "" {
			return d.skip(j)
		}
		path := name
		if at != "" {
			path = at + "." + name
		}
		v, err := d.value(j, d.m.shape(m.Shape), path)
		if err != nil {
			return err
		}
		if v == nil {
			delete(into, name)
		} else {
			into[name] = v
		}
		return nil
	})
}

// value reads a value of a shape. null is nil.
func (d *decoder) value(j *jsonReader, s *shape, at string) (any, error) {
	c, err := j.peek()
	if err != nil {
		return nil, err
	}
	if c == 'n' {
		return nil, j.literal("null")
	}
	switch {
	case s.Type == "structure":
		return d.structure(j, s, at, object{})
	case s.Type == "list" && c == '[':
		list := []any{}
		return list, j.array(func() error {
			v, err := d.value(j, d.m.shape(s.Member), at)
			if err != nil {
				return err
			}
			list = append(list, v)
			return j.keep(valueSize)
		})
	case s.Type == "map" && c == '{':
		return d.mapping(j, s, at)
	case s.Type == "blob" && c == '"':
		return d.blob(j, at)
	case (s.Type == "string" || s.Type == "timestamp") && c == '"':
		return j.text()
	case s.Type == "boolean" && c == 't':
		return true, j.literal("true")
	case s.Type == "boolean" && c == 'f':
		return false, j.literal("false")
	case (c == '-' || c >= '0' && c <= '9') && s.Type != "list" && s.Type != "map":
		return d.numeric(j, s)
	}
	return nil, d.mismatch(j, s, c)
}

// mapping reads an object into a map. A later value of a key replaces an earlier one.
func (d *decoder) mapping(j *jsonReader, s *shape, at string) (any, error) {
	all, places := mapping{}, map[string]int{}
	err := j.object(func(name string) error {
		v, err := d.value(j, d.m.shape(s.Value), at)
		if err != nil {
			return err
		}
		if i, ok := places[name]; ok {
			all[i].value = v
		} else {
			places[name] = len(all)
			all = append(all, pair{name, v})
		}
		return j.keep(valueSize)
	})
	return all, err
}

// valueSize is what an element of a list or map costs besides its bytes.
const valueSize = 32

// numeric reads a number.
func (d *decoder) numeric(j *jsonReader, s *shape) (any, error) {
	text, err := j.number()
	if err != nil {
		return nil, err
	}
	switch s.Type {
	case "integer", "long":
		if n, err := strconv.ParseInt(text, 10, bits(s)); err == nil {
			return n, nil
		}
		// A number with a fraction or an exponent may be whole.
		if f, err := strconv.ParseFloat(text, 64); err == nil && f == math.Trunc(f) && math.Abs(f) <= math.MaxInt32 {
			return int64(f), nil
		}
	case "double", "float":
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			return f, nil
		}
	case "timestamp":
		return text, nil
	}
	return nil, badType(s, "NUMBER_VALUE")
}

// blob reads bytes that are written in base64. The code of a function goes to upload.
func (d *decoder) blob(j *jsonReader, at string) (any, error) {
	content := j.string()
	plain := base64.NewDecoder(base64.StdEncoding, &paddingReader{r: content})
	if d.code != "" && at == d.code {
		if d.uploaded {
			return nil, malformed("Duplicate field '%s' in the request body", at)
		}
		d.uploaded = true
		return []byte{}, base64Error(d.upload(plain), at)
	}
	all, err := io.ReadAll(io.LimitReader(plain, maxKept+1))
	if err == nil {
		err = j.keep(len(all))
	}
	return all, base64Error(err, at)
}

// base64Error names the member that is not base64.
func base64Error(err error, at string) error {
	if _, ok := errors.AsType[base64.CorruptInputError](err); ok || errors.Is(err, errPadding) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("The value of '%s' is not valid base64", at)
	}
	return err
}

var errPadding = errors.New("something follows the padding of base64")

// A paddingReader refuses what follows the padding of base64: the decoder of Go sees it only
// when both are read at once.
type paddingReader struct {
	r      io.Reader
	padded bool
}

// Read implements io.Reader.
func (p *paddingReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	for _, c := range b[:n] {
		switch {
		case c == '=':
			p.padded = true
		case p.padded && c != '\r' && c != '\n':
			return 0, errPadding
		}
	}
	return n, err
}

// skip reads a value that the API does not know.
func (d *decoder) skip(j *jsonReader) error {
	c, err := j.peek()
	if err != nil {
		return err
	}
	switch c {
	case '{':
		return j.object(func(string) error { return d.skip(j) })
	case '[':
		return j.array(func() error { return d.skip(j) })
	case '"':
		_, err = j.text()
	case 't':
		err = j.literal("true")
	case 'f':
		err = j.literal("false")
	case 'n':
		err = j.literal("null")
	default:
		if c != '-' && (c < '0' || c > '9') {
			return unexpected(c)
		}
		_, err = j.number()
	}
	return err
}

// mismatch returns the error of a value that does not have the type of its shape, unless it is
// not JSON at all.
func (d *decoder) mismatch(j *jsonReader, s *shape, first byte) error {
	token := ""
	switch first {
	case '{', '[':
	case '"':
		token = "STRING_VALUE"
	case 't':
		token = "TRUE_VALUE"
	case 'f':
		token = "FALSE_VALUE"
	case 'n':
		token = "VALUE_NULL"
	default:
		if first != '-' && (first < '0' || first > '9') {
			return unexpected(first)
		}
		token = "NUMBER_VALUE"
	}
	if err := d.skip(j); err != nil {
		return err
	}
	switch first {
	case '[':
		return malformed("Start of list found where not expected")
	case '{':
		return malformed("Start of structure or map found where not expected.")
	}
	return badType(s, token)
}

// badType returns the error of a scalar that does not have the type of its shape, in the words
// of AWS's parser.
func badType(s *shape, token string) error {
	switch s.Type {
	case "structure":
		return malformed("Unexpected field type")
	case "list":
		return malformed("Expected list or null")
	case "map":
		return malformed("Expected map or null")
	case "timestamp":
		return malformed("%s can not be converted to milliseconds since epoch", token)
	case "integer":
		return malformed("%s can not be converted to an Integer", token)
	case "blob":
		return malformed("%s can not be converted to a Blob", token)
	}
	return malformed("%s can not be converted to a %s", token, strings.ToUpper(s.Type[:1])+s.Type[1:])
}
