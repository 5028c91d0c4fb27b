package lambda

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

const functions = "/2015-03-31/functions"

// want compares what an answer has with what it must have. "*" stands for any string that is
// not empty.
func (f *fixture) want(got map[string]any, want j) {
	f.t.Helper()
	b, err := json.Marshal(want)
	if err != nil {
		f.t.Fatal(err)
	}
	var w map[string]any
	if err := json.Unmarshal(b, &w); err != nil {
		f.t.Fatal(err)
	}
	for k, v := range w {
		if s, ok := got[k].(string); v == "*" && ok && s != "" {
			w[k] = got[k]
		}
	}
	if !reflect.DeepEqual(got, w) {
		g, _ := json.Marshal(got)
		b, _ := json.Marshal(w)
		f.t.Errorf("got\n%s\nwant\n%s", g, b)
	}
}

// merge returns a with the members of b; nil removes one.
func merge(a, b j) j {
	m := j{}
	for k, v := range a {
		m[k] = v
	}
	for k, v := range b {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	return m
}

func digest(zip string) string {
	d := sha256.Sum256([]byte(zip))
	return base64.StdEncoding.EncodeToString(d[:])
}

// The life of a function, with whole answers as AWS gives them.
func TestLife(t *testing.T) {
	hold := make(chan struct{})
	f := newFixture(t, func(_ *Config, f *fixture) {
		f.deployer.onSwitch = func(ctx context.Context, _ string, _ uint64) error {
			select {
			case <-hold:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	request := newFunction("f")
	request["Environment"] = j{"Variables": j{}}
	request["MemorySize"], request["Timeout"] = 256, 5
	a := f.send("POST", functions, request)
	created := j{
		"FunctionName": "f", "FunctionArn": ownARN + "f", "Runtime": "python3.12", "Role": testRole, "Handler": "index.handler",
		"CodeSize": 8, "CodeSha256": digest("zip of f"), "Description": "", "Timeout": 5, "MemorySize": 256, "LastModified": "*", "Version": "$LATEST",
		"Environment": j{"Variables": j{}}, "TracingConfig": j{"Mode": "PassThrough"}, "RevisionId": "*",
		"State": "Pending", "StateReason": "The function is being created.", "StateReasonCode": "Creating",
		"PackageType": "Zip", "Architectures": []string{"x86_64"}, "EphemeralStorage": j{"Size": 512},
		"SnapStart":            j{"ApplyOn": "None", "OptimizationStatus": "Off"},
		"RuntimeVersionConfig": a.body["RuntimeVersionConfig"],
		"LoggingConfig":        j{"LogFormat": "Text", "LogGroup": "/aws/lambda/f"},
	}
	if a.status != 201 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.want(a.body, created)
	f.shaped(a)
	if arn, _ := a.body["RuntimeVersionConfig"].(map[string]any)["RuntimeVersionArn"].(string); !api().shape("RuntimeVersionArn").matches()(arn) {
		t.Errorf("RuntimeVersionArn %q", arn)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000+0000", a.body["LastModified"].(string)); err != nil {
		t.Error(err)
	}
	if a := f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 6}); a.status != 409 || a.text() != "The operation cannot be performed at this time. The function is currently in the following state: Pending" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	_, err := f.Resolve(context.Background(), "f", "")
	if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.Type != "ResourceConflictException") { // announced, or not yet
		t.Error(err)
	}

	hold <- struct{}{}
	f.settled("f")
	activeNow := merge(created, j{"State": "Active", "StateReason": nil, "StateReasonCode": nil, "LastUpdateStatus": "Successful"})
	now := f.get("f")
	f.want(now, activeNow)
	if now["RevisionId"] == a.body["RevisionId"] {
		t.Error("the revision id did not change with the state")
	}

	a = f.send("PUT", named("f", "/configuration", ""), j{"Runtime": "python3.11", "Description": "Changed", "MemorySize": 512, "Timeout": 10,
		"Environment": j{"Variables": j{"ENV_A": "a"}}, "RevisionId": now["RevisionId"]})
	updating := merge(activeNow, j{"Runtime": "python3.11", "Description": "Changed", "MemorySize": 512, "Timeout": 10,
		"Environment": j{"Variables": j{"ENV_A": "a"}}, "RuntimeVersionConfig": a.body["RuntimeVersionConfig"],
		"LastUpdateStatus": "InProgress", "LastUpdateStatusReason": "The function is being created.", "LastUpdateStatusReasonCode": "Creating"})
	f.want(a.body, updating)
	f.want(f.get("f"), updating)
	for _, target := range []string{"/configuration", "/code"} {
		a := f.send("PUT", named("f", target, ""), j{"ZipFile": []byte("x")})
		if a.status != 409 || a.text() != "The operation cannot be performed at this time. An update is in progress for resource: "+ownARN+"f" {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	hold <- struct{}{}
	f.settled("f")
	done := merge(updating, j{"LastUpdateStatus": "Successful", "LastUpdateStatusReason": nil, "LastUpdateStatusReasonCode": nil})
	f.want(f.get("f"), done)

	a = f.send("PUT", named(ownARN+"f", "/code", ""), j{"ZipFile": []byte("other")})
	f.want(a.body, merge(updating, j{"CodeSize": 5, "CodeSha256": digest("other")}))
	hold <- struct{}{}
	f.settled("f")
	f.want(f.get("111111111111:function:f"), merge(done, j{"CodeSize": 5, "CodeSha256": digest("other")}))

	close(hold)
	if a := f.send("DELETE", named("f", "", ""), nil); a.status != 204 || a.raw != "" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if !f.deployer.gone["f"] {
		t.Error("the worker does not know that the function is gone")
	}
	if a := f.send("DELETE", named("f", "", ""), nil); a.status != 404 || a.text() != "Function not found: "+ownARN+"f" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if rows := f.store.keys("fn/"); len(rows) > 0 {
		t.Errorf("rows %v are left", rows)
	}
	var u usage
	if _, err := get(memTx{f.store.rows}, usageKey, &u); err != nil || u != (usage{}) {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// What functions can have besides, and how it comes back.
func TestMembers(t *testing.T) {
	f := newFixture(t, nil)
	for name, c := range map[string]struct {
		set  j
		want j
	}{
		"no variables":    {j{}, j{"Environment": nil}},
		"variables":       {j{"Environment": j{"Variables": j{"A1": "ü"}}}, j{"Environment": map[string]any{"Variables": map[string]any{"A1": "ü"}}}},
		"empty":           {j{"Environment": j{}}, j{"Environment": map[string]any{"Variables": map[string]any{}}}},
		"nearly too much": {j{"Environment": j{"Variables": j{"LARGE_VAR": strings.Repeat("x", 4096-7-9)}}}, j{"Timeout": 3.0}},
		"a network": {j{"VpcConfig": j{"SubnetIds": []string{"subnet-lan"}}}, j{"VpcConfig": map[string]any{"SubnetIds": []any{"subnet-lan"},
			"SecurityGroupIds": []any{}, "VpcId": "vpc-lan", "Ipv6AllowedForDualStack": false}}},
		"no network": {j{"VpcConfig": j{"SubnetIds": []string{}, "SecurityGroupIds": []string{}}}, j{"VpcConfig": map[string]any{"SubnetIds": []any{},
			"SecurityGroupIds": []any{}, "VpcId": "", "Ipv6AllowedForDualStack": false}}},
		"JSON logs": {j{"LoggingConfig": j{"LogFormat": "JSON"}}, j{"LoggingConfig": map[string]any{"LogFormat": "JSON", "ApplicationLogLevel": "INFO",
			"SystemLogLevel": "INFO", "LogGroup": "/aws/lambda/f"}}},
		"levels": {j{"LoggingConfig": j{"LogFormat": "JSON", "SystemLogLevel": "DEBUG", "LogGroup": "cool"}}, j{"LoggingConfig": map[string]any{"LogFormat": "JSON",
			"ApplicationLogLevel": "INFO", "SystemLogLevel": "DEBUG", "LogGroup": "cool"}}},
		"a group": {j{"LoggingConfig": j{"LogGroup": "cool"}}, j{"LoggingConfig": map[string]any{"LogFormat": "Text", "LogGroup": "cool"}}},
		"snap-start": {j{"SnapStart": j{"ApplyOn": "PublishedVersions"}}, j{"SnapStart": map[string]any{"ApplyOn": "PublishedVersions",
			"OptimizationStatus": "Off"}}},
		"the rest": {j{"KMSKeyArn": "arn:aws:kms:eu-west-1:111111111111:key/k", "TracingConfig": j{"Mode": "Active"}, "EphemeralStorage": j{"Size": 1024},
			"TenancyConfig": j{"TenantIsolationMode": "PER_TENANT"}, "Role": "arn:aws:iam::000000000000:role/none", "Publish": false, "Layers": []string{},
			"DeadLetterConfig": j{}, "FileSystemConfigs": nil}, j{"KMSKeyArn": "arn:aws:kms:eu-west-1:111111111111:key/k",
			"TracingConfig": map[string]any{"Mode": "Active"}, "EphemeralStorage": map[string]any{"Size": 1024.0},
			"TenancyConfig": map[string]any{"TenantIsolationMode": "PER_TENANT"}, "Role": "arn:aws:iam::000000000000:role/none", "Layers": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.create(merge(newFunction("f"), c.set))
			got := f.get("f")
			for member, want := range c.want {
				if !reflect.DeepEqual(got[member], want) {
					t.Errorf("%s: %v, want %v", member, got[member], want)
				}
			}
			f.send("DELETE", named("f", "", ""), nil)
		})
	}
}

// An update changes what it names, and nothing else.
func TestUpdateKeepsTheRest(t *testing.T) {
	f := newFixture(t, nil)
	f.create(merge(newFunction("f"), j{"Environment": j{"Variables": j{"A1": "b"}}, "VpcConfig": j{"SubnetIds": []string{"subnet-lan"}},
		"LoggingConfig": j{"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"}, "Tags": j{"a": "b"}, "Description": "d", "KMSKeyArn": "arn:aws:kms:x:y"}))
	before := f.get("f")
	update := func(change j) map[string]any {
		t.Helper()
		if a := f.send("PUT", named("f", "/configuration", ""), change); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.raw)
		}
		f.settled("f")
		return f.get("f")
	}
	after := update(j{})
	for _, member := range []string{"LastModified", "RevisionId"} {
		before[member] = after[member]
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("an empty update changed %v to %v", before, after)
	}
	for member, c := range map[string]struct{ set, want any }{
		"Environment":   {j{"Variables": j{}}, map[string]any{"Variables": map[string]any{}}},
		"LoggingConfig": {j{"LogFormat": "Text"}, map[string]any{"LogFormat": "Text", "LogGroup": "/aws/lambda/f"}},
		"Description":   {"", ""},
		"KMSKeyArn":     {"", nil},
		"VpcConfig":     {j{"SubnetIds": []string{}}, map[string]any{"SubnetIds": []any{}, "SecurityGroupIds": []any{}, "VpcId": "", "Ipv6AllowedForDualStack": false}},
	} {
		if got := update(j{member: c.set})[member]; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", member, got, c.want)
		}
	}
	if a := f.send("GET", named("f", "", ""), nil); !reflect.DeepEqual(a.body["Tags"], map[string]any{"a": "b"}) {
		t.Errorf("tags %v", a.body["Tags"])
	}
}

func TestGetFunction(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	a := f.send("GET", named("f", "", "Qualifier=$LATEST"), nil)
	if a.body["Configuration"].(map[string]any)["FunctionArn"] != ownARN+"f:$LATEST" {
		t.Errorf("%s", a.raw)
	}
	f.shaped(a)
	if _, ok := a.body["Tags"]; ok {
		t.Errorf("Tags without tags: %s", a.raw)
	}
	code := a.body["Code"].(map[string]any)
	location, err := url.Parse(code["Location"].(string))
	if err != nil || code["RepositoryType"] != "S3" || location.Scheme != "http" || location.Host != "example.com" {
		t.Errorf("%v, %v", code, err)
	}
	if a := f.send("GET", location.RequestURI(), nil); a.status != 200 || a.raw != "zip of f" || a.header.Get("Content-Type") != "application/zip" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// A URL of code is good for that code, for ten minutes.
func TestCodeURL(t *testing.T) {
	now := time.Now()
	f := newFixture(t, func(c *Config, _ *fixture) { c.Now = func() time.Time { return now } })
	f.create(newFunction("f"))
	f.create(newFunction("g"))
	hex := func(zip string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(zip))) }
	good := strings.TrimPrefix(f.codeURL("h", hex("zip of f")), "http://h")
	for name, target := range map[string]string{
		"other code":   strings.Replace(good, hex("zip of f"), hex("zip of g"), 1),
		"other time":   strings.Replace(good, "Expires=", "Expires=9", 1),
		"no signature": strings.Split(good, "&")[0],
		"no query":     strings.Split(good, "?")[0],
		"no code":      "/code/",
		"a path":       "/code/../fn",
	} {
		if a := f.send("GET", target, nil); a.status != 403 {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	if a := f.send("POST", good, nil); a.status != 403 {
		t.Errorf("POST: %d %s", a.status, a.raw)
	}
	now = now.Add(codeValid - time.Second)
	if a := f.send("GET", good, nil); a.status != 200 {
		t.Errorf("before its end: %d %s", a.status, a.raw)
	}
	now = now.Add(time.Second)
	if a := f.send("GET", good, nil); a.status != 403 {
		t.Errorf("after its end: %d %s", a.status, a.raw)
	}
}

func TestListFunctions(t *testing.T) {
	f := newFixture(t, nil)
	if a := f.send("GET", functions, nil); a.raw != `{"Functions":[],"NextMarker":null}`+"\n" {
		t.Errorf("%s", a.raw)
	}
	const n = 103
	for i := range n {
		f.create(newFunction(fmt.Sprintf("f%03d", i)))
	}
	for _, c := range []struct{ max, pages int }{{0, 3}, {50, 3}, {10000, 3}, {7, 15}, {1, n}, {49, 3}} {
		seen, pages, query := 0, 0, url.Values{}
		if c.max > 0 {
			query.Set("MaxItems", fmt.Sprint(c.max))
		}
		for {
			a := f.send("GET", functions+"?"+query.Encode(), nil)
			if a.status != 200 {
				t.Fatalf("%d %s", a.status, a.raw)
			}
			pages++
			for _, e := range a.body["Functions"].([]any) {
				if e.(map[string]any)["FunctionName"] != fmt.Sprintf("f%03d", seen) {
					t.Fatalf("%v at place %d", e, seen)
				}
				seen++
			}
			if a.body["NextMarker"] == nil {
				break
			}
			query.Set("Marker", a.body["NextMarker"].(string))
		}
		if seen != n || pages != c.pages {
			t.Errorf("at most %d: %d functions on %d pages, want %d on %d", c.max, seen, pages, n, c.pages)
		}
	}
	a := f.send("GET", functions+"?MaxItems=1&FunctionVersion=ALL", nil)
	f.want(a.body["Functions"].([]any)[0].(map[string]any), j{
		"FunctionName": "f000", "FunctionArn": ownARN + "f000:$LATEST", "Runtime": "python3.12", "Role": testRole, "Handler": "index.handler",
		"CodeSize": 11, "CodeSha256": digest("zip of f000"), "Description": "", "Timeout": 3, "MemorySize": 128, "LastModified": "*", "Version": "$LATEST",
		"TracingConfig": j{"Mode": "PassThrough"}, "RevisionId": "*", "PackageType": "Zip", "Architectures": []string{"x86_64"},
		"EphemeralStorage": j{"Size": 512}, "SnapStart": j{"ApplyOn": "None", "OptimizationStatus": "Off"},
		"LoggingConfig": j{"LogFormat": "Text", "LogGroup": "/aws/lambda/f000"},
	})
	if a := f.send("GET", functions+"?MasterRegion=us-east-1&FunctionVersion=ALL", nil); len(a.body["Functions"].([]any)) != 0 {
		t.Errorf("%s", a.raw)
	}
}

// A dry run of an update says what it would do, and does not do it.
func TestDryRun(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	before := f.get("f")
	a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("other"), "DryRun": true})
	if a.status != 200 || a.body["CodeSha256"] != digest("other") || a.body["LastUpdateStatus"] != "Successful" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if after := f.get("f"); !reflect.DeepEqual(before, after) {
		t.Errorf("%v became %v", before, after)
	}
	if len(f.deployer.released) == 0 {
		t.Error("the revision of the dry run is kept")
	}
}

// Secrets are sealed in the store, and are not in what operators see.
func TestSecrets(t *testing.T) {
	f := newFixture(t, nil)
	const secret = "very-secret-value"
	f.create(merge(newFunction("f"), j{"Environment": j{"Variables": j{"TOKEN": secret}}}))
	f.send("PUT", named("f", "/configuration", ""), j{"Environment": j{"Variables": j{"TOKEN": secret, "AWS_REGION": secret}}})
	f.send("PUT", named("f", "/configuration", ""), j{"Environment": j{"Variables": j{"TOKEN": secret}}})
	f.settled("f")
	for k, v := range f.store.rows {
		if bytes.Contains(v, []byte(secret)) {
			t.Errorf("row %s has the secret: %s", k, v)
		}
	}
	for range len(f.calls) {
		if c := <-f.calls; strings.Contains(fmt.Sprint(c), secret) {
			t.Errorf("%+v", c)
		}
	}
	r, err := f.Resolve(context.Background(), "f", "$LATEST")
	if err != nil || r.Settings.Env != nil || strings.Contains(fmt.Sprint(r), secret) {
		t.Errorf("%+v, %v", r, err)
	}
	env, err := f.Environment(context.Background(), r.ID.Number)
	if err != nil || !reflect.DeepEqual(env, map[string]string{"TOKEN": secret}) {
		t.Errorf("%v, %v", env, err)
	}
	if _, err := f.Environment(context.Background(), 12345); err == nil {
		t.Error("a revision that is not there has an environment")
	}

	// What cannot be opened is said, and the rest is shown.
	f.cfg.Sealer = brokenSealer{}
	got := f.get("f")["Environment"].(map[string]any)
	if e, _ := got["Error"].(map[string]any); e["ErrorCode"] == "" || e["Message"] == "" || got["Variables"] != nil {
		t.Errorf("%v", got)
	}
}

type brokenSealer struct{ xorSealer }

func (brokenSealer) Open(string, []byte) ([]byte, error) { return nil, errors.New("no such key") }

// Every call is told of, once.
func TestAudit(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *fixture) {
		c.Authenticate = func(r *http.Request) (Caller, error) {
			if r.Header.Get("Authorization") == "" {
				return Caller{}, &Error{Status: 403, Type: "MissingAuthenticationTokenException", Message: "Missing Authentication Token"}
			}
			return Caller{Key: "AKID", Allowed: func(action, arn string) bool { return action != "lambda:DeleteFunction" }}, nil
		}
	})
	call := func(method, target, key string, body io.Reader) answer {
		r := httptest.NewRequest(method, target, body)
		r.Header.Set("Authorization", key)
		return f.do(r)
	}
	b, _ := json.Marshal(newFunction("f"))
	for _, c := range []struct {
		answer answer
		want   Call
	}{
		{call("GET", functions, "", nil), Call{Status: 403, Type: "MissingAuthenticationTokenException"}},
		{call("POST", functions, "k", bytes.NewReader(b)), Call{Key: "AKID", Action: "lambda:CreateFunction", ARN: ownARN + "f", Status: 201}},
		{call("GET", named("none", "", ""), "k", nil), Call{Key: "AKID", Action: "lambda:GetFunction", ARN: ownARN + "none", Status: 404, Type: missing}},
		{call("DELETE", named("f", "", ""), "k", nil), Call{Key: "AKID", Action: "lambda:DeleteFunction", ARN: ownARN + "f", Status: 403, Type: "AccessDeniedException"}},
		{call("DELETE", named("none", "", ""), "k", nil), Call{Key: "AKID", Action: "lambda:DeleteFunction", ARN: ownARN + "none", Status: 403, Type: "AccessDeniedException"}},
		{call("GET", "/none", "k", nil), Call{Key: "AKID", Status: 404, Type: "UnknownOperationException"}},
	} {
		got := <-f.calls
		if got.RequestID == "" || got.RequestID != c.answer.header.Get("X-Amzn-Requestid") || got.Time.IsZero() {
			t.Errorf("%+v, answer %v", got, c.answer.header)
		}
		got.Time, got.Duration, got.RequestID = time.Time{}, 0, ""
		if got != c.want {
			t.Errorf("got %+v\nwant %+v", got, c.want)
		}
	}
	if len(f.calls) > 0 {
		t.Errorf("%+v is told of twice", <-f.calls)
	}
}
