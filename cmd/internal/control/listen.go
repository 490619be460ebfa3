package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a UNIX socket (sun_path less its NUL).
const maxPath = 107

// Listener is the control socket. It exists under its name only while somebody listens on it.
type Listener struct {
	*net.UnixListener
	path string
	lock *os.File
	once sync.Once
	err  error
}

// Listen opens the control socket at path and makes its directory if that is missing. It returns [ErrRunning] when
// another gateway has it.
func Listen(path string) (*Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of control socket: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock control socket: %w", err)
	}
	l, err := listen(path, lock)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return l, nil
}

// listen binds under another name, sets the mode and renames: nobody ever sees a socket that does not answer, or one
// with a wrong mode.
func listen(path string, lock *os.File) (*Listener, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w with the control socket %s%s", ErrRunning, path, who(path))
		}
		return nil, fmt.Errorf("lock control socket: %w", err)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is not a socket; remove it or set Root.ControlSocket to another path", path)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("%w with the control socket %s%s", ErrRunning, path, who(path))
		}
	}
	tmp := path + ".new"
	if len(tmp) > maxPath {
		return nil, fmt.Errorf("path of control socket is too long (%d characters, %d is the most): %s", len(path), maxPath-len(".new"), path)
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	// The mode lets everybody ask for the certificate; who may ask for more is decided by SO_PEERCRED.
	if err := errors.Join(os.Chmod(tmp, 0o666), os.Rename(tmp, path)); err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	return &Listener{UnixListener: l, path: path, lock: lock}, nil
}

// who names the process that listens at path, if it can be told.
func who(path string) string {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	cred, err := peer(c)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", cred.Pid)
}

// peer asks the kernel who is at the other end.
func peer(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a UNIX connection")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, inner
}

// Close stops listening and removes the socket.
func (l *Listener) Close() error {
	l.once.Do(func() {
		// The name goes first: nobody shall find a socket that does not answer. The lock goes last; its
		// file stays, since two gateways could otherwise hold locks on two files of that name.
		err := os.Remove(l.path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		l.err = errors.Join(err, l.UnixListener.Close(), l.lock.Close())
	})
	return l.err
}
