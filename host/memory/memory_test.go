package memory

import "testing"

func TestInfo(t *testing.T) {
	i, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	i.Short() // it can be read again
	total, available := i.Read()
	if total < 64<<20 || available == 0 || available > total {
		t.Errorf("%d bytes, %d of them available", total, available)
	}
	i.Close()
	if total, _ := i.Read(); total != 0 || !i.Short() {
		t.Errorf("memory that cannot be read: %d bytes, short: %v", total, i.Short())
	}
}
