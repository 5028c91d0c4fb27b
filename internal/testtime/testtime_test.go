package testtime

import (
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	for value, want := range map[string]time.Duration{"": time.Minute, "1": time.Minute, "5": 5 * time.Minute} {
		t.Setenv(Patience, value)
		if got := Limit(time.Minute); got != want {
			t.Errorf("%s=%s: a minute becomes %v, want %v", Patience, value, got, want)
		}
	}
}

func TestRounds(t *testing.T) {
	for _, c := range []struct {
		value   string
		n, want int
	}{{"", 20, 20}, {"", 1, 1}, {"1", 1, 1}, {"10", 1000, 100}, {"10", 12, 2}} {
		t.Setenv(Share, c.value)
		if got := Rounds(c.n); got != c.want {
			t.Errorf("%s=%s: %d rounds become %d, want %d", Share, c.value, c.n, got, c.want)
		}
	}
}

func TestWrongFactors(t *testing.T) {
	for _, value := range []string{"0", "-1", "1.5", "much"} {
		t.Setenv(Patience, value)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s=%s is taken", Patience, value)
				}
			}()
			Limit(time.Second)
		}()
	}
}
