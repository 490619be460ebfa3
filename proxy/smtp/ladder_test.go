package smtp

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"mailweir/inspect"
	"mailweir/inspect/engine/builtin"
	"mailweir/inspect/maild"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/quarantine"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
)

// infected makes a mail whose attachment, of size octets that do not compress, ends in the EICAR test file.
func infected(size int, neighbour string) string {
	eicar := strings.Join([]string{`X5O!P%@AP[4\PZX54(P^)7CC)7}$`, "EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!", "$H+H*"}, "")
	b := make([]byte, size)
	rand.Read(b)
	var lines strings.Builder
	e := base64.StdEncoding.EncodeToString(append(b, eicar...))
	for ; len(e) > 76; e = e[76:] {
		lines.WriteString(e[:76] + "\r\n")
	}
	return "From: a@x.example\r\nSubject: invoice\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: text/plain\r\n\r\n" + neighbour + "\r\n--b\r\nContent-Type: application/octet-stream; name=a.exe\r\n" +
		"Content-Transfer-Encoding: base64\r\n\r\n" + lines.String() + e + "\r\n--b--\r\n"
}

// withCore gives a harness the scanning core as the gateway has it.
func withCore(t *testing.T) (func(*Config), *quarantine.Store) {
	t.Helper()
	store, err := quarantine.Open(context.Background(), quarantine.Config{Dir: filepath.Join(t.TempDir(), "q")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	engine, err := builtin.Open(builtin.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return func(cfg *Config) {
		d, err := maild.New(maild.Config{Engines: []inspect.Engine{engine}, Keeper: store, Spool: cfg.Spool,
			Repacker: repack.New(repack.Config{Spool: cfg.Spool, Host: "gw.example"})})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Scanner = d
	}, store
}

// declared has MAIL with SIZE and RCPT accepted.
func (h *harness) declared(size int) {
	h.t.Helper()
	for _, c := range []string{fmt.Sprintf("MAIL FROM:<a@x.example> SIZE=%d", size), "RCPT TO:<b@y.example>"} {
		h.c.say(c)
		h.s.wantLine(c)
		h.s.say("250 ok")
		h.c.want("250 ok")
	}
	h.c.say("DATA")
	h.c.want("354 ")
}

// form tells what the server was given: the notice, and the archive if there is one.
func form(t *testing.T, wire string) (notice string, archive []byte) {
	t.Helper()
	body := strings.TrimPrefix(strings.ReplaceAll(wire, "\r\n..", "\r\n."), ".")
	tree := mimetree.Parse(strings.NewReader(body), int64(len(body)), mimetree.Limits{})
	for p := range tree.All() {
		b, err := io.ReadAll(p.Decoded(strings.NewReader(body)))
		switch {
		case err != nil:
			t.Fatal(err)
		case p.Type == "application/zip":
			archive = b
		case p.Kind == mimetree.Leaf && bytes.Contains(b, []byte("quarantine as")):
			notice = string(b)
		}
	}
	return notice, archive
}

// TestSizeLadder: a repacked message that the server would not take is not sent in that form.
func TestSizeLadder(t *testing.T) {
	core, store := withCore(t)
	kept := func(t *testing.T, original string) {
		t.Helper()
		items, err := store.List(context.Background(), quarantine.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range items {
			var b bytes.Buffer
			if err := store.Export(context.Background(), item.ID, &b); err == nil && b.String() == original {
				return
			}
		}
		t.Errorf("the original is not among %d items of the quarantine", len(items))
	}
	t.Run("S-203 the archive would be too much: it is left out, the notice goes", func(t *testing.T) {
		h := newHarness(t, core)
		const limit = 1_000_000
		msg := infected(limit*57/78-500, "Hello.")
		if len(msg) > limit || len(msg) < limit*98/100 {
			t.Fatalf("the message has %d octets", len(msg))
		}
		h.greet(fmt.Sprintf("SIZE %d", limit))
		h.declared(len(msg))
		go h.c.Write([]byte(msg + ".\r\n"))
		wire := h.take("250 ok")
		h.c.want("250 ok")
		notice, archive := form(t, wire)
		if len(wire) > limit || archive != nil || notice == "" || !strings.Contains(wire, "Hello.") {
			t.Errorf("the server gets %d octets, archive of %d, notice %q", len(wire), len(archive), notice)
		}
		if strings.Contains(notice, "quarantine.zip") {
			t.Errorf("the notice speaks of an archive:\n%s", notice)
		}
		kept(t, msg)
		h.end()
	})
	t.Run("S-203 there is room: the archive goes along", func(t *testing.T) {
		h := newHarness(t, core)
		h.greet("SIZE 1000000")
		msg := infected(100_000, "Hello.")
		h.declared(len(msg))
		go h.c.Write([]byte(msg + ".\r\n"))
		wire := h.take("250 ok")
		h.c.want("250 ok")
		if notice, archive := form(t, wire); archive == nil || !strings.Contains(notice, "quarantine.zip") {
			t.Errorf("no archive in %d octets", len(wire))
		} else if z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive))); err != nil || len(z.File) != 1 {
			t.Errorf("archive: %v", err)
		}
		h.end()
	})
	t.Run("S-203 what is left is too much as well: a notice in place of the message", func(t *testing.T) {
		h := newHarness(t, core)
		h.greet("SIZE 60000")
		msg := infected(1000, strings.Repeat("Many words, all harmless.\r\n", 2150))
		h.declared(len(msg))
		go h.c.Write([]byte(msg + ".\r\n"))
		wire := h.take("250 ok")
		h.c.want("250 ok")
		if notice, archive := form(t, wire); len(wire) > 60_000 || notice == "" || archive != nil {
			t.Errorf("the server gets %d octets:\n%s", len(wire), notice)
		}
		kept(t, msg)
		h.end()
	})
	t.Run("S-203 not even a notice fits: 550 and nothing is sent", func(t *testing.T) {
		h := newHarness(t, core)
		h.greet("SIZE 300")
		msg := infected(10, "Hello.")
		h.declared(len(msg))
		h.c.send(msg + ".\r\n")
		h.c.want("550 ")
		h.s.wantLine("RSET")
		h.s.say("250 ok")
		kept(t, msg)
		h.end()
	})
	t.Run("S-202 a server that insists on what was declared: its 552 is relayed, and from then on notices keep to it", func(t *testing.T) {
		h := newHarness(t, core)
		h.greet("SIZE 1000000")
		msg := infected(50_000, "Hello.")
		h.declared(len(msg))
		go h.c.Write([]byte(msg + ".\r\n"))
		if wire := h.take("552 5.3.4 more than declared"); len(wire) <= len(msg) {
			t.Fatalf("%d octets are not more than %d", len(wire), len(msg))
		}
		h.c.want("552 5.3.4 more than declared")
		kept(t, msg)
		again := infected(50_001, "Hello.")
		h.declared(len(again))
		go h.c.Write([]byte(again + ".\r\n"))
		wire := h.take("250 ok")
		h.c.want("250 ok")
		if notice, archive := form(t, wire); len(wire) > len(again) || notice == "" || archive != nil {
			t.Errorf("the server gets %d octets of %d declared, archive of %d", len(wire), len(again), len(archive))
		}
		kept(t, again)
		h.end()
	})
}

// TestM105LargeAttachment is the ladder with an attachment of 100 MB, or of less where the race detector makes
// everything ten times as slow.
func TestM105LargeAttachment(t *testing.T) {
	octets := 100 << 20
	if testing.Short() || raceEnabled {
		octets = 10 << 20
	}
	core, store := withCore(t)
	h := newHarness(t, func(cfg *Config) {
		cfg.Spool = testSpool(t, spool.Settings{})
		core(cfg)
	})
	msg := infected(octets, "Hello.")
	limit := len(msg) + 1000 // as large as it is the server takes it; not with a notice and the archive's own
	h.greet(fmt.Sprintf("SIZE %d", limit))
	h.declared(len(msg))
	go h.c.Write([]byte(msg + ".\r\n"))
	wire := h.take("250 ok")
	h.c.want("250 ok")
	notice, archive := form(t, wire)
	if len(wire) > 100_000 || notice == "" || archive != nil {
		t.Errorf("the server gets %d octets", len(wire))
	}
	items, err := store.List(context.Background(), quarantine.Filter{})
	if err != nil || len(items) != 1 {
		t.Fatalf("%d items in the quarantine, %v", len(items), err)
	}
	h.end()
}
