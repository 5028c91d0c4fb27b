package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/seal"
)

var now = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

func ring(t *testing.T, keys ...byte) *seal.Ring {
	t.Helper()
	var secrets [][]byte
	for _, k := range keys {
		secrets = append(secrets, bytes.Repeat([]byte{k}, seal.KeySize))
	}
	r, err := seal.New(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNew(t *testing.T) {
	r := ring(t, 1)
	seen := map[string]bool{}
	for range 100 {
		k, secret, err := New(Admin, nil, now, r)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^AKSD[A-Z2-7]{16}$`).MatchString(k.ID) || !regexp.MustCompile(`^[A-Z2-7]{40}$`).MatchString(secret) {
			t.Fatalf("key %s with secret %s", k.ID, secret)
		}
		if seen[k.ID] || seen[secret] {
			t.Fatalf("key %s or its secret was made twice", k.ID)
		}
		seen[k.ID], seen[secret] = true, true
	}
}

// The secret is in the record only in its sealed form, and only in the record of its key.
func TestSecret(t *testing.T) {
	k, secret, err := New(Invoke, []string{"*"}, now, ring(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(k)
	if err != nil || strings.Contains(string(text), secret) {
		t.Fatalf("%s, %v: has the secret", text, err)
	}
	var stored Key
	if err := json.Unmarshal(text, &stored); err != nil {
		t.Fatal(err)
	}
	if got, err := stored.Open(ring(t, 1)); err != nil || got != secret {
		t.Errorf("opened %q, %v; want %q", got, err, secret)
	}
	other := stored
	other.ID = "AKSDAAAAAAAAAAAAAAAA"
	if got, err := other.Open(ring(t, 1)); !errors.Is(err, seal.ErrDamaged) || got != "" {
		t.Errorf("in the record of another key it opens to %q, %v", got, err)
	}
	if changed, err := stored.Reseal(ring(t, 2, 1)); err != nil || !changed {
		t.Errorf("reseal: changed %v, %v", changed, err)
	}
	if got, err := stored.Open(ring(t, 2)); err != nil || got != secret {
		t.Errorf("resealed, it opens to %q, %v", got, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		kind      Kind
		functions []string
	}{
		"kind":              {"root", nil},
		"admin with names":  {Admin, []string{"a"}},
		"invoke of nothing": {Invoke, nil},
		"empty pattern":     {Invoke, []string{""}},
		"class in pattern":  {Invoke, []string{"[a-z]"}},
		"escape in pattern": {Invoke, []string{`\*`}},
		"ARN":               {Invoke, []string{"arn:aws:lambda:us-east-1:000000000000:function:a"}},
		"long pattern":      {Invoke, []string{strings.Repeat("a", 65)}},
		"many patterns":     {Invoke, make([]string, maxFunctions+1)},
	} {
		if k, _, err := New(tt.kind, tt.functions, now, ring(t, 1)); err == nil {
			t.Errorf("%s: made %+v", name, k)
		}
	}
}

func TestAllows(t *testing.T) {
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:"
	const invoke = "lambda:InvokeFunction"
	admin, some, revoked := Key{Kind: Admin}, Key{Kind: Invoke, Functions: []string{"hello", "team-?-*"}}, Key{Kind: Admin, Revoked: now}
	for _, tt := range []struct {
		key         Key
		action, arn string
		want        bool
	}{
		{admin, "lambda:DeleteFunction", arn + "hello", true},
		{admin, "lambda:ListFunctions", "*", true},
		{revoked, invoke, arn + "hello", false},
		{Key{}, invoke, arn + "hello", false},
		{some, invoke, arn + "hello", true},
		{some, invoke, arn + "hello:$LATEST", true},
		{some, invoke, arn + "hello:1", true},
		{some, "lambda:InvokeAsync", arn + "hello", true},
		{some, "lambda:InvokeFunctionUrl", arn + "hello", true},
		{some, invoke, arn + "hello2", false},
		{some, invoke, arn + "Hello", false},
		{some, invoke, arn + "team-a-x", true},
		{some, invoke, arn + "team-a-", true},
		{some, invoke, arn + "team-ab-x", false},
		{some, invoke, arn + "hello:1:2", false},
		{some, invoke, arn, false},
		{some, invoke, "arn:aws:iam:us-east-1:000000000000:function:hello", false},
		{some, invoke, "arn:aws:lambda:us-east-1:000000000000:layer:hello", false},
		{some, invoke, "hello", false},
		{some, invoke, "*", false},
		{some, "lambda:GetFunction", arn + "hello", false},
		{some, "lambda:UpdateFunctionCode", arn + "hello", false},
		{some, "lambda:invokefunction", arn + "hello", false},
		{Key{Kind: Invoke, Functions: []string{"*"}}, invoke, arn + "a/b", false},
		{Key{Kind: Invoke, Functions: []string{"*"}}, invoke, arn + "anything", true},
		{Key{Kind: Invoke, Functions: []string{"*"}}, "lambda:*", arn + "anything", false},
	} {
		if got := tt.key.Allows(tt.action, tt.arn); got != tt.want {
			t.Errorf("%s %v: %s on %s: %v, want %v", tt.key.Kind, tt.key.Functions, tt.action, tt.arn, got, tt.want)
		}
	}
}
