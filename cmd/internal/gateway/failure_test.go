package gateway

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"strings"
	"sync/atomic"
	"testing"

	"mailweir/inspect"
	"mailweir/proxy/proxytest"
)

// TestG13 makes the scanner fail in every way under every policy. What passes uninspected is always said to have.
func TestG13(t *testing.T) {
	if !namespace(t) {
		return
	}
	var answer atomic.Value
	hang := make(chan bool)
	address := fakeClamd(t, func([]byte) string {
		a := answer.Load().(string)
		switch a {
		case "hang":
			<-hang
		}
		return a
	})
	defer close(hang)
	server := (&proxytest.Server{}).Start(t)
	g := start(t, server, "[ClamD]", "ClamdSocket = "+address.String(), "ClamdTimeout = 1s", "ClamdConnectTimeout = 1s")
	set := func(param, value string) {
		t.Helper()
		if err := g.set(param, value); err != nil {
			t.Fatal(err)
		}
	}
	// last waits for the last event about a message to be as wanted: it is recorded a moment after the reply.
	last := func(about string, wanted func(inspect.Event) bool) {
		t.Helper()
		var e inspect.Event
		if !g.eventually(func() bool {
			e = g.lastMessage()
			return wanted(e)
		}) {
			t.Errorf("%s: the event is %+v", about, e)
		}
	}
	const clean = "Subject: x\r\n\r\nbody"
	for _, failure := range []struct{ name, socket, answer, category string }{
		{"killed", "127.0.0.1:1", "OK", inspect.Unavailable},
		{"hangs", address.String(), "hang", inspect.Timeout},
		{"answers garbage", address.String(), "\x00\xff all is well, trust me", inspect.Unavailable},
		{"says nothing", address.String(), "", inspect.Unavailable},
		{"out of memory", address.String(), "die", inspect.Unavailable},
		{"tells an error", address.String(), "Can't allocate memory ERROR", inspect.Unavailable},
	} {
		t.Run(failure.name, func(t *testing.T) {
			answer.Store(failure.answer)
			for _, policy := range []struct{ word, reply, action string }{
				{"TempFail", "4", "Defer"}, {"Reject", "5", "Reject"}, {"Pass", "2", "Pass"},
			} {
				// A new engine each time: what the last one learnt of its daemon is forgotten.
				set("ClamD.ClamdSocket", failure.socket)
				set("LinuxFirewall.EngineFailure", policy.word)
				c := greeted(t, server)
				had := len(server.Messages())
				reply := send(t, c, clean)
				c.Close()
				if !strings.HasPrefix(reply, policy.reply) {
					t.Errorf("%s: %q", policy.word, reply)
				}
				if passed := len(server.Messages()) > had; passed != (policy.word == "Pass") {
					t.Errorf("%s: the server has it: %v", policy.word, passed)
				}
				last(policy.word, func(e inspect.Event) bool {
					return e.Action == policy.action && found(e, failure.category) && (e.Event == "unscanned") == (policy.word == "Pass")
				})
			}
		})
	}
	t.Run("archive bomb", func(t *testing.T) {
		answer.Store("OK")
		bomb := bombMail(t)
		for _, policy := range []struct{ word, reply string }{{"Yes", "5"}, {"No", "2"}} {
			set("LinuxFirewall.BlockUnchecked", policy.word)
			c := greeted(t, server)
			reply := send(t, c, bomb)
			c.Close()
			if !strings.HasPrefix(reply, policy.reply) {
				t.Errorf("BlockUnchecked %s: %q", policy.word, reply)
			}
			last("BlockUnchecked "+policy.word, func(e inspect.Event) bool {
				return found(e, inspect.Limits) && (e.Event == "unscanned") == (policy.word == "No")
			})
		}
	})
	t.Run("and a scanner that is well again", func(t *testing.T) {
		answer.Store("OK")
		set("LinuxFirewall.EngineFailure", "TempFail")
		if reply := send(t, greeted(t, server), clean); !strings.HasPrefix(reply, "2") {
			t.Errorf("%q", reply)
		}
	})
}

func found(e inspect.Event, category string) bool {
	for _, f := range e.Findings {
		if f.Kind == inspect.Unchecked && f.Category == category {
			return true
		}
	}
	return false
}

// bombMail is a message with an archive that grows ten thousandfold.
func bombMail(t *testing.T) string {
	t.Helper()
	pack := func(name string, content []byte) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var b strings.Builder
	b.WriteString("Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	encoded := base64.StdEncoding.EncodeToString(pack("a", make([]byte, 8<<20)))
	for ; len(encoded) > 76; encoded = encoded[76:] {
		b.WriteString(encoded[:76] + "\r\n")
	}
	return b.String() + encoded
}
