package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/inspect"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_TEST_ASK"); path != "" {
		ask(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// ask is what the test's other process does, under another user.
func ask(path string) {
	c := Client{Path: path}
	ctx := context.Background()
	v, err := c.Version(ctx)
	fmt.Println("version:", v.Version, err)
	pem, err := c.Certificate(ctx)
	fmt.Println("certificate:", string(pem), err)
	_, err = c.Stat(ctx)
	fmt.Println("stat:", err)
	_, err = c.Set(ctx, Change{})
	fmt.Println("set:", err)
	_, err = c.Reload(ctx)
	fmt.Println("reload:", err)
	fmt.Println("divert off:", c.DivertOff(ctx))
	fmt.Println("events:", c.Events(ctx, Query{Last: 1}, func(inspect.Event) error { return nil }))
}

// fake is an Ops that answers something.
type fake struct {
	mu     sync.Mutex
	change Change
	off    bool
	feed   chan inspect.Event
}

func (*fake) Version(context.Context) (Version, error)    { return Version{Version: "1"}, nil }
func (*fake) Certificate(context.Context) ([]byte, error) { return []byte("PEM"), nil }
func (*fake) Stat(context.Context) (Stat, error) {
	return Stat{PID: 7, Messages: map[string]int64{"Pass": 3}}, nil
}
func (*fake) Reload(context.Context) (Applied, error) {
	return Applied{}, config.Problems{{File: "f", Line: 3, Text: "bad"}, {File: "f", Line: 4, Text: "worse"}}
}
func (f *fake) Set(_ context.Context, c Change) (Applied, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change = c
	return Applied{Notes: []string{"a note"}}, nil
}
func (f *fake) DivertOff(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = true
	return nil
}
func (f *fake) Events(ctx context.Context, q Query, each func(inspect.Event) error) error {
	for i := range q.Last {
		if err := each(inspect.Event{Event: fmt.Sprint("past ", i)}); err != nil {
			return err
		}
	}
	for q.Follow {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-f.feed:
			if !ok {
				return errors.New("too slow")
			}
			if err := each(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve runs a server for a test and returns its client.
func serve(t *testing.T, ops Ops) Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl") // t.TempDir can be longer than a socket's name may be
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "c.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, ops, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return Client{Path: path}
}

func TestClient(t *testing.T) {
	f := &fake{feed: make(chan inspect.Event)}
	c := serve(t, f)
	ctx := context.Background()
	if v, err := c.Version(ctx); err != nil || v.Version != "1" {
		t.Errorf("version: %v, %v", v, err)
	}
	if pem, err := c.Certificate(ctx); err != nil || string(pem) != "PEM" {
		t.Errorf("certificate: %q, %v", pem, err)
	}
	if s, err := c.Stat(ctx); err != nil || s.PID != 7 || s.Messages["Pass"] != 3 {
		t.Errorf("stat: %v, %v", s, err)
	}
	if _, err := c.Reload(ctx); err == nil || err.Error() != "f:3: bad\nf:4: worse" {
		t.Errorf("reload: %v", err)
	}
	want := Change{Path: "/x", Edit: config.Edit{Param: "Root.Log", Op: config.Set, Value: "“ü” \x01"}}
	if a, err := c.Set(ctx, want); err != nil || len(a.Notes) != 1 || f.change != want {
		t.Errorf("set: %v, %v, %v", a, err, f.change)
	}
	if err := c.DivertOff(ctx); err != nil || !f.off {
		t.Errorf("divert off: %v", err)
	}
	if !c.Running(ctx) {
		t.Error("not running")
	}
}

func TestEvents(t *testing.T) {
	f := &fake{feed: make(chan inspect.Event)}
	c := serve(t, f)
	var got []string
	collect := func(e inspect.Event) error { got = append(got, e.Event); return nil }
	if err := c.Events(context.Background(), Query{Last: 2}, collect); err != nil || strings.Join(got, ",") != "past 0,past 1" {
		t.Errorf("got %q, %v", got, err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan string)
	done := make(chan error, 1)
	go func() {
		done <- c.Events(ctx, Query{Follow: true}, func(e inspect.Event) error { seen <- e.Event; return nil })
	}()
	for _, want := range []string{"a", "b"} {
		f.feed <- inspect.Event{Event: want}
		if got := <-seen; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// A stream that is not whole does not look like one.
	close(f.feed)
	if err := c.Events(context.Background(), Query{Follow: true}, collect); err == nil {
		t.Error("a stream that was cut off ends without an error")
	}
}

func TestOthersMayOnlyReadTheHarmless(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	f := &fake{}
	c := serve(t, f)
	if err := os.Chmod(filepath.Dir(filepath.Dir(c.Path)), 0o755); err != nil {
		t.Fatal(err)
	}
	// The test binary may lie where others cannot go: give them a copy.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(filepath.Dir(c.Path)), "ask")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = "/"
	cmd.Env = []string{"CONTROL_TEST_ASK=" + c.Path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	no := " only root and the gateway's own user may do this\n"
	want := "version: 1 <nil>\ncertificate: PEM <nil>\nstat:" + no + "set:" + no + "reload:" + no + "divert off:" + no + "events:" + no
	if string(out) != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	if f.off || f.change != (Change{}) {
		t.Error("a stranger has changed something")
	}
}

func TestSecondGatewayIsRefused(t *testing.T) {
	c := serve(t, &fake{})
	_, err := Listen(c.Path)
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	if !c.Running(context.Background()) {
		t.Error("the first one has been disturbed")
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	t.Run("a dead one's socket is replaced", func(t *testing.T) {
		l, err := Listen(stale)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	t.Run("somebody else's socket is not", func(t *testing.T) {
		path := filepath.Join(dir, "other")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := Listen(path); !errors.Is(err, ErrRunning) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file is not", func(t *testing.T) {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "is not a socket") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a long name", func(t *testing.T) {
		if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNotRunning(t *testing.T) {
	c := Client{Path: filepath.Join(t.TempDir(), "none")}
	if _, err := c.Stat(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	if c.Running(context.Background()) {
		t.Error("running")
	}
}

// TestLimits talks to the socket without manners.
func TestLimits(t *testing.T) {
	c := serve(t, &fake{})
	say := func(request string) string {
		t.Helper()
		conn, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, request) // it may be refused half way
		answer, _ := io.ReadAll(io.LimitReader(conn, 4096))
		line, _, _ := strings.Cut(string(answer), "\r\n")
		return line
	}
	for _, x := range []struct{ name, request, want string }{
		{"long body", "POST /set HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n{\"path\":\"" + strings.Repeat("x", 99991), "HTTP/1.1 400 Bad Request"},
		{"long header", "GET /stat HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20), "HTTP/1.1 431 Request Header Fields Too Large"},
		{"no HTTP", "stat\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"unknown field", "POST /set HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{\"pth\":1}", "HTTP/1.1 400 Bad Request"},
		{"unknown request", "GET /shutdown HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"reading by POST only", "GET /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"},
	} {
		if got := say(x.request); got != x.want {
			t.Errorf("%s: got %q, want %q", x.name, got, x.want)
		}
	}
}
