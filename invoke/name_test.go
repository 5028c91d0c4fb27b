package invoke

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// INV-01, INV-17, INV-19: the forms of a name, and what they resolve to ("404 arn", or the
// exception of a status 400).
func TestNames(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	const prefix = "arn:aws:lambda:eu-west-1:012345678912:function:"
	tests := []struct{ name, want string }{
		{"hello", testARN},
		{"function", testARN},
		{"hello:$LATEST", testARN + ":$LATEST"},
		{"hello%3A%24LATEST", testARN + ":$LATEST"},
		{"hello/invocations?Qualifier=$LATEST", testARN + ":$LATEST"},
		{"hello:$LATEST/invocations?Qualifier=%24LATEST", testARN + ":$LATEST"},
		{"012345678912:function:hello", testARN},
		{"012345678912:function:hello:$LATEST", testARN + ":$LATEST"},
		{"function:hello", testARN},
		{"function:hello:$LATEST", testARN + ":$LATEST"},
		{"012345678912:hello", testARN},
		{"eu-west-1:012345678912:function:hello", testARN},
		{"arn:aws:lambda:hello", testARN},
		{prefix + "hello", testARN},
		{strings.ReplaceAll(prefix, ":", "%3A") + "hello%3a$LATEST", testARN + ":$LATEST"},

		{"other", "404 " + prefix + "other:$LATEST"},
		{"Hello", "404 " + prefix + "Hello:$LATEST"},
		{"he.llo", "404 " + prefix + "he.llo:$LATEST"},
		{"function:other", "404 " + prefix + "other:$LATEST"},
		{prefix + "function", testARN},
		{strings.TrimSuffix(prefix, ":"), testARN}, // the name of AWS's emulator
		{"hello/invocations?Qualifier=$latest", "404 " + prefix + "hello:$latest"},
		{"hello:$LATEST.PUBLISHED", "404 " + prefix + "hello:$LATEST.PUBLISHED"},
		{"hello:" + strings.Repeat("q", 129), "404 " + prefix + "hello:" + strings.Repeat("q", 129)},
		{"hello:7", "404 " + prefix + "hello:7"},
		{"hello/invocations?Qualifier=live", "404 " + prefix + "hello:live"},
		{"111111111111:function:hello", "404 arn:aws:lambda:eu-west-1:111111111111:function:hello:$LATEST"},
		{"arn:aws-cn:lambda:eu-west-1:012345678912:function:hello", "404 arn:aws-cn:lambda:eu-west-1:012345678912:function:hello:$LATEST"},
		{"arn:aws:lambda:us-east-1:012345678912:function:hello", "404 Functions from 'us-east-1' are not reachable in this region ('eu-west-1')"},
		{strings.Repeat("x", 65), "404 " + prefix + strings.Repeat("x", 65) + ":$LATEST"},
		{"%2e%2e", "404 " + prefix + "..:$LATEST"},

		{"hello:7/invocations?Qualifier=8", "InvalidParameterValueException"},
		{"hello:$LATEST/invocations?Qualifier=1", "InvalidParameterValueException"},
		{"hello:", "ValidationException"},
		{"hello/invocations?Qualifier=a%20b", "ValidationException"},
		{"hello/invocations?Qualifier=" + strings.Repeat("q", 129), "ValidationException"},
		{"hello!", "ValidationException"},
		{"*", "ValidationException"},
		{"a%2Fb", "ValidationException"},
		{"hel%00lo", "ValidationException"},
		{"h%C3%A9llo", "ValidationException"},
		{"invalid-account:function:hello", "ValidationException"},
		{"function:hello:$LATEST:extra", "ValidationException"},
		{prefix + "hello:1:2", "ValidationException"},
		{prefix + "hello:$LATES", "ValidationException"},
		{"arn:aws:lambda:invalid-region:012345678912:function:hello", "ValidationException"},
		{"arn:aws:lambda::012345678912:function:hello", "ValidationException"},
		{"arn:aws:lambda:eu-west-1::function:hello", "ValidationException"},
		{"arn:aws:ec2:eu-west-1:012345678912:instance:i-1234567890abcdef0", "ValidationException"},
		{"arn:aws:s3:eu-west-1:012345678912:function:hello", "ValidationException"},
		{"arn:aws:lambda:eu-west-1:0123\"45678912:function:hello", "ValidationException"},
		{"a:function:b:c:d", "ValidationException"},
	}
	for _, tt := range tests {
		path := "/2015-03-31/functions/" + tt.name
		if !strings.Contains(path, "/invocations") {
			path += "/invocations"
		}
		before := len(r.invocations())
		a := r.do(call{path: strings.ReplaceAll(path, `"`, "%22")})
		var got string
		switch a.status {
		case 200:
			got = r.invocations()[before].FunctionARN
		case 404:
			var e struct{ Message string }
			_ = json.Unmarshal([]byte(a.body), &e)
			got = "404 " + strings.TrimPrefix(e.Message, "Function not found: ")
		case 400:
			got = a.header.Get("X-Amzn-ErrorType")
		default:
			got = fmt.Sprint(a.status)
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s (%s)", tt.name, got, tt.want, a.body)
		}
		if a.status != 200 && len(r.invocations()) != before {
			t.Errorf("%s: refused and run", tt.name)
		}
	}
}

// INV-17: the texts for names and qualifiers without the right form.
func TestValidationErrors(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	const name = "Value 'my-function!' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: " + nameForm
	long := strings.Repeat("a", 129)
	length := "Value '" + long + "' at 'qualifier' failed to satisfy constraint: Member must have length less than or equal to 128"
	for path, want := range map[string]string{
		"my-function!/invocations":                   "1 validation error detected: " + name,
		"hello/invocations?Qualifier=" + long:        "1 validation error detected: " + length,
		"my-function!/invocations?Qualifier=" + long: "2 validation errors detected: " + length + "; " + name,
		"hello/invocations?Qualifier=invalid!":       "1 validation error detected: Value 'invalid!' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: " + qualifierForm,
		"hello:$LATEST/invocations?Qualifier=1":      "The derived qualifier from the function name does not match the specified qualifier.",
	} {
		a := r.do(call{path: "/2015-03-31/functions/" + path})
		var e struct{ Message string }
		if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.status != 400 || e.Message != want {
			t.Errorf("%s: %d %s, want %s", path, a.status, a.body, want)
		}
	}
}

// Version is another one than $LATEST: the name of AWS's emulator with it has the form of
// function:NAME too.
func TestVersionOfTheEmulatorsName(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) { c.Functions.(*single).Version = "7" })
	for path, want := range map[string]string{"function:7": testARN + ":7", "function:hello": testARN} {
		before := len(r.invocations())
		if a := r.do(call{path: "/2015-03-31/functions/" + path + "/invocations"}); a.status != 200 || r.invocations()[before].FunctionARN != want {
			t.Errorf("%s: %d %s, want %s", path, a.status, a.body, want)
		}
	}
}
