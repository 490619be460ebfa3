package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/inspect"
	"mailweir/proxy/proxytest"

	"golang.org/x/sys/unix"
)

const inside = "GATEWAY_TEST_INSIDE"

// namespace runs the calling test again in a network namespace of its own, where a gateway touches nobody's rules, and
// reports whether the caller is that run. The caller returns if not.
func namespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		loopbackUp(t)
		return true
	}
	t.Parallel() // each run is a process of its own
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inside+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Skipf("no network namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// running is a gateway under test, in front of a fake server on the loopback.
type running struct {
	t       *testing.T
	dir     string
	path    string
	signals chan os.Signal
	log     *syncBuffer
	notify  chan string
	done    chan error
	server  *proxytest.Server
	client  control.Client
}

// start runs a gateway that diverts the connections to server on the loopback.
func start(t *testing.T, server *proxytest.Server, settings ...string) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &running{t: t, dir: dir, path: filepath.Join(dir, "m.ini"), signals: make(chan os.Signal, 4), log: &syncBuffer{},
		notify: make(chan string, 100), done: make(chan error, 1), server: server}
	g.client = control.Client{Path: filepath.Join(dir, "c.sock")}
	g.write(settings...)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			g.notify <- string(b[:n])
		}
	})
	wg.Go(func() {
		g.done <- Run(context.Background(), Config{Path: g.path, Version: control.Version{Version: "test"}, Stderr: g.log, Signals: g.signals})
	})
	t.Cleanup(func() {
		g.signals <- syscall.SIGTERM
		g.signals <- syscall.SIGTERM
		notify.Close()
		wg.Wait()
		if t.Failed() {
			t.Log(g.log.String())
		}
	})
	g.await("READY=1\nSTATUS=running")
	return g
}

// write writes the configuration file: what every gateway needs, and settings, lines of any section.
func (g *running) write(settings ...string) {
	g.t.Helper()
	text := fmt.Sprintf("[Root]\nStateDir = %[1]s/state\nSpoolDir = %[1]s/spool\nControlSocket = %[1]s/c.sock\nDefaultLogLevel = Debug\n"+
		"Log = Stderr\nDrainTimeout = 20s\n[LinuxFirewall]\nInputDivert = Auto(interface:lo protected:%[2]d)\n", g.dir, g.server.Addr().Port())
	text += strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(g.path, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// await waits until the gateway tells systemd so.
func (g *running) await(state string) {
	g.t.Helper()
	for {
		select {
		case got := <-g.notify:
			if strings.HasPrefix(got, state) {
				return
			}
		case err := <-g.done:
			g.done <- err
			g.t.Fatalf("the gateway has ended: %v\n%s", err, g.log)
		case <-time.After(20 * time.Second):
			g.t.Fatalf("no %q\n%s", state, g.log)
		}
	}
}

// ended waits until the gateway has ended and returns its error.
func (g *running) ended() error {
	g.t.Helper()
	select {
	case err := <-g.done:
		g.done <- err
		return err
	case <-time.After(30 * time.Second):
		g.t.Fatalf("the gateway does not end\n%s", g.log)
		return nil
	}
}

// set is cfset on the running gateway.
func (g *running) set(param, value string) error {
	_, err := g.client.Set(context.Background(), control.Change{Path: g.path, Edit: config.Edit{Param: param, Op: config.Set, Value: value}})
	return err
}

// eventually waits for something that becomes true a moment later, and reports whether it has.
func (g *running) eventually(ok func() bool) bool {
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// lastMessage returns the last event about a message.
func (g *running) lastMessage() (last inspect.Event) {
	g.t.Helper()
	if err := g.client.Events(context.Background(), control.Query{Last: 5}, func(e inspect.Event) error {
		if e.Event == "message" || e.Event == "unscanned" {
			last = e
		}
		return nil
	}); err != nil {
		g.t.Fatal(err)
	}
	return last
}

// fakeClamd is one one on TCP. scanned is asked about each object it is given, and answers when it likes.
func fakeClamd(t *testing.T, scanned func([]byte) string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					command, err := r.ReadString(0)
					if err != nil {
						return
					}
					answer := "PONG"
					if strings.Contains(command, "INSTREAM") {
						var object []byte
						for {
							var n uint32
							if err := binary.Read(r, binary.BigEndian, &n); err != nil || n == 0 {
								break
							}
							chunk := make([]byte, n)
							if _, err := io.ReadFull(r, chunk); err != nil {
								return
							}
							object = append(object, chunk...)
						}
						if answer = "stream: " + scanned(object); answer == "stream: die" {
							return
						}
					}
					if _, err := io.WriteString(c, answer+"\x00"); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// eicar is the harmless test virus, put together so that no file of this project holds it.
func eicar() string {
	return "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR" + "-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
}
