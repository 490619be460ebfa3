package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Do runs f on a thread that is in the namespace: sockets made and processes started by f itself belong to it;
// goroutines that f starts do not.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		leave, err := n.enter()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		// A thread that cannot get home must not be used again: it ends with this goroutine, still locked.
		if leave() == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Listen listens on a TCP address of the namespace.
func (n *Namespace) Listen(addr string) (l net.Listener, err error) {
	err = n.Do(func() error {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	})
	return l, err
}

// Dial connects from the namespace to an IP address and port.
func (n *Namespace) Dial(addr string) (net.Conn, error) { return n.DialFrom("", addr) }

// DialFrom is Dial with the client's own address and port chosen.
func (n *Namespace) DialFrom(local, addr string) (c net.Conn, err error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: -1}
	d.SetMultipathTCP(false)
	if local != "" {
		a, err := net.ResolveTCPAddr("tcp", local)
		if err != nil {
			return nil, fmt.Errorf("read local address: %w", err)
		}
		d.LocalAddr = a
	}
	err = n.Do(func() error {
		c, err = d.Dial("tcp", addr)
		return err
	})
	return c, err
}

// Command prepares a program that will run in the namespace once [Namespace.Start] is given it. It dies with us.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Start starts cmd in the namespace.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	return n.Do(cmd.Start)
}

// Run runs a program in the namespace to its end and returns what it printed.
func (n *Namespace) Run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	cmd := n.Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Start(cmd); err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("run %s: %w", name, err)
	}
	return out.String(), nil
}

// HostPort joins an address and a port.
func HostPort(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }

// ClientTLS is what a careful client asks for: a certificate of ServerName by one of the authorities in the file.
func ClientTLS(caFile string) (*tls.Config, error) {
	pool, err := poolOf(caFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, ServerName: ServerName}, nil
}
