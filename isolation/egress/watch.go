package egress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	nfnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/accept"
)

// errLost says why no sandbox has a connection any more.
var errLost = errors.New("another program has removed sandboxd's rules from the packet filter, as nft flush ruleset does; restart sandboxd")

// tableRemoved is the type of the kernel's message that a table is gone
// (NFT_MSG_DELTABLE).
const tableRemoved = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE

// cutRetry is the pause before another attempt to remove interfaces.
const cutRetry = 100 * time.Millisecond

// A watch waits for the end of a daemon's table, and then takes the interfaces of all
// sandboxes away: without the rules they would reach the host and its neighbours. Its
// close must be called.
type watch struct {
	instance string
	events   *nfnetlink.Conn // tells of the host's packet filter
	tables   *nftables.Conn  // lists its tables; open all the time, so that looking takes no file more
	lost     atomic.Bool
	quit     chan struct{}
	ended    chan struct{} // nil until it has started
}

// newWatch hears of everything from now on, and waits for start.
func newWatch(instance string) (*watch, error) {
	events, err := nfnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := events.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		events.Close()
		return nil, err
	}
	tables, err := nftables.New(nftables.AsLasting())
	if err != nil {
		events.Close()
		return nil, err
	}
	return &watch{instance: instance, events: events, tables: tables, quit: make(chan struct{})}, nil
}

// start is called once there is a table.
func (w *watch) start(lost func(error)) {
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		err := w.wait()
		if err == nil {
			return
		}
		w.lost.Store(true) // before the interfaces are looked for: see Attach
		if lost != nil {
			lost(err)
		}
		for removeLinks(w.instance) != nil {
			select {
			case <-time.After(cutRetry):
			case <-w.quit:
				return
			}
		}
	}()
}

// wait returns errLost when the table is gone, another error if that cannot be known any
// more, and nil when the watch is to end.
func (w *watch) wait() error {
	for {
		messages, err := w.events.Receive()
		select {
		case <-w.quit:
			return nil
		default:
		}
		overrun := errors.Is(err, unix.ENOBUFS) // events are missing
		if err != nil && !overrun {
			return blind(err)
		}
		removed := func(m nfnetlink.Message) bool { return m.Header.Type == tableRemoved }
		if !overrun && !slices.ContainsFunc(messages, removed) {
			continue
		}
		switch there, err := w.look(); {
		case err != nil:
			return blind(err)
		case !there:
			return errLost
		}
	}
}

// blind is the error of a watch that cannot see the rules any more, for the reason err.
func blind(err error) error {
	return fmt.Errorf("whether the packet filter still has sandboxd's rules cannot be seen any more: %w; restart sandboxd", err)
}

// lookTime is how long look tries while the kernel lacks something, such as memory. Until
// then sandboxes may be without rules.
const lookTime = time.Second

// look reports whether the daemon's table is there.
func (w *watch) look() (there bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	err = accept.Retry(ctx, func() (err error) {
		there, err = hasTable(w.tables, tableName(w.instance))
		return err
	}, nil)
	return there, err
}

// check returns errLost once the table is gone. A nil watch knows of nothing.
func (w *watch) check() error {
	if w != nil && w.lost.Load() {
		return errLost
	}
	return nil
}

// close ends the watch.
func (w *watch) close() {
	close(w.quit)
	w.events.Close()
	if w.ended != nil {
		<-w.ended
	}
	_ = w.tables.CloseLasting()
}

// hasTable reports whether the packet filter, to which c leads, has the table of a daemon.
func hasTable(c *nftables.Conn, name string) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), nil
}
