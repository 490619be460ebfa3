// Package lab makes a small network on one machine and puts real mail programs into it: a client, a gateway and a
// server, each in a network namespace of its own, joined by veth pairs, IPv4 and IPv6.
//
//	client                 gateway                  server
//	10.77.1.2   ── lan  10.77.1.1   10.77.2.1  wan ──   10.77.2.2
//	fd77:1::2           fd77:1::1   fd77:2::1           fd77:2::2
//
// [New] makes it, [Lab.Close] takes it away with everything that was started in it. What a killed run left behind is
// swept by the next one: the names of the namespaces bear the process that made them. The host's own network is never
// touched; the lab needs root (or a user namespace) and nothing else.
//
// The lab knows mailweir as a program only: a binary, its settings file and its control socket.
package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The addresses of the lab. Each lab is alone in its namespaces, so they are always the same.
const (
	ClientIP4  = "10.77.1.2"
	LanIP4     = "10.77.1.1" // the gateway, seen by the client
	WanIP4     = "10.77.2.1" // the gateway, seen by the server
	ServerIP4  = "10.77.2.2"
	ClientIP6  = "fd77:1::2"
	LanIP6     = "fd77:1::1"
	WanIP6     = "fd77:2::1"
	ServerIP6  = "fd77:2::2"
	ServerName = "mail.lab.example" // the name in the server's certificate
)

// prefix begins the name of every namespace of every lab.
const prefix = "mwlab"

// Lab is a running network.
type Lab struct {
	Dir                     string // for whatever is started in the lab; world-readable, removed by Close
	Client, Gateway, Server *Namespace

	mu      sync.Mutex
	closers []func()
}

// New makes a lab. Whatever dead labs left behind is removed first.
func New(ctx context.Context) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make namespaces: need root")
	}
	if err := Sweep(ctx); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	l := &Lab{Dir: dir}
	if err := l.network(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// network makes the namespaces and the wires between them.
func (l *Lab) network(ctx context.Context) error {
	id := make([]byte, 3)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	name := func(role string) string { return fmt.Sprintf("%s-%d-%x-%s", prefix, os.Getpid(), id, role) }
	for _, n := range []struct {
		to   **Namespace
		role string
	}{{&l.Client, "c"}, {&l.Gateway, "g"}, {&l.Server, "s"}} {
		ns, err := newNamespace(ctx, name(n.role))
		if err != nil {
			return err
		}
		*n.to = ns
		l.OnClose(ns.remove)
	}
	c, g, s := l.Client.Name, l.Gateway.Name, l.Server.Name
	for _, line := range []string{
		"-n " + c + " link add eth0 type veth peer name lan netns " + g,
		"-n " + s + " link add eth0 type veth peer name wan netns " + g,
	} {
		if err := ip(ctx, "", strings.Fields(line)...); err != nil {
			return err
		}
	}
	for _, batch := range []struct{ ns, text string }{
		{g, "link set lo up\nlink set lan up\nlink set wan up\n" +
			addr(LanIP4, "lan") + addr(LanIP6, "lan") + addr(WanIP4, "wan") + addr(WanIP6, "wan")},
		{c, "link set lo up\nlink set eth0 up\n" + addr(ClientIP4, "eth0") + addr(ClientIP6, "eth0") +
			"route add default via " + LanIP4 + "\nroute add default via " + LanIP6 + "\n"},
		{s, "link set lo up\nlink set eth0 up\n" + addr(ServerIP4, "eth0") + addr(ServerIP6, "eth0") +
			"route add default via " + WanIP4 + "\nroute add default via " + WanIP6 + "\n"},
	} {
		if err := ip(ctx, batch.text, "-n", batch.ns, "-batch", "-"); err != nil {
			return err
		}
	}
	return l.Gateway.Do(func() error {
		for name, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
		}
		return nil
	})
}

// addr is one line of ip -batch; IPv6 addresses are usable at once.
func addr(ip, dev string) string {
	if strings.Contains(ip, ":") {
		return "addr add " + ip + "/64 dev " + dev + " nodad\n"
	}
	return "addr add " + ip + "/24 dev " + dev + "\n"
}

// OnClose has f called by Close, before everything that was registered earlier.
func (l *Lab) OnClose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// Close ends what runs in the lab and removes it. It may be called more than once.
func (l *Lab) Close() {
	l.mu.Lock()
	closers := l.closers
	l.closers = nil
	l.mu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
	os.RemoveAll(l.Dir)
}

// Path returns a path inside of the lab's directory.
func (l *Lab) Path(elem ...string) string { return filepath.Join(append([]string{l.Dir}, elem...)...) }

// Sweep removes the labs of processes that are gone, and ends what still runs in them.
func Sweep(ctx context.Context) error {
	names, err := os.ReadDir("/run/netns")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, n := range names {
		if owner, ok := ownerOf(n.Name()); ok && syscall.Kill(owner, 0) == syscall.ESRCH {
			(&Namespace{Name: n.Name()}).remove()
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"[0-9]*-*"))
	if err != nil {
		return fmt.Errorf("list directories: %w", err)
	}
	for _, d := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), prefix), "-")
		if owner, err := strconv.Atoi(pid); err == nil && syscall.Kill(owner, 0) == syscall.ESRCH {
			os.RemoveAll(d)
		}
	}
	return nil
}

// ownerOf returns the process that made a namespace, when a lab made it.
func ownerOf(name string) (pid int, ok bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 4 || parts[0] != prefix {
		return 0, false
	}
	pid, err := strconv.Atoi(parts[1])
	return pid, err == nil && pid > 1
}

// Namespace is one network namespace of a lab.
type Namespace struct {
	Name string
	fd   *os.File
}

func newNamespace(ctx context.Context, name string) (*Namespace, error) {
	if err := ip(ctx, "", "netns", "add", name); err != nil {
		return nil, err
	}
	fd, err := os.Open("/run/netns/" + name)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	n := &Namespace{Name: name, fd: fd}
	// Nobody else is on these wires: without this, the first IPv6 connection waits two seconds for its link's address.
	err = n.Do(func() error {
		for _, conf := range []string{"default/accept_dad", "default/dad_transmits"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf, []byte("0"), 0); err != nil {
				return fmt.Errorf("set %s: %w", conf, err)
			}
		}
		return nil
	})
	if err != nil {
		n.remove()
		return nil, err
	}
	return n, nil
}

// remove ends whatever still runs in the namespace, process by process, and deletes it.
func (n *Namespace) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 20 {
		out, err := exec.CommandContext(ctx, "ip", "netns", "pids", n.Name).Output()
		pids := strings.Fields(string(out))
		if err != nil || len(pids) == 0 {
			break
		}
		for _, p := range pids {
			if pid, err := strconv.Atoi(p); err == nil && pid > 1 && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n.fd != nil {
		n.fd.Close()
	}
	_ = ip(ctx, "", "netns", "del", n.Name)
}

// ip runs ip(8).
func ip(ctx context.Context, stdin string, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// enter moves the calling thread into the namespace; the function it returns moves it back.
func (n *Namespace) enter() (leave func() error, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own namespace: %w", err)
	}
	if err := unix.Setns(int(n.fd.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", n.Name, err)
	}
	return func() error {
		defer home.Close()
		return unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
	}, nil
}
