package quarantine

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mailweir/inspect"
)

// TestMain lets the test binary play the process that is killed.
func TestMain(m *testing.M) {
	switch os.Getenv("QUARANTINE_CHILD") {
	case "keep":
		childKeep()
		os.Exit(0)
	case "full":
		childFull()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "q")
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func message(id, content string) *inspect.Message {
	return &inspect.Message{
		ID: id, Door: inspect.DoorSMTP, Body: inspect.Bytes(content),
		Session:  inspect.Session{Conn: "c1", Client: netip.MustParseAddrPort("192.0.2.1:5000"), Server: netip.MustParseAddrPort("[2001:db8::1]:25")},
		Envelope: inspect.Envelope{From: "a@example.org", To: []string{"b@example.net", "c@example.net"}},
	}
}

func verdict() *inspect.Verdict {
	return &inspect.Verdict{Action: inspect.Modify, Reason: "threat", Findings: []inspect.Finding{{Kind: inspect.Threat, Name: "EICAR-Test-File", Category: inspect.KnownVirus, Path: "2/a.zip"}}}
}

func TestKeepShowExport(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 11, 22, 3, 4, 5, 6e6, time.UTC)
	s := open(t, Config{Now: func() time.Time { return now }})
	content := "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\tand\x1b more\r\n\r\n\x00bare\rCR and no end"
	id, err := s.Keep(ctx, message("m1", content), verdict())
	if err != nil {
		t.Fatal(err)
	}
	it, err := s.Show(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	want := Item{ID: id, Time: now, Conn: "c1", Msg: "m1", Door: "smtp", Client: "192.0.2.1:5000", Server: "[2001:db8::1]:25",
		From: "a@example.org", To: []string{"b@example.net", "c@example.net"}, Subject: "Grüße and more", Size: int64(len(content)),
		SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content))), Action: "Modify", Reason: "threat", Findings: verdict().Findings}
	if fmt.Sprint(*it) != fmt.Sprint(want) {
		t.Errorf("item\n%+v, want\n%+v", *it, want)
	}
	var b bytes.Buffer
	if err := s.Export(ctx, id, &b); err != nil || b.String() != content {
		t.Errorf("exported %q, %v", b.String(), err)
	}
	// The same message again is the same item; anything else about it is another one.
	if again, err := s.Keep(ctx, message("m1", content), verdict()); err != nil || again != id {
		t.Errorf("again: %v, %v", again, err)
	}
	other := message("m1", content)
	other.Envelope.To = other.Envelope.To[:1]
	for _, m := range []*inspect.Message{message("m2", content), message("m1", content+"!"), other} {
		if x, err := s.Keep(ctx, m, verdict()); err != nil || x == id {
			t.Errorf("other: %v, %v", x, err)
		}
	}
	if items, err := s.List(ctx, Filter{}); err != nil || len(items) != 4 {
		t.Errorf("%d items, %v", len(items), err)
	}
}

func TestList(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := open(t, Config{Now: func() time.Time { return now }})
	for i, subject := range []string{"one 100%", "two", "three_3"} {
		if _, err := s.Keep(ctx, message(fmt.Sprint("m", i), "Subject: "+subject+"\r\n\r\n"), verdict()); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		f    Filter
		want string
	}{
		{"all, newest first", Filter{}, "m2 m1 m0"},
		{"since", Filter{Since: start.Add(time.Hour)}, "m2 m1"},
		{"until is not included", Filter{Until: start.Add(time.Hour)}, "m0"},
		{"between", Filter{Since: start.Add(time.Minute), Until: start.Add(90 * time.Minute)}, "m1"},
		{"subject", Filter{Text: "TWO"}, "m1"},
		{"address", Filter{Text: "c@example.net", Limit: 2}, "m2 m1"},
		{"finding", Filter{Text: "eicar"}, "m2 m1 m0"},
		{"percent is not a wildcard", Filter{Text: "0%"}, "m0"},
		{"nor is an underscore", Filter{Text: "e_3"}, "m2"},
		{"nothing", Filter{Text: "x' OR 1 --"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			items, err := s.List(ctx, c.f)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, it := range items {
				got = append(got, it.Msg)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}

func TestDeleteAndPurge(t *testing.T) {
	ctx := context.Background()
	now := time.Now()
	s := open(t, Config{Settings: Settings{Retention: 24 * time.Hour}, Now: func() time.Time { return now }})
	var ids []string
	for i := range 3 {
		id, err := s.Keep(ctx, message(fmt.Sprint(i), "x"), verdict())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		now = now.Add(10 * time.Hour)
	}
	if n, err := s.Purge(ctx); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if err := s.Delete(ctx, ids[1]); err != nil {
		t.Error(err)
	}
	for _, id := range []string{ids[0], ids[1], "../../etc/passwd", ""} {
		if _, err := s.Show(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("show %q: %v", id, err)
		}
		if err := s.Delete(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("delete %q: %v", id, err)
		}
		if err := s.Export(ctx, id, io.Discard); !errors.Is(err, ErrNotFound) {
			t.Errorf("export %q: %v", id, err)
		}
	}
	if left, _ := os.ReadDir(s.messages()); len(left) != 1 {
		t.Errorf("%d files left", len(left))
	}
	s.cfg.Retention = 0
	now = now.Add(1000 * time.Hour)
	if n, err := s.Purge(ctx); n != 0 || err != nil {
		t.Errorf("purged %d without retention, %v", n, err)
	}
}

type brokenBody struct {
	inspect.Bytes
	size int64
}

func (b brokenBody) Size() int64 { return b.size }

func TestKeepFails(t *testing.T) {
	s := open(t, Config{})
	m := message("m", "")
	m.Body = brokenBody{inspect.Bytes("abc"), 10}
	if id, err := s.Keep(context.Background(), m, verdict()); err == nil || id != "" {
		t.Errorf("a body that breaks off is kept: %q", id)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Keep(ctx, message("m", "x"), verdict()); err == nil {
		t.Error("kept after its context ended")
	}
	if left, _ := os.ReadDir(s.messages()); len(left) != 0 {
		t.Errorf("%d files left", len(left))
	}
	if items, err := s.List(context.Background(), Filter{}); err != nil || len(items) != 0 {
		t.Errorf("items %v, %v", items, err)
	}
}

func TestSweep(t *testing.T) {
	ctx := context.Background()
	s := open(t, Config{})
	id, err := s.Keep(ctx, message("m", "x"), verdict())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{temporary + "123", "withoutrow.eml", "foreign.txt"} {
		if err := os.WriteFile(filepath.Join(s.messages(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := func() string {
		entries, _ := os.ReadDir(s.messages())
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		slices.Sort(got)
		return strings.Join(got, " ")
	}
	// While somebody makes an item nothing is taken away.
	unlock, err := s.lock("lock", syscall.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	open(t, Config{Dir: s.cfg.Dir})
	if n := len(strings.Fields(names())); n != 4 {
		t.Errorf("swept while an item was being made: %s", names())
	}
	unlock()
	open(t, Config{Dir: s.cfg.Dir})
	if got, want := names(), id+".eml foreign.txt"; got != want && got != "foreign.txt "+id+".eml" {
		t.Errorf("files %s, want %s", got, want)
	}
}

func TestSeveralAtOnce(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "q")
	var wg sync.WaitGroup
	for i := range 4 { // four handles, as of four processes; the first ones race to make the database
		wg.Go(func() {
			s, err := Open(ctx, Config{Dir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for j := range 10 {
				id, err := s.Keep(ctx, message(fmt.Sprint(i, "-", j), "text"), verdict())
				if err != nil {
					t.Error(err)
					return
				}
				if j%2 == 0 {
					if err := s.Delete(ctx, id); err != nil {
						t.Error(err)
					}
				}
				if _, err := s.List(ctx, Filter{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := open(t, Config{Dir: dir})
	if items, err := s.List(ctx, Filter{}); err != nil || len(items) != 20 {
		t.Errorf("%d items, %v", len(items), err)
	}
}

func childKeep() {
	ctx := context.Background()
	s, err := Open(ctx, Config{Dir: os.Getenv("QUARANTINE_DIR")})
	if err != nil {
		fmt.Println("ERROR", err)
		return
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				body := make([]byte, rand.IntN(200<<10))
				for j := range body {
					body[j] = byte(rand.Uint32())
				}
				id, err := s.Keep(ctx, message(fmt.Sprint(os.Getpid(), w, i), string(body)), verdict())
				if err != nil {
					fmt.Println("ERROR", err)
					return
				}
				mu.Lock()
				fmt.Printf("%s %x\n", id, sha256.Sum256(body))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func child(ctx context.Context, mode, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "QUARANTINE_CHILD="+mode, "QUARANTINE_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestG10KilledAfterKeep kills a process that keeps messages as fast as it can, at random moments: what Keep has
// returned for is there with its very octets, and nothing half is listed.
func TestG10KilledAfterKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "q")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	promised := map[string]string{}
	rounds := 10
	for round := range rounds {
		cmd := child(ctx, "keep", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n, after := 0, 1+rand.IntN(12); lines.Scan(); n++ {
			var id, sum string
			if _, err := fmt.Sscan(lines.Text(), &id, &sum); err != nil || id == "ERROR" {
				t.Errorf("round %d: child says %q", round, lines.Text())
				break
			}
			promised[id] = sum
			if n == after { // at once in half of the rounds, else somewhere within the next items
				if round%2 == 1 {
					time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
				}
				cmd.Process.Kill()
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	s := open(t, Config{Dir: dir})
	items, err := s.List(context.Background(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		h := sha256.New()
		if err := s.Export(context.Background(), it.ID, h); err != nil {
			t.Errorf("listed, but not readable: %v", err)
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != it.SHA256 {
			t.Errorf("item %s: octets differ", it.ID)
		}
		if want, ok := promised[it.ID]; ok && want != it.SHA256 {
			t.Errorf("item %s is not what was promised", it.ID)
		}
		delete(promised, it.ID)
	}
	if len(promised) > 0 {
		t.Errorf("%d items are lost", len(promised))
	}
	if left, _ := os.ReadDir(s.messages()); len(left) != len(items) {
		t.Errorf("%d files for %d items after the sweep", len(left), len(items))
	}
	if len(items) < rounds {
		t.Errorf("only %d items: the test has shown nothing", len(items))
	}
}

// childFull runs in a mount namespace of its own, on a file system that fills up.
func childFull() {
	ctx := context.Background()
	dir := os.Getenv("QUARANTINE_DIR")
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=600k"); err != nil {
		fmt.Println("SKIP", err)
		return
	}
	s, err := Open(ctx, Config{Dir: filepath.Join(dir, "q")})
	if err != nil {
		fmt.Println("ERROR", err)
		return
	}
	kept, refused := 0, 0
	for i := range 40 {
		// Small and large in turn: sometimes the octets do not fit, sometimes the row does not.
		id, err := s.Keep(ctx, message(fmt.Sprint(i), strings.Repeat("x", 1+(i%3)*20000)), verdict())
		switch {
		case err == nil && id != "":
			kept++
		case err != nil && id == "":
			refused++
		default:
			fmt.Println("ERROR half an answer", id, err)
		}
	}
	items, err := s.List(ctx, Filter{})
	if err != nil || len(items) != kept {
		fmt.Println("ERROR", len(items), "items for", kept, "kept:", err)
	}
	for _, it := range items {
		n := &counter{}
		if err := s.Export(ctx, it.ID, n); err != nil || n.n != it.Size {
			fmt.Println("ERROR item", it.ID, n.n, err)
		}
	}
	files, _ := os.ReadDir(s.messages())
	if len(files) != kept {
		fmt.Println("ERROR", len(files), "files for", kept, "kept")
	}
	// What is deleted makes room again.
	for _, it := range items[:min(len(items), 4)] {
		if err := s.Delete(ctx, it.ID); err != nil {
			fmt.Println("DELETE", err)
		}
	}
	fmt.Println("DONE", kept > 0, refused > 0)
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

func TestDiskFull(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := child(ctx, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		t.Skipf("no namespaces here: %v", err)
	}
	text := string(out)
	if strings.HasPrefix(text, "SKIP") {
		t.Skip(text)
	}
	if !strings.HasSuffix(text, "DONE true true\n") || strings.Contains(text, "ERROR") {
		t.Errorf("child says:\n%s", text)
	}
}

func BenchmarkKeep(b *testing.B) {
	s := open(b, Config{})
	content := strings.Repeat("x", 30<<10)
	for i := 0; b.Loop(); i++ {
		if _, err := s.Keep(context.Background(), message(fmt.Sprint(i), content), verdict()); err != nil {
			b.Fatal(err)
		}
	}
}
