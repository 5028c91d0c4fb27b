// Command webgo is the web application of the tests on lambdaurl. What all of them do is
// said in ../web_test.go.
package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-lambda-go/lambdaurl"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		greeting := "hello"
		if g := r.FormValue("greeting"); g != "" {
			greeting = g
		}
		reply(w, struct {
			Text string   `json:"text"`
			N    []string `json:"n"`
		}{greeting + ", " + r.PathValue("name"), append([]string{}, r.Form["n"]...)})
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "d", MaxAge: 7})
		http.Redirect(w, r, "/hello/you", http.StatusFound)
	})
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) {
		text := ""
		for i, name := range []string{"a", "c"} {
			c, err := r.Cookie(name)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			text += []string{"", " "}[i] + c.Value
		}
		reply(w, text)
	})
	mux.HandleFunc("GET /parts", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first ")
		for {
			if _, err := os.Stat("/var/task/go-on"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		_, _ = io.WriteString(w, "second")
	})
	lambdaurl.Start(mux)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
