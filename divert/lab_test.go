package divert

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The tests play in three network namespaces of their own: client, gateway and server.
//
//	client 10.1.0.2, fd01::2 -- c0 | gc gateway gs | s0 -- 10.2.0.2, fd02::2 server
//
// Programs that need a whole process in a namespace are this test binary once more, with gatewayEnv set.
const gatewayEnv = "MAILWEIR_DIVERT_TEST_GATEWAY"

func TestMain(m *testing.M) {
	switch os.Getenv(gatewayEnv) {
	case "gateway":
		os.Exit(gatewayMain())
	case "talk":
		os.Exit(talkMain())
	}
	os.Exit(m.Run())
}

type lab struct {
	t                       *testing.T
	client, gateway, server netns.NsHandle
}

const (
	client4, client6  = "10.1.0.2", "fd01::2"
	gateway4, gatewa6 = "10.1.0.1", "fd01::1"
	server4, server6  = "10.2.0.2", "fd02::2"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root, or under unshare -Urn")
	}
}

// newNS makes a network namespace. The thread that did it stays locked to its goroutine and ends with it.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	type result struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the wrong namespace
		ns, err := netns.New()
		done <- result{ns, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("make network namespace: %v", r.err)
	}
	t.Cleanup(func() { _ = r.ns.Close() })
	return r.ns
}

// in runs do on a thread of the namespace.
func in(t *testing.T, ns netns.NsHandle, do func() error) {
	t.Helper()
	if err := inErr(ns, do); err != nil {
		t.Fatal(err)
	}
}

func inErr(ns netns.NsHandle, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}

func newLab(t *testing.T) *lab {
	t.Helper()
	needRoot(t)
	l := &lab{t: t, client: newNS(t), gateway: newNS(t), server: newNS(t)}
	for _, ns := range []netns.NsHandle{l.client, l.gateway, l.server} {
		in(t, ns, func() error {
			for _, s := range []string{"default", "all"} {
				// no waiting for duplicate address detection
				_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+s+"/accept_dad", []byte("0"), 0)
				_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+s+"/accept_ra", []byte("0"), 0)
			}
			return up("lo")
		})
	}
	l.veth("gc", "c0", l.client, "10.1.0.1/24", "fd01::1/64", "10.1.0.2/24", "fd01::2/64")
	l.veth("gs", "s0", l.server, "10.2.0.1/24", "fd02::1/64", "10.2.0.2/24", "fd02::2/64")
	in(t, l.gateway, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	in(t, l.client, func() error { return defaultRoute("c0", "10.1.0.1", "fd01::1") })
	in(t, l.server, func() error { return defaultRoute("s0", "10.2.0.1", "fd02::1") })
	return l
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func defaultRoute(dev, via4, via6 string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	for _, via := range []string{via4, via6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(via)}); err != nil {
			return fmt.Errorf("default route via %s: %w", via, err)
		}
	}
	return nil
}

func (l *lab) veth(here, there string, ns netns.NsHandle, addresses ...string) {
	l.t.Helper()
	in(l.t, l.gateway, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: there, PeerNamespace: netlink.NsFd(ns)})
	})
	set := func(dev string, list []string) func() error {
		return func() error {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			for _, a := range list {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				addr.Flags = 0x02 // IFA_F_NODAD
				if strings.Contains(a, ".") {
					addr.Flags = 0
				}
				if err := netlink.AddrAdd(link, addr); err != nil {
					return fmt.Errorf("add %s to %s: %w", a, dev, err)
				}
			}
			return netlink.LinkSetUp(link)
		}
	}
	in(l.t, l.gateway, set(here, addresses[:2]))
	in(l.t, ns, set(there, addresses[2:]))
	l.introduce(l.gateway, here, ns, there, addresses[2:])
	l.introduce(ns, there, l.gateway, here, addresses[:2])
	in(l.t, l.gateway, func() error { return ready(here) })
	in(l.t, ns, func() error { return ready(there) })
	for _, a := range addresses[:2] {
		in(l.t, ns, func() error { return reachable(netip.MustParsePrefix(a).Addr()) })
	}
}

// introduce tells a link who is at its other end. A first question for a neighbour may be lost while the links come up,
// and its repetition takes a second.
func (l *lab) introduce(ns netns.NsHandle, dev string, peer netns.NsHandle, peerDev string, addresses []string) {
	l.t.Helper()
	var mac net.HardwareAddr
	in(l.t, peer, func() error {
		link, err := netlink.LinkByName(peerDev)
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	})
	in(l.t, ns, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			ip := net.ParseIP(strings.Split(a, "/")[0])
			if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip, HardwareAddr: mac, State: netlink.NUD_PERMANENT}); err != nil {
				return fmt.Errorf("neighbour %s: %w", a, err)
			}
		}
		return nil
	})
}

// reachable waits until packets get through to the other end.
func reachable(a netip.Addr) error {
	var err error
	for range 50 {
		_, err = net.DialTimeout("tcp", netip.AddrPortFrom(a, 9).String(), 100*time.Millisecond)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return fmt.Errorf("reach %v: %w", a, err)
}

// me is the name of the program that runs the tests, as a gateway sees it.
func me() string {
	exe, err := os.Executable()
	if err != nil {
		return err.Error()
	}
	return filepath.Base(exe)
}

// ready waits until the kernel sends by the link: what comes before that is lost.
func ready(name string) error {
	for range 500 {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Attrs().OperState == netlink.OperUp {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("link %s does not come up", name)
}

func (l *lab) sysctl(ns netns.NsHandle, key, value string) {
	l.t.Helper()
	in(l.t, ns, func() error {
		return os.WriteFile(filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/")), []byte(value), 0)
	})
}

// run runs a command in the namespace.
func (l *lab) run(ns netns.NsHandle, stdin string, args ...string) string {
	l.t.Helper()
	var out []byte
	in(l.t, ns, func() error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return nil
	})
	return string(out)
}

// serve runs an SMTP-like server in the namespace: it greets with what it sees of the connection, then echoes lines.
func (l *lab) serve(ns netns.NsHandle, address string) {
	l.t.Helper()
	var listener net.Listener
	in(l.t, ns, func() error {
		var err error
		listener, err = net.Listen("tcp", address)
		return err
	})
	var wg sync.WaitGroup
	l.t.Cleanup(func() { _ = listener.Close(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				_, _ = fmt.Fprintf(c, "220 %v sees %v\n", addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil || line == "QUIT\n" {
						return
					}
					_, _ = io.WriteString(c, line)
				}
			}()
		}
	}()
}

// conversation is one connection of a test client.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

func (l *lab) dial(ns netns.NsHandle, to string, from ...string) (*conversation, error) {
	var c net.Conn
	err := inErr(ns, func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) error {
				return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
			})
		}
		if len(from) > 0 {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from[0]))
		}
		var err error
		c, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return &conversation{c, bufio.NewReader(c)}, nil
}

func (c *conversation) line() (string, error) {
	s, err := c.r.ReadString('\n')
	return strings.TrimSuffix(s, "\n"), err
}

// talk holds a whole conversation and returns what it saw: "via KIND" when the gateway was in between, and what the
// server saw.
func (l *lab) talk(ns netns.NsHandle, to string, from ...string) (via, sees string, err error) {
	c, err := l.dial(ns, to, from...)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.Close() }()
	s, err := c.line()
	if err != nil {
		return "", "", fmt.Errorf("greeting: %w", err)
	}
	if strings.HasPrefix(s, "via ") {
		via = s
		if s, err = c.line(); err != nil {
			return via, "", fmt.Errorf("greeting behind the gateway: %w", err)
		}
	}
	_, sees, _ = strings.Cut(s, " sees ")
	for i := range 3 { // later packets, both ways
		want := fmt.Sprintf("line %d", i)
		if _, err := fmt.Fprintln(c, want); err != nil {
			return via, sees, err
		}
		if got, err := c.line(); err != nil || got != want {
			return via, sees, fmt.Errorf("echo %q: %q, %w", want, got, err)
		}
	}
	_, _ = fmt.Fprintln(c, "QUIT")
	_, err = io.ReadAll(c.r)
	return via, sees, err
}

// look tells what the gateway's kernel holds, for whoever reads a failed test.
func (l *lab) look() {
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"ss", "-tanem"}, {"ip", "neigh"}, {"nstat", "-az"}} {
		_ = inErr(l.gateway, func() error {
			out, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
			l.t.Logf("%v\n%s", args, out)
			return nil
		})
	}
}

// mustTalk insists on being diverted by kind ("" is directly), and returns the address that the server saw.
func (l *lab) mustTalk(ns netns.NsHandle, kind, to string, from ...string) netip.AddrPort {
	l.t.Helper()
	via, sees, err := l.talk(ns, to, from...)
	if err != nil {
		l.look()
		l.t.Fatalf("talk to %s: via %q, server sees %q: %v", to, via, sees, err)
	}
	if kind != "" {
		kind = "via " + kind
	}
	if via != kind {
		l.t.Fatalf("talk to %s: %q, want %q", to, via, kind)
	}
	return netip.MustParseAddrPort(sees)
}

// refused insists on a refusal.
func (l *lab) refused(ns netns.NsHandle, to string) {
	l.t.Helper()
	start := time.Now()
	via, sees, err := l.talk(ns, to)
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
		l.t.Fatalf("talk to %s: via %q, server sees %q, %v after %v; want a refusal", to, via, sees, err, time.Since(start))
	}
}

// gatewayProcess is a divert in a process of its own.
type gatewayProcess struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	once sync.Once
}

type order struct {
	Op       string
	Settings Settings
	Ports    []uint16
}

type answer struct {
	Err  string
	Stat Stat
	Text string
}

func (l *lab) start(ns netns.NsHandle, s Settings) *gatewayProcess {
	l.t.Helper()
	g := &gatewayProcess{t: l.t}
	in(l.t, ns, func() error {
		g.cmd = exec.Command("/proc/self/exe")
		g.cmd.Env = append(os.Environ(), gatewayEnv+"=gateway")
		g.cmd.Stderr = os.Stderr
		var err error
		if g.in, err = g.cmd.StdinPipe(); err != nil {
			return err
		}
		out, err := g.cmd.StdoutPipe()
		if err != nil {
			return err
		}
		g.out = bufio.NewScanner(out)
		return g.cmd.Start()
	})
	l.t.Cleanup(g.kill)
	g.must(order{Op: "start", Settings: s})
	return g
}

// kill is kill -9.
func (g *gatewayProcess) kill() {
	g.once.Do(func() {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
	})
}

func (g *gatewayProcess) ask(o order) answer {
	g.t.Helper()
	if err := json.NewEncoder(g.in).Encode(o); err != nil {
		g.t.Fatalf("order %s: %v", o.Op, err)
	}
	var a answer
	if !g.out.Scan() {
		g.t.Fatalf("order %s: the gateway has ended", o.Op)
	}
	if err := json.Unmarshal(g.out.Bytes(), &a); err != nil {
		g.t.Fatalf("order %s: %v: %s", o.Op, err, g.out.Text())
	}
	return a
}

func (g *gatewayProcess) must(o order) answer {
	g.t.Helper()
	a := g.ask(o)
	if a.Err != "" {
		g.t.Fatalf("order %s: %s", o.Op, a.Err)
	}
	return a
}

// gatewayMain is the gateway process: a relay that says "via KIND" first.
func gatewayMain() int {
	level := slog.LevelError
	if os.Getenv("MAILWEIR_DIVERT_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	orders, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var d *Divert
	var events sync.Map
	ctx := context.Background()
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			return 0
		}
		var a answer
		var err error
		switch o.Op {
		case "start":
			d, err = Open(ctx, Config{Settings: o.Settings, Log: log, Events: func(e, s string) { events.Store(e, s) }, Decide: testDecide()})
			if err == nil {
				for _, l := range d.Listeners() {
					go relay(ctx, d, l)
				}
				err = d.Apply(ctx)
			}
		case "set":
			err = d.Set(ctx, o.Settings)
		case "stop":
			err = d.Stop(ctx)
		case "close":
			err = d.Close(ctx)
		case "stat":
			a.Stat, err = d.Stat()
		case "plan":
			a.Text = d.now.plan().String()
		case "events":
			events.Range(func(k, _ any) bool { a.Text += k.(string) + "\n"; return true })
		}
		if err != nil {
			a.Err = err.Error()
		}
		if out.Encode(a) != nil {
			return 1
		}
	}
}

// testDecide is a Decide that answers as the environment says.
func testDecide() Decide {
	v, ok := map[string]Verdict{"check": VerdictCheck, "pass": VerdictPass, "refuse": VerdictReject, "drop": VerdictDrop}[os.Getenv("MAILWEIR_DIVERT_TEST_DECIDE")]
	if !ok {
		return nil
	}
	return func(SYN) Verdict { return v }
}

func relay(ctx context.Context, d *Divert, l *Listener) {
	for {
		c, err := l.AcceptConn()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			s, err := d.Dial(ctx, Flow{Client: c.Client, Server: c.Server, Kind: c.Kind})
			if err != nil {
				_ = c.SetLinger(0)
				return
			}
			defer func() { _ = s.Close() }()
			_, _ = fmt.Fprintf(c, "via %s\n", strings.TrimSpace(c.Kind+" "+strings.TrimPrefix(filepath.Base(c.Proc), ".")))
			done := make(chan struct{})
			go func() {
				_, _ = io.Copy(s, c)
				_ = s.(*net.TCPConn).CloseWrite()
				close(done)
			}()
			_, _ = io.Copy(c, s)
			_ = c.CloseWrite()
			<-done
		}()
	}
}

// talkMain is a program that opens a connection: its own path is what ExcludedProc knows. It prints the first line.
func talkMain() int {
	c, err := net.DialTimeout("tcp", os.Args[1], 3*time.Second)
	if err != nil {
		fmt.Println("error:", err)
		return 0
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	_, _ = io.WriteString(c, "hello\n")
	echo := ""
	for err == nil && echo != "hello\n" {
		echo, err = r.ReadString('\n')
	}
	if err != nil {
		fmt.Println("error:", err)
		return 0
	}
	fmt.Print(line)
	return 0
}

func auto(interfaces string, ports ...uint16) []Spec {
	s := Spec{Ports: ports}
	if interfaces != "" {
		s.Interfaces = strings.Split(interfaces, ",")
	}
	return []Spec{s}
}
