// Package testtime fits tests to the speed of the machine that runs them. Only tests
// import it. Whoever knows that a machine is slow, as vm/test.sh knows it of an emulated
// one, says so in two environment variables; without them tests are as they are written.
package testtime

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// The environment variables. Each holds a whole number of at least 1, which is the default.
const (
	Patience = "SANDBOXD_TEST_PATIENCE" // how many times longer than written tests wait
	Share    = "SANDBOXD_TEST_SHARE"    // tests do their rounds one in so many
)

// Limit returns d, a time that a test allows for something, multiplied by Patience.
func Limit(d time.Duration) time.Duration { return d * time.Duration(factor(Patience)) }

// Factor returns Patience.
func Factor() float64 { return float64(factor(Patience)) }

// Rounds returns how often a test does what it does n times on a machine of usual speed:
// n divided by Share, and at least twice.
func Rounds(n int) int {
	if share := factor(Share); share > 1 {
		return max(n/share, 2)
	}
	return n
}

// factor is the value of a variable. A value that is no factor ends the tests.
func factor(variable string) int {
	text := os.Getenv(variable)
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q: want a whole number of at least 1", variable, text))
	}
	return n
}
