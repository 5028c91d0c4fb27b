package access

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// home is where the keys of a test are.
type home struct {
	*Keys
	t     *testing.T
	store *state.Store
	ring  *seal.Ring
	now   time.Time
}

var scope = sigv4.Scope{Region: "us-east-1", Service: "lambda"}

func newHome(t *testing.T, unsigned bool) *home {
	t.Helper()
	store, err := sqlite.Open(t.Context(), sqlite.Options{Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.New(bytes.Repeat([]byte{1}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	h := &home{t: t, store: store, ring: ring, now: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)}
	h.Keys = NewKeys(Config{
		Store: store, Ring: ring, Scope: scope, Unsigned: unsigned, Now: func() time.Time { return h.now },
		OnError: func(err error) { t.Error(err) },
	})
	t.Cleanup(func() {
		h.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *home) create(kind Kind, functions ...string) (Key, string) {
	h.t.Helper()
	k, secret, err := h.Create(h.t.Context(), kind, functions)
	if err != nil {
		h.t.Fatal(err)
	}
	return k, secret
}

func (h *home) list() map[string]Key {
	h.t.Helper()
	h.Close() // what is being stored
	list, err := h.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	m := map[string]Key{}
	for _, k := range list {
		m[k.ID] = k
	}
	return m
}

// A key is there when it was made, and stays in the list when it was revoked, without its
// secret.
func TestKeys(t *testing.T) {
	h := newHome(t, false)
	if len(h.list()) != 0 {
		t.Error("there are keys in an empty store")
	}
	admin, _ := h.create(Admin)
	invoke, _ := h.create(Invoke, "a*", "b")
	if list := h.list(); len(list) != 2 || list[admin.ID].Kind != Admin || strings.Join(list[invoke.ID].Functions, " ") != "a* b" {
		t.Errorf("%+v", list)
	}
	if _, _, err := h.Create(t.Context(), Invoke, nil); err == nil {
		t.Error("an invoke key for no function was made")
	}
	revoked, err := h.Revoke(t.Context(), admin.ID)
	if err != nil || !revoked.Revoked.Equal(h.now) {
		t.Errorf("%+v, %v", revoked, err)
	}
	h.now = h.now.Add(time.Hour)
	if again, err := h.Revoke(t.Context(), admin.ID); err != nil || !again.Revoked.Equal(revoked.Revoked) {
		t.Errorf("revoked again: %+v, %v; want the first time", again, err)
	}
	if k := h.list()[admin.ID]; k.Active() || k.Secret != nil {
		t.Errorf("%+v; want it without a secret", k)
	}
	for _, id := range []string{"", "AKSDNOBODY", "../meta", strings.Repeat("A", 5000)} {
		if _, err := h.Revoke(t.Context(), id); !errors.Is(err, ErrNoKey) && !errors.Is(err, state.ErrInvalid) {
			t.Errorf("revoke %.20q: %v", id, err)
		}
	}
}

// The first key is stored once, and does not come back when it was revoked.
func TestAdopt(t *testing.T) {
	h := newHome(t, false)
	first := message.NewAccessKey()
	for range 2 {
		if err := h.Adopt(t.Context(), first.ID, first.Secret); err != nil {
			t.Fatal(err)
		}
	}
	if k := h.list()[first.ID]; k.Kind != Admin || !k.Created.Equal(h.now) {
		t.Errorf("%+v", k)
	}
	if secret, err := h.list()[first.ID].Open(h.ring); err != nil || secret != first.Secret {
		t.Errorf("another secret, %v", err)
	}
	if _, err := h.Revoke(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Adopt(t.Context(), first.ID, first.Secret); err != nil || h.list()[first.ID].Active() {
		t.Errorf("the revoked key is back, %v", err)
	}
}

// What a row says is believed only in its own place.
func TestRowsMoved(t *testing.T) {
	h := newHome(t, false)
	admin, _ := h.create(Admin)
	invoke, _ := h.create(Invoke, "f")
	move := func(change func(*Key)) error {
		return h.store.Update(t.Context(), func(tx *state.Tx) error {
			value, err := tx.Get(Rows + admin.ID)
			if err != nil {
				return err
			}
			var k Key
			if err := json.Unmarshal(value, &k); err != nil {
				return err
			}
			change(&k)
			if value, err = json.Marshal(k); err != nil {
				return err
			}
			return tx.Put(Rows+invoke.ID, value)
		})
	}
	if err := move(func(*Key) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Verify(t.Context(), message.Verify{AccessKeyID: invoke.ID}); !errors.Is(err, state.ErrDamaged) {
		t.Errorf("a row of another key: %v", err)
	}
	if err := move(func(k *Key) { k.ID = invoke.ID }); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Verify(t.Context(), message.Verify{AccessKeyID: invoke.ID}); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("a secret of another key: %v", err)
	}
}

// question is what the worker asks about a signature that was made with a secret at a time.
func question(id, secret string, at time.Time, action, arn string) message.Verify {
	v := message.Verify{AccessKeyID: id, Date: at.Format("20060102"), Region: scope.Region, Service: scope.Service, Action: action, ARN: arn}
	v.StringToSign = "AWS4-HMAC-SHA256\n" + at.Format(stampForm) + "\n" + v.Date + "/us-east-1/lambda/aws4_request\n" + strings.Repeat("0a", 32)
	v.Signature = sign(secret, v)
	return v
}

func sign(secret string, v message.Verify) string {
	key := sigv4.DeriveKey(secret, v.Date, v.Region, v.Service)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(v.StringToSign))
	return hex.EncodeToString(mac.Sum(nil))
}

const (
	invoking = "lambda:InvokeFunction"
	arnOfF   = "arn:aws:lambda:us-east-1:000000000000:function:f"
	arnOfG   = "arn:aws:lambda:us-east-1:000000000000:function:g"
)

// SEC-15: what the worker gets to know of access keys, if it were taken over too.
func TestVerify(t *testing.T) {
	h := newHome(t, false)
	admin, adminSecret := h.create(Admin)
	key, secret := h.create(Invoke, "f")
	revoked, revokedSecret := h.create(Invoke, "*")
	if _, err := h.Revoke(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	endOfDay := time.Date(2026, 12, 2, 0, 5, 0, 0, time.UTC)
	with := func(v message.Verify, change func(*message.Verify)) message.Verify {
		change(&v)
		return v
	}
	good := question(key.ID, secret, h.now, invoking, arnOfF)
	for name, c := range map[string]struct {
		ask  message.Verify
		want string // of exists, known, allowed and key
	}{
		"an invocation":             {good, "eka+"},
		"of another function":       {question(key.ID, secret, h.now, invoking, arnOfG), "ek"},
		"another action":            {question(key.ID, secret, h.now, "lambda:GetFunction", arnOfF), "ek"},
		"an administrator":          {question(admin.ID, adminSecret, h.now, invoking, arnOfF), "eka"},
		"an administrator's action": {question(admin.ID, adminSecret, h.now, "lambda:DeleteFunction", arnOfF), "eka"},
		"a wrong secret":            {question(key.ID, adminSecret, h.now, invoking, arnOfF), "e"},
		"no such key":               {question("AKSDNOBODY", secret, h.now, invoking, arnOfF), ""},
		"no key":                    {question("", secret, h.now, invoking, arnOfF), ""},
		"a long id":                 {question(strings.Repeat("A", 5000), secret, h.now, invoking, arnOfF), ""},
		"a revoked key":             {question(revoked.ID, revokedSecret, h.now, invoking, arnOfF), ""},
		"does it exist":             {with(good, func(v *message.Verify) { v.StringToSign, v.Signature = "", "" }), "ea"},
		"does it exist, for g":      {with(good, func(v *message.Verify) { v.StringToSign, v.Signature, v.ARN = "", "", arnOfG }), "e"},
		"does a revoked one":        {message.Verify{AccessKeyID: revoked.ID}, ""},
		"no signature":              {with(good, func(v *message.Verify) { v.Signature = "" }), "e"},
		"nothing signed":            {with(good, func(v *message.Verify) { v.StringToSign = "" }), "e"},
		"a signature with capitals": {with(good, func(v *message.Verify) { v.Signature = strings.ToUpper(v.Signature) }), "e"},
		"half a signature":          {with(good, func(v *message.Verify) { v.Signature = v.Signature[:32] }), "e"},
		"six days ago":              {question(key.ID, secret, h.now.Add(-6*24*time.Hour), invoking, arnOfF), "eka"},
		"too long ago":              {question(key.ID, secret, h.now.Add(-9*24*time.Hour), invoking, arnOfF), "e"},
		"tomorrow":                  {question(key.ID, secret, h.now.Add(13*time.Hour), invoking, arnOfF), "e"},
		"later today":               {question(key.ID, secret, h.now.Add(time.Hour), invoking, arnOfF), "e"},
		"a text that is no request": {signed(secret, with(good, func(v *message.Verify) { v.StringToSign = "whatever the worker likes" })), "e"},
		"another scope in the text": {signed(secret, with(good, func(v *message.Verify) { v.StringToSign = strings.Replace(v.StringToSign, "us-east-1", "eu-west-1", 1) })), "e"},
		"another day in the text":   {signed(secret, with(good, func(v *message.Verify) { v.StringToSign = strings.Replace(v.StringToSign, "20261201T", "20261130T", 1) })), "e"},
		"another service": {signed(secret, with(good, func(v *message.Verify) {
			v.Service = "s3"
			v.StringToSign = strings.Replace(v.StringToSign, "lambda", "s3", 1)
		})), "e"},
		"another region": {signed(secret, with(good, func(v *message.Verify) {
			v.Region = "x"
			v.StringToSign = strings.Replace(v.StringToSign, "us-east-1", "x", 1)
		})), "e"},
		"a date that is none":          {signed(secret, with(good, func(v *message.Verify) { v.Date = "2026" })), "e"},
		"a hash that is none":          {signed(secret, with(good, func(v *message.Verify) { v.StringToSign = v.StringToSign[:len(v.StringToSign)-2] + "zz" })), "e"},
		"more lines":                   {signed(secret, with(good, func(v *message.Verify) { v.StringToSign += "\n" })), "e"},
		"an ARN with a pattern":        {question(key.ID, secret, h.now, invoking, strings.TrimSuffix(arnOfF, "f")+"*"), "ek"},
		"no ARN":                       {question(key.ID, secret, h.now, invoking, ""), "ek"},
		"a version of the function":    {question(key.ID, secret, h.now, invoking, arnOfF+":1"), "eka+"},
		"an ARN with too many parts":   {question(key.ID, secret, h.now, invoking, arnOfF+":1:2"), "ek"},
		"in the last minute of Skew":   {question(key.ID, secret, h.now.Add(4*time.Minute), invoking, arnOfF), "eka+"},
		"an action that is no AWS one": {question(key.ID, secret, h.now, "", arnOfF), "ek"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := h.Verify(t.Context(), c.ask)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for flag, is := range map[string]bool{"e": v.Exists, "k": v.Known, "a": v.Allowed, "+": v.Key != nil} {
				if is != strings.Contains(c.want, flag) {
					got += flag
				}
			}
			if got != "" {
				t.Errorf("%+v, want %q", v, c.want)
			}
			if v.Key != nil && (!v.Until.Equal(endOfDay) || !bytes.Equal(v.Key, sigv4.DeriveKey(secret, "20261201", "us-east-1", "lambda"))) {
				t.Errorf("a key until %v, want that of the day until %v", v.Until, endOfDay)
			}
		})
	}
	if k := h.list(); k[key.ID].Used != "2026-12-01" || k[admin.ID].Used != "2026-12-01" || k[revoked.ID].Used != "" {
		t.Errorf("used on %q, %q and %q", k[key.ID].Used, k[admin.ID].Used, k[revoked.ID].Used)
	}
	h.now = endOfDay.Add(-time.Second) // the day is over, its last requests are on their way
	if v, err := h.Verify(t.Context(), good); err != nil || v.Key == nil {
		t.Errorf("%+v, %v", v, err)
	}
	h.now = endOfDay
	if v, err := h.Verify(t.Context(), good); err != nil || v.Key != nil {
		t.Errorf("the key of a day that is over: %+v, %v", v, err)
	}
}

func signed(secret string, v message.Verify) message.Verify {
	v.Signature = sign(secret, v)
	return v
}

// The API authenticates each request by itself, whatever the worker has checked.
func TestAuthenticate(t *testing.T) {
	h := newHome(t, true)
	h.now = time.Now()
	admin, adminSecret := h.create(Admin)
	key, secret := h.create(Invoke, "f")
	revoked, revokedSecret := h.create(Admin)
	if _, err := h.Revoke(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := h.Authenticate(r)
		body := []byte("-")
		if err == nil {
			fmt.Fprintf(w, "caller %s ", caller.Key)
			body, err = io.ReadAll(r.Body)
		}
		if e, ok := errors.AsType[*lambda.Error](err); ok {
			fmt.Fprint(w, e.Type)
			return
		}
		if err != nil {
			fmt.Fprintf(w, "%T %v", err, err)
			return
		}
		fmt.Fprintf(w, "body %d may %v", len(body), caller.Allowed == nil || caller.Allowed("lambda:DeleteFunction", arnOfF))
	}))
	defer server.Close()
	for name, c := range map[string]struct {
		id, secret string
		announce   bool
		change     func(*http.Request)
		want       string
	}{
		"an administrator":         {admin.ID, adminSecret, false, nil, "caller " + admin.ID + " body 4 may true"},
		"announced":                {admin.ID, adminSecret, true, nil, "caller " + admin.ID + " body 4 may true"},
		"an invoke key":            {key.ID, secret, false, nil, "caller " + key.ID + " body 4 may false"},
		"a wrong secret":           {admin.ID, secret, false, nil, "caller " + admin.ID + " InvalidSignatureException"},
		"a wrong secret announced": {admin.ID, secret, true, nil, "InvalidSignatureException"},
		"another body":             {admin.ID, adminSecret, false, otherBody, "caller " + admin.ID + " InvalidSignatureException"},
		"another body announced":   {admin.ID, adminSecret, true, otherBody, "caller " + admin.ID + " InvalidSignatureException"},
		"no such key":              {"AKSDNOBODY", adminSecret, false, nil, "UnrecognizedClientException"},
		"a revoked key":            {revoked.ID, revokedSecret, false, nil, "UnrecognizedClientException"},
		"a session token":          {admin.ID, adminSecret, false, func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, "InvalidSignatureException"},
		"a signed session token":   {admin.ID, adminSecret, true, nil, "UnrecognizedClientException"},
		"unsigned":                 {admin.ID, adminSecret, false, func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"},
		"unsigned, by the worker": {admin.ID, adminSecret, false, func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Set(message.UnsignedHeader, "1")
		}, "caller  body 4 may true"},
		"wrong, with the worker's mark": {admin.ID, secret, true, func(r *http.Request) { r.Header.Set(message.UnsignedHeader, "1") }, "InvalidSignatureException"},
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte("body")
			sum := sha256.Sum256(body)
			r, err := http.NewRequest(http.MethodPost, server.URL+"/2015-03-31/functions/", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			digest := hex.EncodeToString(sum[:])
			if c.announce {
				r.Header.Set("X-Amz-Content-Sha256", digest)
			}
			credentials := aws.Credentials{AccessKeyID: c.id, SecretAccessKey: c.secret}
			if name == "a signed session token" {
				credentials.SessionToken = "token"
			}
			if err := v4.NewSigner().SignHTTP(t.Context(), credentials, r, digest, "lambda", "us-east-1", h.now); err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(r)
			}
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if text, err := io.ReadAll(res.Body); err != nil || string(text) != c.want {
				t.Errorf("%s, %v; want %s", text, err, c.want)
			}
		})
	}
	h.cfg.Unsigned = false
	r := httptest.NewRequest(http.MethodGet, "/2015-03-31/functions/", nil)
	r.Header.Set(message.UnsignedHeader, "1")
	if _, err := h.Authenticate(r); err == nil {
		t.Error("an unsigned request is accepted although the operator has not allowed that")
	}
}

func otherBody(r *http.Request) {
	r.Body = io.NopCloser(strings.NewReader("evil"))
	r.GetBody = nil
}

// A store that fails is no refusal, and lets nobody in.
func TestStoreFails(t *testing.T) {
	h := newHome(t, false)
	key, secret := h.create(Admin)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := h.Verify(ctx, question(key.ID, secret, h.now, invoking, arnOfF)); err == nil || v.Exists || v.Known || v.Allowed {
		t.Errorf("%+v, %v", v, err)
	}
}
