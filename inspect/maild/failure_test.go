package maild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/engine/clamd"
	"mailweir/inspect/inspecttest"
	"mailweir/inspect/spool"
)

// clamdThat makes the client of a daemon that answers objects as told and is otherwise well.
func clamdThat(t *testing.T, answer func(net.Conn)) inspect.Engine {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 6)
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				if string(b) == "zPING\x00" {
					io.WriteString(c, "PONG\x00")
					return
				}
				tail := "" // INSTREAM ends with a chunk of no length
				for buf := make([]byte, 4096); !strings.HasSuffix(tail, "\x00\x00\x00\x00"); {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					tail = (tail + string(buf[:n]))[max(0, len(tail)+n-4):]
				}
				answer(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return newClamd(t, socket)
}

func newClamd(t *testing.T, socket string) inspect.Engine {
	t.Helper()
	e, err := clamd.New(clamd.Config{Settings: clamd.Settings{ClamdSocket: socket, ClamdTimeout: 100 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func say(line string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, line) } }

// TestG13EngineFailure: every way in which an engine can fail has the outcome that is configured, and none is clean.
func TestG13EngineFailure(t *testing.T) {
	text := message("Subject: x\r\n\r\nhello\r\n")
	for _, c := range []struct {
		name, category string
		engine         func(t *testing.T) inspect.Engine
	}{
		{"killed", inspect.Unavailable, func(t *testing.T) inspect.Engine { return newClamd(t, filepath.Join(t.TempDir(), "gone")) }},
		{"killed while it looks", inspect.Unavailable, func(t *testing.T) inspect.Engine { return clamdThat(t, func(net.Conn) {}) }},
		{"hangs", inspect.Timeout, func(t *testing.T) inspect.Engine { return clamdThat(t, func(c net.Conn) { io.Copy(io.Discard, c) }) }},
		{"garbage", inspect.Unavailable, func(t *testing.T) inspect.Engine { return clamdThat(t, say("\x7f\x00\x01 what?\x00")) }},
		{"half an answer", inspect.Unavailable, func(t *testing.T) inspect.Engine { return clamdThat(t, say("stream: OK")) }},
		{"out of memory", inspect.Unavailable, func(t *testing.T) inspect.Engine { return clamdThat(t, say("stream: Can't allocate memory ERROR\x00")) }},
		{"panics", inspect.Unavailable, func(t *testing.T) inspect.Engine { return inspecttest.Panics() }},
		{"an error of no category", inspect.Unavailable, func(t *testing.T) inspect.Engine {
			return &inspecttest.Engine{Do: func(context.Context, *inspect.Object) ([]inspect.Finding, error) { return nil, errors.New("x") }}
		}},
	} {
		for _, s := range []struct {
			set    string
			action inspect.Action
			code   int
		}{{"TempFail", inspect.Defer, 451}, {"Pass", inspect.Pass, 0}, {"Reject", inspect.Reject, 550}} {
			t.Run(c.name+", "+s.set, func(t *testing.T) {
				d := newMailD(t, Config{
					Settings: settings(func(x *Settings) { x.EngineFailure, x.QuarantineRejected = s.set, false }),
					Engines:  []inspect.Engine{builtinEngine(t), c.engine(t)},
				})
				v := d.Scan(context.Background(), text)
				if v.Action != s.action || v.Reply.Code != s.code || v.Reason != "unchecked:"+c.category || v.Err == nil {
					t.Errorf("verdict %+v", v)
				}
				for _, f := range v.Findings {
					if f.Kind != inspect.Unchecked || f.Category != c.category {
						t.Errorf("finding %+v", f)
					}
				}
			})
		}
		t.Run(c.name+", and another finds a threat", func(t *testing.T) {
			// Refusing is certain enough; delivering the rest of the message is not.
			for _, s := range []struct {
				threat string
				action inspect.Action
			}{{"Reject", inspect.Reject}, {"Discard", inspect.Discard}, {"Repack", inspect.Defer}} {
				d := newMailD(t, Config{Settings: settings(func(x *Settings) { x.ThreatAction = s.threat }), Keeper: &keeper{},
					Engines: []inspect.Engine{c.engine(t), builtinEngine(t)}})
				if v := d.Scan(context.Background(), message(eicar)); v.Action != s.action {
					t.Errorf("%s: verdict %+v", s.threat, v)
				}
			}
		})
	}
}

// TestG13Unchecked: what could not be looked into because of the mail has the outcome that BlockUnchecked says.
func TestG13Unchecked(t *testing.T) {
	deep := "x"
	for i := range 12 {
		deep = zipOf(t, fmt.Sprint(i, ".zip"), deep)
	}
	mails := "Subject: innermost\r\n\r\nhello\r\n"
	for range 10 {
		mails = attach("m.eml", "message/rfc822", "7bit", mails)
	}
	bomb := zipOf(t, "zeros", strings.Repeat("\x00", 4<<20))
	attached := func(s string) string { return attach("a.zip", "application/zip", "base64", b64(s)) }
	for _, c := range []struct {
		name, message, category string
		set                     func(*Settings)
		engine                  inspect.Engine
	}{
		{"archive bomb", attached(bomb), inspect.Limits, nil, nil},
		{"archives too deep", attached(deep), inspect.Limits, nil, nil},
		{"no archives at all", attached(zipOf(t, "a", "x")), inspect.Limits, func(s *Settings) { s.ArchiveMaxLevel = 0 }, nil},
		{"no gzip either", attached(gz("x")), inspect.Limits, func(s *Settings) { s.ArchiveMaxLevel = 0 }, nil},
		{"too much to extract", attached(zipOf(t, "a", strings.Repeat("ab", 10000))), inspect.Limits, func(s *Settings) { s.MaxSizeToExtract = 1000 }, nil},
		{"messages too deep", mails, inspect.Limits, nil, nil},
		{"no attached messages at all", attach("m.eml", "message/rfc822", "7bit", "Subject: y\r\n\r\nhello\r\n"), inspect.Limits, func(s *Settings) { s.MailMaxLevel = 0 }, nil},
		{"archive cut off", attached(zipOf(t, "a", strings.Repeat("ab", 10000))[:60]), inspect.Broken, nil, nil},
		{"gzip cut off", attached(gz(strings.Repeat("ab", 10000))[:40]), inspect.Broken, nil, nil},
		{"read in two ways", "Content-Type: multipart/mixed; boundary=a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--a\r\n\r\nx\r\n--a--\r\n--b\r\n\r\ny\r\n--b--\r\n", inspect.Ambiguous, nil, nil},
		{"engine says limits", "hello", inspect.Limits, nil, inspecttest.Fails(inspect.Limits)},
		{"engine says encrypted", "hello", inspect.Encrypted, nil, inspecttest.Fails(inspect.Encrypted)},
		{"engine says broken", "hello", inspect.Broken, nil, inspecttest.Fails(inspect.Broken)},
	} {
		for _, block := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", BlockUnchecked ", block), func(t *testing.T) {
				engines := []inspect.Engine{builtinEngine(t)}
				if c.engine != nil {
					engines = append(engines, c.engine)
				}
				d := newMailD(t, Config{Engines: engines, Settings: settings(func(s *Settings) {
					if s.BlockUnchecked = block; c.set != nil {
						c.set(s)
					}
				})})
				v := d.Scan(context.Background(), message(c.message))
				if want := map[bool]inspect.Action{false: inspect.Pass, true: inspect.Reject}[block]; v.Action != want {
					t.Errorf("verdict %+v", v)
				}
				found := false
				for _, f := range v.Findings {
					found = found || f.Kind == inspect.Unchecked && f.Category == c.category
				}
				if !found || !strings.HasPrefix(v.Reason, "unchecked:") {
					t.Errorf("reason %s, findings %+v", v.Reason, v.Findings)
				}
			})
		}
	}
}

// TestEncryptedArchive needs a program that encrypts.
func TestEncryptedArchive(t *testing.T) {
	if _, err := exec.LookPath("zip"); err != nil {
		t.Skip("zip is not installed")
	}
	cmd := exec.Command("zip", "-q", "-P", "secret", "-", "-")
	cmd.Stdin = strings.NewReader(eicar)
	out, err := cmd.Output()
	if err != nil {
		t.Skip(err)
	}
	v := newMailD(t, Config{}).Judge(context.Background(), message(attach("a.zip", "application/zip", "base64", b64(string(out)))))
	if v.Action != inspect.Pass || v.Reason != "unchecked:encrypted" {
		t.Errorf("verdict %+v", v)
	}
}

func TestSpoolFull(t *testing.T) {
	pool, err := spool.New(spool.Config{Dir: t.TempDir(), Settings: spool.Settings{SpoolQuota: 200 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	d := newMailD(t, Config{Spool: pool})
	v := d.Scan(context.Background(), message(attach("a.bin", "application/octet-stream", "base64", b64(strings.Repeat("x", 2<<20)))))
	if v.Action != inspect.Defer || v.Reason != "unchecked:unavailable" || !errors.Is(v.Err, spool.ErrQuota) {
		t.Errorf("verdict %+v", v)
	}
}

// TestDeadline: whatever is in it, a message is judged within ScanTimeout and a little.
func TestDeadline(t *testing.T) {
	bomb := zipOf(t, "zeros", strings.Repeat("\x00", 20<<20))
	var bombs []string
	for i := range 100 { // all different, together 2 GB
		bombs = append(bombs, fmt.Sprint(i), bomb+fmt.Sprint(i))
	}
	parts := "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\nContent-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"+b64(zipOf(t, "a", "b"))+"\r\n", 5000)
	for _, c := range []struct {
		name, message string
		engine        inspect.Engine
	}{
		{"an engine that hangs", "hello", inspecttest.Hangs()},
		{"one that is slow, many objects", parts, &inspecttest.Engine{Do: func(ctx context.Context, _ *inspect.Object) ([]inspect.Finding, error) {
			time.Sleep(40 * time.Millisecond) // three objects: the same octets are looked at once
			return nil, nil
		}}},
		{"a bomb within the ratio", attach("a.zip", "application/zip", "base64", b64(zipOf(t, bombs...))), builtinEngine(t)},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newMailD(t, Config{Engines: []inspect.Engine{c.engine}, Settings: settings(func(s *Settings) {
				s.ScanTimeout, s.MaxCompressionRatio = 100*time.Millisecond, 1<<20
			})})
			start := time.Now()
			v := d.Scan(context.Background(), message(c.message))
			if v.Action != inspect.Defer || v.Reason != "unchecked:timeout" || v.Err == nil {
				t.Errorf("action %v, reason %s, err %v", v.Action, v.Reason, v.Err)
			}
			// The bound is loose because of the machine, not of the code: it takes some milliseconds.
			took := time.Since(start)
			if t.Logf("took %v", took); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	t.Run("the door goes away", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		e := &inspecttest.Engine{Do: func(ctx context.Context, _ *inspect.Object) ([]inspect.Finding, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		if v := newMailD(t, Config{Engines: []inspect.Engine{e}}).Scan(ctx, message("hello")); v.Action != inspect.Defer {
			t.Errorf("verdict %+v", v)
		}
	})
}

type brokenBody struct{ inspect.Bytes }

func (brokenBody) ReadAt([]byte, int64) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestBodyCannotBeRead(t *testing.T) {
	m := message("")
	m.Body = brokenBody{inspect.Bytes("Subject: x\r\n\r\nhello")}
	if v := newMailD(t, Config{}).Scan(context.Background(), m); v.Action != inspect.Defer || v.Err == nil {
		t.Errorf("verdict %+v", v)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	e := &inspecttest.Engine{Do: func(_ context.Context, o *inspect.Object) ([]inspect.Finding, error) {
		var found []inspect.Finding
		for i := range 2 * maxFindings {
			found = append(found, inspect.Finding{Kind: inspect.Odd, Name: fmt.Sprint(i)})
		}
		return append(found, inspect.Finding{Kind: inspect.Threat, Name: "Last", Category: "known_virus"}), nil
	}}
	d := newMailD(t, Config{Engines: []inspect.Engine{e}, Settings: settings(func(s *Settings) { s.ThreatAction = "Reject" })})
	v := d.Judge(context.Background(), message("hello"))
	if v.Action != inspect.Reject || len(v.Findings) > maxFindings {
		t.Errorf("action %v, %d findings", v.Action, len(v.Findings))
	}
}

func TestHeuristicsOff(t *testing.T) {
	e := inspecttest.Finds("hello", "Heuristics.Guess")
	for _, on := range []bool{true, false} {
		d := newMailD(t, Config{Engines: []inspect.Engine{e}, Settings: settings(func(s *Settings) { s.HeuristicAnalysis = on })})
		want := map[bool]inspect.Action{true: inspect.Modify, false: inspect.Pass}[on]
		if v := d.Judge(context.Background(), message("hello")); v.Action != want || len(v.Findings) == 0 {
			t.Errorf("%v: verdict %+v", on, v)
		}
	}
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		name   string
		f      inspect.Finding
		set    func(*Settings)
		want   effect
		reason string
	}{
		{"known", inspect.Finding{Kind: inspect.Threat, Category: "KnownVirus"}, nil, doRepack, "threat"},
		{"another spelling", inspect.Finding{Kind: inspect.Threat, Category: "known_virus"}, nil, doRepack, "threat"},
		{"suspicious", inspect.Finding{Kind: inspect.Threat, Category: inspect.VirusModification}, nil, doRepack, "threat"},
		{"suspicious, allowed", inspect.Finding{Kind: inspect.Threat, Category: inspect.UnknownVirus}, func(s *Settings) { s.BlockSuspicious = false }, pass, "threat"},
		{"adware", inspect.Finding{Kind: inspect.Threat, Category: inspect.Adware}, nil, doRepack, "threat"},
		{"dialer", inspect.Finding{Kind: inspect.Threat, Category: inspect.Dialer}, nil, doRepack, "threat"},
		{"joke", inspect.Finding{Kind: inspect.Threat, Category: inspect.Joke}, nil, pass, "threat"},
		{"joke, blocked", inspect.Finding{Kind: inspect.Threat, Category: inspect.Joke}, func(s *Settings) { s.BlockJokes = true }, doRepack, "threat"},
		{"riskware, blocked", inspect.Finding{Kind: inspect.Threat, Category: inspect.Riskware}, func(s *Settings) { s.BlockRiskware, s.ThreatAction = true, "reject" }, reject, "threat"},
		{"hacktool, blocked", inspect.Finding{Kind: inspect.Threat, Category: inspect.Hacktool}, func(s *Settings) { s.BlockHacktools, s.ThreatAction = true, "Discard" }, discard, "threat"},
		{"spam", inspect.Finding{Kind: inspect.Spam}, nil, reject, "spam"},
		{"limits", inspect.Finding{Kind: inspect.Unchecked, Category: inspect.Limits}, nil, pass, "unchecked:limits"},
		{"limits, blocked", inspect.Finding{Kind: inspect.Unchecked, Category: inspect.Limits}, func(s *Settings) { s.BlockUnchecked = true }, reject, "unchecked:limits"},
		{"timeout, whatever BlockUnchecked", inspect.Finding{Kind: inspect.Unchecked, Category: inspect.Timeout}, func(s *Settings) { s.BlockUnchecked = true }, tempFail, "unchecked:timeout"},
		{"a bound of the parser", inspect.Finding{Kind: inspect.Unchecked, Category: inspect.Limits, Name: "too-deep"}, nil, reject, "unchecked:limits"},
		{"odd", inspect.Finding{Kind: inspect.Odd}, nil, pass, ""},
		{"link", inspect.Finding{Kind: inspect.Link}, nil, pass, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := newPolicy(settings(c.set))
			if err != nil {
				t.Fatal(err)
			}
			if e, reason := p.weigh(&c.f); e != c.want || reason != c.reason {
				t.Errorf("effect %d, reason %q", e, reason)
			}
		})
	}
}
