// Command extension-go is an external Lambda extension: it registers for INVOKE and
// SHUTDOWN and prints a line for each event.
//
//	CGO_ENABLED=0 go build -o layer/extensions/extension-go ./examples/extension-go
//	sandboxd run --layer layer fn
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// event is what the platform tells an extension.
type event struct {
	EventType      string `json:"eventType"`
	RequestID      string `json:"requestId"`      // of an INVOKE
	ShutdownReason string `json:"shutdownReason"` // of a SHUTDOWN
}

func main() {
	log.SetFlags(0)
	api := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension"
	id, err := register(api, filepath.Base(os.Args[0]))
	if err != nil {
		log.Fatal(err)
	}
	for {
		ev, err := next(api, id)
		if err != nil {
			log.Fatal(err)
		}
		switch ev.EventType {
		case "INVOKE":
			fmt.Printf("extension-go: INVOKE %s\n", ev.RequestID)
		case "SHUTDOWN":
			fmt.Printf("extension-go: SHUTDOWN %s\n", ev.ShutdownReason)
			return
		}
	}
}

// register makes the extension known under its file name, and returns its id.
func register(api, name string) (string, error) {
	req, err := http.NewRequest(http.MethodPost, api+"/register", strings.NewReader(`{"events":["INVOKE","SHUTDOWN"]}`))
	if err != nil {
		return "", err
	}
	req.Header.Set("Lambda-Extension-Name", name)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("register: %s", resp.Status)
	}
	return resp.Header.Get("Lambda-Extension-Identifier"), nil
}

// next waits for the next event. The first call says that the extension is ready.
func next(api, id string) (event, error) {
	var ev event
	req, err := http.NewRequest(http.MethodGet, api+"/event/next", nil)
	if err != nil {
		return ev, err
	}
	req.Header.Set("Lambda-Extension-Identifier", id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ev, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return ev, fmt.Errorf("next: %s", resp.Status)
	}
	return ev, json.NewDecoder(resp.Body).Decode(&ev)
}
