package worker

import (
	"testing"

	"github.com/sandboxd/sandboxd/fleet"
)

func TestWarmSurplus(t *testing.T) {
	const mb = 1 << 20
	sizes := map[string]uint64{"a": 10 * mb, "b": 20 * mb, "c": 30 * mb, "gone": 0}
	for _, tt := range []struct {
		name  string
		ids   []string
		most  uint64
		short bool
		want  int
	}{
		{"all fit", []string{"a", "b", "c"}, 60 * mb, false, 0},
		{"the longest idle goes", []string{"a", "b", "c"}, 59 * mb, false, 1},
		{"as many as it takes", []string{"a", "b", "c"}, 30 * mb, false, 2},
		{"no room for any", []string{"a", "b", "c"}, 1, false, 3},
		{"one that is gone holds nothing", []string{"gone", "a"}, 10 * mb, false, 0},
		{"half of them when memory is short", []string{"a", "b", "c"}, 60 * mb, true, 2},
		{"the last one too", []string{"a"}, 60 * mb, true, 1},
		{"both", []string{"b", "a", "c"}, 1, true, 3},
		{"places of one sandbox count once", []string{"c", "c", "a", "c"}, 40 * mb, false, 0},
	} {
		w := warmSet{most: tt.most, short: func() bool { return tt.short }}
		var list []idler
		for _, id := range tt.ids {
			list = append(list, idler{Idle: fleet.Idle{ID: id}, bytes: sizes[id]})
		}
		if got := w.surplus(list); got != tt.want {
			t.Errorf("%s: %d go, want %d", tt.name, got, tt.want)
		}
	}
}
