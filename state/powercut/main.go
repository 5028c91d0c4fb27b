// Command powercut changes a store and its blobs until it is killed, for the tests beside
// it, which cut the power of the disk under it. It says what it begins and what was
// acknowledged, and the tests compare what is left with that.
//
//	powercut load FOLDER SYNCHRONOUS    changes the store in a folder
//	powercut group FOLDER WRITERS N     has so many writers make N updates each, once a line comes
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 3 && args[0] == "load" {
		return load(args[1], args[2])
	}
	if len(args) == 4 && args[0] == "group" {
		writers, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		return group(args[1], writers, n)
	}
	return fmt.Errorf("unknown arguments %q", args)
}
