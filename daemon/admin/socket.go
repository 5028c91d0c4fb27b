package admin

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// DefaultGroup is the group whose members may use the operators' socket, where it exists.
const DefaultGroup = "sandboxd"

// Listen creates a socket at path that only root can open. Closing it does not remove the
// file: that goes with the instance's folder.
func Listen(path string) (*net.UnixListener, error) {
	// The socket has its mode before it has a name.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		if err == nil {
			err = failed
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("create the admin socket: %w", err)
	}
	socket := l.(*net.UnixListener)
	socket.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("create the admin socket: %w", err)
	}
	return socket, nil
}

// ListenGroup is Listen for a socket that the members of a group can open too. They may also
// list runDir, to find it. If there is no such group, the socket is root's.
func ListenGroup(path, runDir, group string) (*net.UnixListener, error) {
	l, err := Listen(path)
	if err != nil {
		return nil, err
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return l, nil // also if the groups cannot be read: then nobody else gets in
	}
	gid, err := strconv.Atoi(g.Gid)
	if err == nil {
		err = giveGroup(path, gid, 0o660)
	}
	if err == nil {
		err = giveGroup(runDir, gid, runfolder.Mode|0o040)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("let group %s use the admin socket: %w", group, err)
	}
	return l, nil
}

// giveGroup changes the group of a file, and then its mode.
func giveGroup(path string, gid int, mode os.FileMode) error {
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
