package lambda

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// decode reads a body as the input of CreateFunction.
func decode(body io.Reader) (in object, zip []byte, err error) {
	in = object{}
	d := decoder{m: api(), code: "Code.ZipFile", upload: func(r io.Reader) (err error) {
		zip, err = io.ReadAll(r)
		return err
	}}
	return in, zip, d.body(api().shape("CreateFunctionRequest"), in, body)
}

func TestBody(t *testing.T) {
	zip := bytes.Repeat([]byte{0, 1, 2, 253, 254, 255, 'P', 'K'}, 50_000)
	coded := base64.StdEncoding.EncodeToString(zip)
	for name, body := range map[string]string{
		"code first":        `{"Code":{"ZipFile":"` + coded + `"},"FunctionName":"f","Timeout":5}`,
		"code last":         "{\"FunctionName\" : \"f\",\t\"Timeout\":\r\n5 , \"Code\":{ \"ZipFile\" : \"" + coded + "\" } } \n ",
		"escapes":           `{"\u0046unctionName":"\u0066","Timeout":5,"Code":{"ZipFile":"` + strings.NewReplacer("/", `\/`, "A", `\u0041`).Replace(coded) + `"}}`,
		"lines":             `{"FunctionName":"f","Timeout":5,"Code":{"ZipFile":"` + coded[:76] + `\r\n` + coded[76:] + `\n"}}`,
		"duplicates":        `{"FunctionName":"g","Timeout":6,"FunctionName":"f","Timeout":5,"Code":{"ZipFile":"` + coded + `"}}`,
		"unknown members":   `{"New":{"ZipFile":"!","A":[1,-2.5e3,true,false,null,{}]},"FunctionName":"f","Timeout":5,"Code":{"ZipFile":"` + coded + `","B":[]},"ZipFile":7}`,
		"null":              `{"Role":null,"VpcConfig":null,"FunctionName":"f","Timeout":5,"Code":{"ZipFile":"` + coded + `","S3Bucket":null}}`,
		"a whole exponent":  `{"FunctionName":"f","Timeout":0.5e1,"Code":{"ZipFile":"` + coded + `"}}`,
		"null after value":  `{"FunctionName":"f","Role":"r","Role":null,"Timeout":5,"Code":{"ZipFile":"` + coded + `"}}`,
		"other code member": `{"FunctionName":"f","Timeout":5,"Code":{"ZipFile":"` + coded + `"},"Layers":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(body), iotest.OneByteReader(strings.NewReader(body)), iotest.DataErrReader(strings.NewReader(body))} {
				in, got, err := decode(r)
				if err != nil {
					t.Fatal(err)
				}
				if in.text("FunctionName") != "f" || in.number("Timeout") != 5 || in.has("Role") || in.has("VpcConfig") {
					t.Errorf("%v", in)
				}
				if !bytes.Equal(got, zip) {
					t.Errorf("the code has %d bytes, want %d", len(got), len(zip))
				}
			}
		})
	}
}

func TestBadBodies(t *testing.T) {
	for body, want := range map[string]string{
		`{`:                               "end-of-input",
		`{"FunctionName":"f`:              "end-of-input",
		`{"Timeout":5`:                    "end-of-input",
		`{"Code":{"ZipFile":"UEs`:         "end-of-input",
		`{"FunctionName":"\u00`:           "end-of-input",
		`{"FunctionName":"f"}x`:           "Unexpected character",
		`{"FunctionName":"f"}{}`:          "Unexpected character",
		`{"FunctionName":"f",}`:           "Unexpected character",
		`{FunctionName:"f"}`:              "Unexpected character",
		`{"FunctionName" "f"}`:            "Unexpected character",
		`{"Timeout":05}`:                  "not a number",
		`{"Timeout":-}`:                   "not a number",
		`{"Timeout":1.}`:                  "not a number",
		`{"Timeout":+1}`:                  "Unexpected character",
		`{"Timeout":nul}`:                 "Unexpected character",
		`{"Publish":trve}`:                "Unexpected character",
		`{"FunctionName":"\x"}`:           "escape",
		"{\"FunctionName\":\"a\nb\"}":     "Illegal unquoted character",
		"{\"FunctionName\":\"\xff\"}":     "UTF-8",
		`{"FunctionName":"\ud800"}`:       "surrogate",
		`{"FunctionName":"\ud800A"}`:      "surrogate",
		`{"FunctionName":"\u12g4"}`:       "hexadecimal",
		`[]`:                              "Start of list found where not expected",
		`"a"`:                             "Unexpected field type",
		`null`:                            "Unexpected field type",
		`7`:                               "Unexpected field type",
		`{"FunctionName":5}`:              "NUMBER_VALUE can not be converted to a String",
		`{"FunctionName":true}`:           "TRUE_VALUE can not be converted to a String",
		`{"FunctionName":{}}`:             "Start of structure or map found where not expected.",
		`{"FunctionName":[]}`:             "Start of list found where not expected",
		`{"Timeout":"5"}`:                 "STRING_VALUE can not be converted to an Integer",
		`{"Timeout":5.5}`:                 "NUMBER_VALUE can not be converted to an Integer",
		`{"Timeout":99999999999}`:         "NUMBER_VALUE can not be converted to an Integer",
		`{"Publish":1}`:                   "NUMBER_VALUE can not be converted to a Boolean",
		`{"Layers":"a"}`:                  "Expected list or null",
		`{"Tags":"a"}`:                    "Expected map or null",
		`{"Tags":{"a":1}}`:                "NUMBER_VALUE can not be converted to a String",
		`{"VpcConfig":"a"}`:               "Unexpected field type",
		`{"Code":{"ZipFile":5}}`:          "NUMBER_VALUE can not be converted to a Blob",
		`{"Code":{"ZipFile":"UEs"}}`:      "not valid base64",
		`{"Code":{"ZipFile":"UE-_"}}`:     "not valid base64",
		`{"Code":{"ZipFile":"UEs=UEs="}}`: "not valid base64",
		`{"Code":{"ZipFile":"U==="}}`:     "not valid base64",
		`{"Code":{"ZipFile":"\u00e9"}}`:   "not valid base64",
		`{"Code":{"ZipFile":"UEs=","ZipFile":"UEs="}}`:                        "Duplicate field 'Code.ZipFile'",
		`{"Code":{"ZipFile":"UEs="},"Code":{"ZipFile":"UEs="}}`:               "Duplicate field 'Code.ZipFile'",
		`{"New":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`: "levels",
		`{"Timeout":` + strings.Repeat("1", 100) + `}`:                        "more than 64 characters",
	} {
		for _, r := range []io.Reader{strings.NewReader(body), iotest.OneByteReader(strings.NewReader(body))} {
			_, _, err := decode(r)
			if err == nil || !strings.Contains(err.Error(), "SerializationException: ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%.200s: %v, want %q", body, err, want)
			}
		}
	}
}

// What is kept in memory is bounded, whatever it is made of.
func TestKeptIsBounded(t *testing.T) {
	many := func(one string) string {
		return strings.TrimSuffix(strings.Repeat(one+",", 2*maxKept/(len(one)+valueSize)), ",")
	}
	for name, body := range map[string]string{
		"a string":        `{"Description":"` + strings.Repeat("x", maxKept+1) + `"}`,
		"an unknown one":  `{"New":"` + strings.Repeat("x", maxKept+1) + `"}`,
		"a name":          `{"` + strings.Repeat("x", maxKept+1) + `":1}`,
		"a list":          `{"Layers":[` + many(`""`) + `]}`,
		"a list of nulls": `{"Layers":[` + many(`null`) + `]}`,
		"a list of lists": `{"FileSystemConfigs":[` + many(`{}`) + `]}`,
		"unknown members": `{` + many(`"New":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"`) + `}`,
		"a map":           `{"Tags":{` + many(`"k":"v"`) + `}}`,
	} {
		if _, _, err := decode(strings.NewReader(body)); err != errKept {
			t.Errorf("%s: %v, want %v", name, err, errKept)
		}
	}
}

// FuzzBodies compares with encoding/json: what one takes, the other does, with the same values.
// Where they may differ, it leaves them alone: names in another case, and invalid UTF-8.
func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		`{"FunctionName":"f","Code":{"ZipFile":"UEs="},"Timeout":3,"Tags":{"a":"b"},"Publish":false,"Layers":["x",null]}`,
		`{"a":[{"b":1e9}],"Description":"\ud83d\ude00\n\/"}`, `[]`, ` {} `, `{"Timeout":-0.5e+3}`, `{"Code":{"ZipFile":"UE\u0073="}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in, zip, err := decode(bytes.NewReader(body))
		again, zip2, err2 := decode(iotest.OneByteReader(bytes.NewReader(body)))
		if (err == nil) != (err2 == nil) || err == nil && (shown(in) != shown(again) || !bytes.Equal(zip, zip2)) {
			t.Fatalf("in one piece %v %v, by bytes %v %v", in, err, again, err2)
		}
		if err != nil {
			return
		}
		if len(bytes.TrimSpace(body)) > 0 && !json.Valid(body) {
			t.Fatalf("%q is taken and is no JSON", body)
		}
		if err := api().validate(api().shape("CreateFunctionRequest"), in); err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatal(err)
			}
		}
	})
}
