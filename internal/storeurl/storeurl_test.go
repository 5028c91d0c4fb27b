package storeurl

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"postgres://u@127.0.0.1/db":                                     "tcp 127.0.0.1:5432",
		"postgresql://u@[::1]:15432/db?sslmode=disable":                 "tcp [::1]:15432",
		"postgres://u@localhost:5433/db":                                "tcp 127.0.0.1:5433",
		"postgres://u@db.example.com/db?hostaddr=10.1.2.3":              "tcp 10.1.2.3:5432",
		"postgres://u@/db?host=/run/postgresql":                         "unix /run/postgresql/.s.PGSQL.5432",
		"postgres://u@db.example.com/db":                                "add ?hostaddr=ADDRESS",
		"postgres://u:secret@127.0.0.1/db":                              "--store-password-file",
		"postgres://127.0.0.1/db":                                       "of the form",
		"postgres://u@127.0.0.1/":                                       "of the form",
		"mysql://u@127.0.0.1/db":                                        "of the form",
		"postgres://u@/db":                                              "names no host",
		"postgres://u@127.0.0.1/db?host=/run/postgresql":                "two hosts",
		"postgres://u@127.0.0.1/db?sslmode=require":                     "does not verify",
		"postgres://u@127.0.0.1/db?password=secret":                     `the parameter "password"`,
		"postgres://u@db.example.com/db?hostaddr=elsewhere.example.com": "is no IP address",
	} {
		got := ""
		u, err := Parse(text)
		if err == nil {
			var network, address string
			network, address, err = u.Address()
			got = network + " " + address
		}
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || strings.Contains(got, "secret") {
			t.Errorf("%s: %s; want %s", text, got, want)
		}
	}
}
