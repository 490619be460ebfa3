package maild

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"mailweir/inspect"
	"mailweir/inspect/engine/builtin"
	"mailweir/inspect/inspecttest"
	"mailweir/inspect/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eicar is put together here so that no scanner takes this test for it.
var eicar = strings.Join([]string{`X5O!P%@AP[4\PZX54(P^)7CC)7}$`, "EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!", "$H+H*"}, "")

func testSpool(t testing.TB) *spool.Pool {
	t.Helper()
	p, err := spool.New(spool.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func builtinEngine(t testing.TB) inspect.Engine {
	t.Helper()
	e, err := builtin.Open(builtin.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newMailD makes a scanner with defaults for what cfg leaves out.
func newMailD(t testing.TB, cfg Config) *MailD {
	t.Helper()
	if cfg.Spool == nil {
		cfg.Spool = testSpool(t)
	}
	if cfg.Engines == nil {
		cfg.Engines = []inspect.Engine{builtinEngine(t)}
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n, size := cfg.Spool.Usage(); n != 0 || size != 0 {
			t.Errorf("%d files with %d octets are left in the spool", n, size)
		}
	})
	return d
}

func settings(change func(*Settings)) Settings {
	s := DefaultSettings()
	if change != nil {
		change(&s)
	}
	return s
}

func message(content string) *inspect.Message {
	return &inspect.Message{ID: "m1", Door: inspect.DoorSMTP, Body: inspect.Bytes(content)}
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func b64(s string) string {
	e := base64.StdEncoding.EncodeToString([]byte(s))
	var lines []string
	for len(e) > 76 {
		lines, e = append(lines, e[:76]), e[76:]
	}
	return strings.Join(append(lines, e), "\r\n")
}

// attach makes a message with a text and an attachment.
func attach(name, mediaType, encoding, content string) string {
	return strings.ReplaceAll(crlf("From: a@example.org\nTo: b@example.net\nSubject: x\nMIME-Version: 1.0\n"+
		"Content-Type: multipart/mixed; boundary=@@\n\n--@@\nContent-Type: text/plain\n\nHello.\n--@@\n"+
		"Content-Type: "+mediaType+"\nContent-Transfer-Encoding: "+encoding+"\n"+
		"Content-Disposition: attachment; filename=\""+name+"\"\n\n")+content+crlf("\n--@@--\n"), "@@", fmt.Sprint("b", len(content)))
}

func zipOf(t testing.TB, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		f, err := w.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, files[i+1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func gz(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func tgz(name, s string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: name, Size: int64(len(s)), Mode: 0o600})
	io.WriteString(w, s)
	w.Close()
	return gz(b.String())
}

func bz2(t *testing.T, s string) string {
	t.Helper()
	cmd := exec.Command("bzip2", "-c")
	cmd.Stdin = strings.NewReader(s)
	out, err := cmd.Output()
	if err != nil {
		t.Skip("bzip2 is not installed")
	}
	return string(out)
}

func uu(name, s string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "begin 644 %s\r\n", name)
	for len(s) > 0 {
		line := s[:min(45, len(s))]
		s = s[len(line):]
		b.WriteByte(byte(32 + len(line)))
		for len(line)%3 != 0 {
			line += "\x00"
		}
		for i := 0; i < len(line); i += 3 {
			v := uint(line[i])<<16 | uint(line[i+1])<<8 | uint(line[i+2])
			for shift := 18; shift >= 0; shift -= 6 {
				c := byte(v>>shift&63) + 32
				if c == 32 {
					c = '`'
				}
				b.WriteByte(c)
			}
		}
		b.WriteString("\r\n")
	}
	b.WriteString("`\r\nend\r\n")
	return b.String()
}

func qp(s string) string {
	var b strings.Builder
	w := quotedprintable.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	// Every letter may be encoded, and then no octet of the pattern is in the raw text.
	return strings.NewReplacer("E", "=45", "A", "=41", "$", "=24", "O", "=4f").Replace(b.String())
}

func TestFindsEICAR(t *testing.T) {
	inner := attach("t.zip", "application/zip", "base64", b64(zipOf(t, "eicar.com", eicar)))
	deep := eicar
	for i := range 4 {
		deep = zipOf(t, fmt.Sprint(i, ".zip"), deep)
	}
	for _, c := range []struct{ name, message, path string }{
		{"raw in the text", "Subject: x\r\n\r\n" + eicar + "\r\n", "1"},
		{"in the header", "Subject: x\r\nX-Y: " + eicar + "\r\n\r\nhello\r\n", ""},
		{"not a mail at all", eicar, "1"},
		{"base64", attach("e.com", "application/octet-stream", "base64", b64(eicar)), "2/e.com"},
		{"quoted-printable", attach("e.com", "text/plain", "quoted-printable", qp(eicar)), "2/e.com"},
		{"zip", attach("t.zip", "application/zip", "base64", b64(zipOf(t, "clean.txt", "hello", "d/eicar.com", eicar))), "2/t.zip/d/eicar.com"},
		{"zip in zip in zip in zip", attach("t.zip", "application/zip", "base64", b64(deep)), "2/t.zip/3.zip/2.zip/1.zip/0.zip"},
		{"zip in message", attach("m.eml", "message/rfc822", "7bit", inner), "2.2/t.zip/eicar.com"},
		{"zip in message in message", attach("m.eml", "message/rfc822", "7bit", attach("m.eml", "message/rfc822", "7bit", inner)), "2.2.2/t.zip/eicar.com"},
		{"zip in encoded message", attach("m.eml", "message/rfc822", "base64", b64(inner)), "2/m.eml/2/t.zip/eicar.com"},
		{"message as octet-stream", attach("m.eml", "application/octet-stream", "base64", b64(inner)), "2/m.eml/2/t.zip/eicar.com"},
		{"message by its looks", attach("notes", "application/octet-stream", "base64", b64(inner)), "2/notes/2/t.zip/eicar.com"},
		{"message in zip", attach("m.zip", "application/zip", "base64", b64(zipOf(t, "m.eml", inner))), "2/m.zip/m.eml/2/t.zip/eicar.com"},
		{"gzip", attach("e.com.gz", "application/gzip", "base64", b64(gz(eicar))), "2/e.com.gz/e.com"},
		{"tar.gz", attach("e.tar.gz", "application/gzip", "base64", b64(tgz("eicar.com", eicar))), "2/e.tar.gz/e.tar/eicar.com"},
		{"bzip2", attach("e.com.bz2", "application/x-bzip2", "base64", b64(bz2(t, eicar))), "2/e.com.bz2/e.com"},
		{"uuencode in the text", "Subject: x\r\n\r\nLook:\r\n" + uu("e.com", eicar) + "bye\r\n", "1/e.com"},
		{"uuencode in base64 text", attach("t.txt", "text/plain", "base64", b64("hi\r\n"+uu("e.com", eicar))), "2/t.txt/e.com"},
		{"uuencoded zip", "Subject: x\r\n\r\n" + uu("e.zip", zipOf(t, "e.com", eicar)), "1/e.zip/e.com"},
		{"uuencode in the preamble", strings.Replace(attach("a", "text/plain", "7bit", "x"), "--b1", uu("e.com", eicar)+"--b1", 1), "preamble/e.com"},
		{"after the end", attach("a", "text/plain", "7bit", "x") + uu("e.com", eicar), "epilogue/e.com"},
		{"a zip and no mail", zipOf(t, "e.com", eicar), "1/e.com"},
		{"a tar that looks like a header", func() string {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			w.WriteHeader(&tar.Header{Name: "Subject: x\n\nfile", Size: 68, Mode: 0o600})
			io.WriteString(w, eicar)
			w.Close()
			return b.String()
		}(), "file/Subject: x__file"},
		{"two encodings declared", strings.Replace(attach("e.com", "application/octet-stream", "base64", b64(eicar)),
			"Content-Transfer-Encoding: base64", "Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64", 1), "2/e.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newMailD(t, Config{})
			v := d.Judge(context.Background(), message(c.message))
			if v.Action != inspect.Modify || v.Reason != "threat" || v.Err != nil {
				t.Errorf("action %v, reason %s, err %v", v.Action, v.Reason, v.Err)
			}
			found := false
			for _, f := range v.Findings {
				found = found || f.Kind == inspect.Threat && f.Name == "EICAR-Test-File" && f.Path == c.path
			}
			if !found {
				t.Errorf("not found in %q: %+v", c.path, v.Findings)
			}
		})
	}
}

func TestCleanPasses(t *testing.T) {
	d := newMailD(t, Config{})
	for name, content := range map[string]string{
		"empty":      "",
		"header":     "Subject: x\r\n",
		"text":       "Subject: x\r\n\r\nhello\r\n",
		"attachment": attach("a.zip", "application/zip", "base64", b64(zipOf(t, "a.txt", "hello", "b.txt", strings.Repeat("abc", 100000)))),
		"message":    attach("m.eml", "message/rfc822", "7bit", attach("a.txt", "text/plain", "quoted-printable", qp("hello"))),
		"begin":      "Subject: x\r\n\r\nbegin 2 understand\r\nend\r\n",
		"large":      attach("a.bin", "application/octet-stream", "base64", b64(strings.Repeat("0123456789abcdef", 100000))),
	} {
		t.Run(name, func(t *testing.T) {
			v := d.Scan(context.Background(), message(content))
			if v.Action != inspect.Pass || v.Reason != "clean" || v.Err != nil || v.Edits != nil {
				t.Errorf("verdict %+v", v)
			}
		})
	}
}

func TestGTUBE(t *testing.T) {
	gtube := strings.Join([]string{"XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-", "TEST-EMAIL*C.34X"}, "")
	v := newMailD(t, Config{}).Judge(context.Background(), message("Subject: x\r\n\r\n"+gtube+"\r\n"))
	if v.Action != inspect.Reject || v.Reason != "spam" || v.Reply.Code != 550 {
		t.Errorf("verdict %+v", v)
	}
}

func TestViewsAreLookedAt(t *testing.T) {
	m := message("Subject: x\r\n\r\nhello\r\n")
	m.Views = []inspect.Body{inspect.Bytes(attach("e.com", "application/octet-stream", "base64", b64(eicar)))}
	v := newMailD(t, Config{}).Judge(context.Background(), m)
	if v.Action != inspect.Modify || v.Findings[0].Path != "view1/2/e.com" {
		t.Errorf("verdict %+v", v)
	}
}

func TestEngineGetsObjects(t *testing.T) {
	e := &inspecttest.Engine{}
	content := attach("t.zip", "application/zip", "base64", b64(zipOf(t, "a.txt", "in the zip")))
	newMailD(t, Config{Engines: []inspect.Engine{e}}).Judge(context.Background(), message(content))
	var got []string
	for _, o := range e.Objects() {
		got = append(got, o.Path+"|"+o.Name+"|"+o.Type)
		if o.Path == "" && string(o.Body) != content {
			t.Error("the whole message is not the whole message")
		}
		if o.Path == "2/t.zip/a.txt" && string(o.Body) != "in the zip" {
			t.Errorf("member is %q", o.Body)
		}
		if o.Path != "" && o.Sum == [32]byte{} {
			t.Errorf("object %s has no sum", o.Path)
		}
	}
	want := "||message/rfc822 1||text/plain 2/t.zip|t.zip|application/zip 2/t.zip/a.txt|a.txt|"
	if strings.Join(got, " ") != want {
		t.Errorf("objects %q, want %q", got, want)
	}
}

func TestSameOctetsOnce(t *testing.T) {
	e := inspecttest.Finds("bad", "Bad.Thing")
	content := crlf("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" +
		strings.Repeat("--b\nContent-Type: application/zip; name=z.zip\nContent-Transfer-Encoding: base64\n\n"+lf64(zipOf(t, "x", "bad"))+"\n", 3) + "--b--\n")
	d := newMailD(t, Config{Engines: []inspect.Engine{e}})
	j := d.judge(context.Background(), message(content))
	if n := len(e.Objects()); n != 3 { // message, archive, member
		t.Errorf("%d objects were looked at", n)
	}
	if len(j.bad) != 3 || j.bad[2].Findings[0].Path != "3/z.zip/x" {
		t.Errorf("bad parts %+v", j.bad)
	}
}

// keeper is a Keeper that remembers, or fails.
type keeper struct {
	mu   sync.Mutex
	err  error
	kept []inspect.Action
}

func (k *keeper) Keep(ctx context.Context, m *inspect.Message, v *inspect.Verdict) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if k.err != nil {
		return "", k.err
	}
	k.kept = append(k.kept, v.Action)
	return "q1", nil
}

func TestActions(t *testing.T) {
	bad := "Subject: x\r\n\r\n" + eicar + "\r\n"
	fails := errors.New("disk full")
	for _, c := range []struct {
		name       string
		set        func(*Settings)
		keep       error
		action     inspect.Action
		code       int
		quarantine string
	}{
		{"reject", func(s *Settings) { s.ThreatAction = "Reject" }, nil, inspect.Reject, 550, "q1"},
		{"reject, not kept", func(s *Settings) { s.ThreatAction, s.QuarantineRejected = "Reject", false }, nil, inspect.Reject, 550, ""},
		{"discard", func(s *Settings) { s.ThreatAction = "Discard" }, nil, inspect.Discard, 0, "q1"},
		{"temporary", func(s *Settings) { s.ThreatAction = "TempFail" }, nil, inspect.Defer, 451, ""},
		{"pass", func(s *Settings) { s.ThreatAction = "Pass" }, nil, inspect.Pass, 0, ""},
		{"category not blocked", func(s *Settings) { s.BlockKnownVirus = false }, nil, inspect.Pass, 0, ""},
		{"G-10 reject that cannot be kept is deferred", func(s *Settings) { s.ThreatAction = "Reject" }, fails, inspect.Defer, 451, ""},
		{"G-10 discard that cannot be kept is deferred", func(s *Settings) { s.ThreatAction = "Discard" }, fails, inspect.Defer, 451, ""},
		{"G-10 repack that cannot be kept is deferred", nil, fails, inspect.Defer, 451, ""},
		{"repack without a repacker is refused", nil, nil, inspect.Reject, 550, "q1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &keeper{err: c.keep}
			v := newMailD(t, Config{Settings: settings(c.set), Keeper: k}).Scan(context.Background(), message(bad))
			if v.Action != c.action || v.Reply.Code != c.code || v.Quarantine != c.quarantine || v.Reason == "clean" || v.Edits != nil {
				t.Errorf("verdict %+v", v)
			}
			if (c.quarantine != "") != (len(k.kept) == 1) {
				t.Errorf("kept %v", k.kept)
			}
			if c.keep != nil && !errors.Is(v.Err, fails) {
				t.Errorf("err = %v", v.Err)
			}
			// S-180: one line, the id, no name of an engine or a threat.
			if line := fmt.Sprintf("%d %s %s\r\n", v.Reply.Code, v.Reply.Enhanced, v.Reply.Text); v.Reply.Code != 0 &&
				(len(line) > 512 || !strings.Contains(line, "m1") || strings.Contains(strings.ToLower(line), "builtin") || strings.Contains(line, "EICAR")) {
				t.Errorf("reply %q", line)
			}
		})
	}
}

func TestNoKeeper(t *testing.T) {
	d := newMailD(t, Config{Settings: settings(func(s *Settings) { s.ThreatAction = "Discard" })})
	if v := d.Scan(context.Background(), message(eicar)); v.Action != inspect.Defer || v.Err == nil {
		t.Errorf("verdict %+v", v)
	}
	if v := d.Judge(context.Background(), message(eicar)); v.Action != inspect.Discard || v.Quarantine != "" {
		t.Errorf("verdict %+v", v)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("made without a spool")
	}
	for _, s := range []Settings{
		settings(func(s *Settings) { s.ThreatAction = "Explode" }),
		settings(func(s *Settings) { s.MaxCompressionRatio = 1 }),
	} {
		if _, err := New(Config{Settings: s, Spool: testSpool(t)}); err == nil {
			t.Errorf("made with %+v", s)
		}
		if s.Check() == nil {
			t.Error("Check is content")
		}
	}
	if s := DefaultSettings(); s.Check() != nil || s.withDefaults() != s {
		t.Error("the defaults are no defaults")
	}
}
