package runc

import (
	"slices"
	"testing"
)

func TestProcessorsAreDistributed(t *testing.T) {
	p := &processors{all: []int{0, 1, 4, 5}, users: map[int]int{}}
	if all := p.take(0); !slices.Equal(all, p.all) {
		t.Errorf("without a number: %v", all)
	}
	if all := p.take(9); !slices.Equal(all, p.all) {
		t.Errorf("more than there are: %v", all)
	}
	first, second := p.take(2), p.take(2)
	if !slices.Equal(first, []int{0, 1}) || !slices.Equal(second, []int{4, 5}) {
		t.Errorf("%v and %v, want all four processors used once", first, second)
	}
	p.give(p.all) // they are not counted
	p.give(nil)
	p.give(second)
	if third := p.take(3); !slices.Equal(third, []int{0, 4, 5}) {
		t.Errorf("%v, want those without a user, and one more", third)
	}
	for _, list := range [][]int{first, {0, 4, 5}} {
		p.give(list)
	}
	for cpu, n := range p.users {
		if n != 0 {
			t.Errorf("processor %d has %d users at the end", cpu, n)
		}
	}
}
