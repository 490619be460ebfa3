package clamd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mailweir/inspect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a clamd that does as it is told.
type fake struct {
	l      net.Listener
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
	dead   atomic.Bool // answers PING no more
	open   atomic.Int32
	most   atomic.Int32
	pings  atomic.Int32
	answer func(f *fake, c net.Conn, command string, body []byte)
	limit  int // StreamMaxLength; 0: none
}

func serve(t *testing.T, network string, f *fake) *Engine {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "clamd")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			f.wg.Go(func() { f.conn(c) })
		}
	})
	t.Cleanup(f.stop)
	e, err := New(Config{Settings: Settings{ClamdSocket: l.Addr().String(), ClamdConnections: 3, ClamdTimeout: 5 * time.Second, ClamdConnectTimeout: 500 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (f *fake) stop() {
	f.l.Close()
	f.mu.Lock()
	for _, c := range f.conns {
		c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (f *fake) conn(c net.Conn) {
	defer c.Close()
	n := f.open.Add(1)
	defer f.open.Add(-1)
	for m := f.most.Load(); n > m && !f.most.CompareAndSwap(m, n); m = f.most.Load() {
	}
	var command []byte
	var oob []byte
	for {
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		if b[0] == 0 {
			break
		}
		command = append(command, b[0])
	}
	switch string(command) {
	case "zPING":
		f.pings.Add(1)
		if f.dead.Load() {
			io.Copy(io.Discard, c) // hangs until the client gives up
			return
		}
		io.WriteString(c, "PONG\x00")
	case "zINSTREAM":
		var body []byte
		for {
			var size [4]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			n := int(binary.BigEndian.Uint32(size[:]))
			if n == 0 {
				break
			}
			if n > chunkSize {
				io.WriteString(c, "chunk too long ERROR\x00")
				return
			}
			chunk := make([]byte, n)
			if _, err := io.ReadFull(c, chunk); err != nil {
				return
			}
			if body = append(body, chunk...); f.limit > 0 && len(body) > f.limit {
				io.WriteString(c, "INSTREAM size limit exceeded. ERROR\x00")
				return // and hangs up, with octets unread
			}
		}
		f.answer(f, c, string(command), body)
	case "zFILDES":
		oob = make([]byte, 64)
		b := make([]byte, 1)
		_, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		msgs, _ := syscall.ParseSocketControlMessage(oob[:oobn])
		fds, _ := syscall.ParseUnixRights(&msgs[0])
		file := os.NewFile(uintptr(fds[0]), "passed")
		defer file.Close()
		body, err := io.ReadAll(file)
		if err != nil {
			return
		}
		if _, err := file.Write([]byte("x")); err == nil {
			io.WriteString(c, "descriptor can be written to ERROR\x00")
			return
		}
		f.answer(f, c, string(command), body)
	default:
		io.WriteString(c, "UNKNOWN COMMAND\x00")
	}
}

// say returns a script that answers with one line.
func say(line string) func(*fake, net.Conn, string, []byte) {
	return func(_ *fake, c net.Conn, _ string, _ []byte) { io.WriteString(c, line) }
}

// scan answers as clamd does for objects that hold "virus".
func scan(_ *fake, c net.Conn, _ string, body []byte) {
	if strings.Contains(string(body), "virus") {
		io.WriteString(c, "stream: Test.Virus-1 FOUND\x00")
	} else {
		io.WriteString(c, "stream: OK\x00")
	}
}

func inspectString(e *Engine, s string) ([]inspect.Finding, error) {
	return e.Inspect(context.Background(), &inspect.Object{Path: "1", Body: inspect.Bytes(s)})
}

func category(err error) string {
	var f *inspect.Failure
	if errors.As(err, &f) {
		return f.Category
	}
	return fmt.Sprint(err)
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name, line string
		found      string // kind category name
		fail       string
	}{
		{"clean", "stream: OK\x00", "", ""},
		{"found", "stream: Win.Trojan.X-1 FOUND\x00", "threat KnownVirus Win.Trojan.X-1", ""},
		{"found by descriptor", "fd[12]: Win.Adware.X-1 FOUND\x00", "threat Adware Win.Adware.X-1", ""},
		{"unofficial", "stream: Some.Name.UNOFFICIAL FOUND\x00", "threat KnownVirus Some.Name.UNOFFICIAL", ""},
		{"encrypted", "stream: Heuristics.Encrypted.Zip FOUND\x00", "unchecked encrypted Heuristics.Encrypted.Zip", ""},
		{"limits", "stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\x00", "unchecked limits Heuristics.Limits.Exceeded.MaxRecursion", ""},
		{"broken", "stream: Heuristics.Broken.Executable FOUND\x00", "unchecked broken Heuristics.Broken.Executable", ""},
		{"heuristics", "stream: Heuristics.Phishing.Email FOUND\x00", "threat UnknownVirus Heuristics.Phishing.Email", ""},
		{"size limit", "INSTREAM size limit exceeded. ERROR\x00", "", inspect.Limits},
		{"time limit", "stream: Time limit reached ERROR\x00", "", inspect.Timeout},
		{"bad format", "stream: Bad format or broken data ERROR\x00", "", inspect.Broken},
		{"memory", "stream: Can't allocate memory ERROR\x00", "", inspect.Unavailable},
		{"other error", "stream: lstat() failed ERROR\x00", "", inspect.Unavailable},
		{"garbage", "HTTP/1.1 200 OK\r\n\x00", "", inspect.Unavailable},
		{"binary garbage", "\x01\x02\x03\x00", "", inspect.Unavailable},
		{"empty", "\x00", "", inspect.Unavailable},
		{"OK without stream", "OK\x00", "", inspect.Unavailable},
		{"nothing found FOUND", "stream:  FOUND\x00", "", inspect.Unavailable},
		{"half", "stream: O", "", inspect.Unavailable},
		{"all but the end", "stream: OK", "", inspect.Unavailable},
		{"two answers", "stream: OK\x00stream: X FOUND\x00", "", inspect.Unavailable},
		{"endless", strings.Repeat("x", 2*maxAnswer), "", inspect.Unavailable},
		{"nothing", "", "", inspect.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := serve(t, "unix", &fake{answer: say(c.line)})
			found, err := inspectString(e, "x")
			if c.fail != "" {
				if category(err) != c.fail || found != nil {
					t.Fatalf("found %v, err %v; want %s", found, err, c.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, f := range found {
				got += f.Kind + " " + f.Category + " " + f.Name
				if f.Path != "1" || f.Engine != "clamd" {
					t.Errorf("finding %+v", f)
				}
			}
			if got != c.found {
				t.Errorf("found %q, want %q", got, c.found)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize, 1 << 20} {
			t.Run(fmt.Sprint(network, size), func(t *testing.T) {
				want := strings.Repeat("\x00\r\n.", size/4+1)[:size]
				e := serve(t, network, &fake{answer: func(f *fake, c net.Conn, command string, body []byte) {
					if string(body) != want || command != "zINSTREAM" {
						io.WriteString(c, "wrong octets ERROR\x00")
						return
					}
					io.WriteString(c, "stream: OK\x00")
				}})
				if found, err := inspectString(e, want); err != nil || found != nil {
					t.Errorf("found %v, err %v", found, err)
				}
			})
		}
	}
}

// fileBody is a body that lies in a file.
type fileBody struct {
	*os.File
	size int64
}

func (b fileBody) Size() int64      { return b.size }
func (b fileBody) OSFile() *os.File { return b.File }

func TestDescriptor(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Remove(f.Name()) // as in the spool: without a name
	if _, err := f.WriteString("a virus"); err != nil {
		t.Fatal(err)
	}
	var command atomic.Value
	script := func(fk *fake, c net.Conn, cmd string, body []byte) {
		command.Store(cmd)
		scan(fk, c, cmd, body)
	}
	for _, c := range []struct {
		name, network, want string
		size                int64
	}{
		{"over a unix socket", "unix", "zFILDES", 7},
		{"over TCP the octets", "tcp", "zINSTREAM", 7},
		{"a file that is not all of the body", "unix", "zINSTREAM", 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasPrefix(c.name, "a file") {
				f.WriteString("more")
			}
			found, err := serve(t, c.network, &fake{answer: script}).Inspect(context.Background(), &inspect.Object{Body: fileBody{f, c.size}})
			if err != nil || len(found) != 1 || command.Load() != c.want {
				t.Errorf("found %v, err %v, by %v", found, err, command.Load())
			}
		})
	}
}

func TestSizeLimitWhileSending(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			e := serve(t, network, &fake{limit: 100 << 10, answer: scan})
			_, err := inspectString(e, strings.Repeat("x", 20<<20))
			if category(err) != inspect.Limits {
				t.Errorf("err = %v", err)
			}
			// That was the object's matter: the daemon is well.
			if s := e.Status(); s.State != Ready {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestHang(t *testing.T) {
	f := &fake{answer: func(f *fake, c net.Conn, _ string, _ []byte) { io.Copy(io.Discard, c) }}
	e := serve(t, "unix", f)
	e.cfg.ClamdTimeout = 50 * time.Millisecond
	if _, err := inspectString(e, "x"); category(err) != inspect.Timeout {
		t.Fatalf("err = %v", err)
	}
	// One that hangs altogether is found out by PING, and then costs nobody any time.
	f.dead.Store(true)
	e.cfg.ClamdTimeout, e.cfg.ClamdConnectTimeout = 5*time.Second, 50*time.Millisecond
	if _, err := inspectString(e, "x"); category(err) != inspect.Unavailable {
		t.Fatalf("err = %v", err)
	}
	pings := f.pings.Load()
	if _, err := inspectString(e, "x"); category(err) != inspect.Unavailable || f.pings.Load() != pings {
		t.Fatalf("err = %v, asked again", err)
	}
	if s := e.Status(); s.State != Failed || s.Error == "" {
		t.Errorf("status %+v", s)
	}
}

func TestContextEnds(t *testing.T) {
	asked := make(chan struct{}, 1)
	e := serve(t, "unix", &fake{answer: func(f *fake, c net.Conn, _ string, _ []byte) {
		asked <- struct{}{}
		io.Copy(io.Discard, c)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-asked; cancel() }()
	if _, err := e.Inspect(ctx, &inspect.Object{Body: inspect.Bytes("x")}); category(err) != inspect.Timeout {
		t.Errorf("err = %v", err)
	}
}

func TestKilledAndBack(t *testing.T) {
	f := &fake{answer: scan}
	e := serve(t, "unix", f)
	now := time.Now()
	e.cfg.Now = func() time.Time { return now }
	if found, err := inspectString(e, "virus"); err != nil || len(found) != 1 {
		t.Fatalf("found %v, err %v", found, err)
	}
	f.stop()
	for range 3 { // by connecting, by PING, by the state
		if _, err := inspectString(e, "virus"); category(err) != inspect.Unavailable {
			t.Fatalf("err = %v", err)
		}
	}
	l, err := net.Listen("unix", e.address)
	if err != nil {
		t.Fatal(err)
	}
	back := &fake{answer: scan, l: l}
	back.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			back.wg.Go(func() { back.conn(c) })
		}
	})
	defer back.stop()
	if _, err := inspectString(e, "virus"); category(err) != inspect.Unavailable {
		t.Fatalf("asked before the pause was over: %v", err)
	}
	now = now.Add(lastPause)
	if found, err := inspectString(e, "virus"); err != nil || len(found) != 1 {
		t.Fatalf("found %v, err %v", found, err)
	}
	if s := e.Status(); s.State != Ready {
		t.Errorf("status %+v", s)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	release := make(chan struct{})
	f := &fake{answer: func(f *fake, c net.Conn, cmd string, body []byte) { <-release; scan(f, c, cmd, body) }}
	e := serve(t, "unix", f)
	if err := e.Ping(context.Background()); err != nil {
		t.Fatal(err)
	}
	e.setLocked(Ready, nil)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if found, err := inspectString(e, "virus"); err != nil || len(found) != 1 {
				t.Errorf("found %v, err %v", found, err)
			}
		})
	}
	for e.Status().Busy < 3 {
		time.Sleep(time.Millisecond)
	}
	// Who gets no connection waits no longer than its context.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.Inspect(ctx, &inspect.Object{Body: inspect.Bytes("x")}); category(err) != inspect.Timeout {
		t.Errorf("err = %v", err)
	}
	close(release)
	wg.Wait()
	if n := f.most.Load(); n > 4 { // one that the client has closed may still be counted
		t.Errorf("%d connections at once", n)
	}
}

type brokenBody struct{}

func (brokenBody) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (brokenBody) Size() int64                       { return 10 }

func TestBrokenBody(t *testing.T) {
	e := serve(t, "unix", &fake{answer: scan})
	if _, err := e.Inspect(context.Background(), &inspect.Object{Body: brokenBody{}}); category(err) != inspect.Unavailable {
		t.Errorf("err = %v", err)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		socket string
		ok     bool
	}{{"/run/clamav/clamd.ctl", true}, {"127.0.0.1:3310", true}, {"[::1]:3310", true}, {"localhost:3310", false}, {"clamd.ctl", false}, {"", false}} {
		_, err := New(Config{Settings: Settings{ClamdSocket: c.socket}})
		if (err == nil) != c.ok {
			t.Errorf("%q: err = %v", c.socket, err)
		}
	}
}
