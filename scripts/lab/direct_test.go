package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// newLab makes a lab for a test. Without root the test is skipped, unless the run says that it must not be.
func newLab(t *testing.T) (*Lab, context.Context) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("MAILWEIR_LAB") != "required" {
		t.Skip("the lab needs root: sudo scripts/test")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute+endurance(t))
	t.Cleanup(cancel)
	l, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, ctx
}

func newPKI(t *testing.T, l *Lab) *PKI {
	t.Helper()
	p, err := NewPKI(l.Path("pki"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const simple = "From: a@client.example\r\nTo: b@server.example\r\nSubject: simple\r\nDate: Sun, 22 Nov 2026 03:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n\r\nOne line.\r\n.dot\r\n..\r\nlast\r\n"

// TestDirect proves the lab itself: what these programs send arrives unchanged when nothing stands in between.
func TestDirect(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	p, err := l.StartPostfix(ctx, PostfixConfig{Name: "server", NS: l.Server, PKI: pki})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range Senders() {
		for _, ip := range []string{ServerIP4, ServerIP6} {
			for _, sec := range []Security{Plain, StartTLS, Implicit} {
				t.Run(fmt.Sprintf("%s %s %s", s.Name, family(ip), sec), func(t *testing.T) {
					p.Sink.Clear()
					e := Errand{NS: l.Client, IP: ip, Security: sec, CAFile: pki.CAFile, From: "a@client.example", To: "b@server.example", Content: []byte(simple), Dir: l.Dir}
					if out, err := s.Send(ctx, e); err != nil {
						t.Fatalf("%v\n%s\n%s", err, out, p.Log())
					}
					wait, cancel := context.WithTimeout(ctx, 10*time.Second)
					defer cancel()
					if err := p.Sink.Wait(wait, 1); err != nil {
						t.Fatalf("%v\n%s", err, p.Log())
					}
					if err := Body(p.Sink.Stored()[0].Data, e.Content); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	if !strings.Contains(p.Log(), "["+ClientIP4+"]") {
		t.Error("Postfix did not log the client's address")
	}
}

func family(ip string) string {
	if netip.MustParseAddr(ip).Is4() {
		return "IPv4"
	}
	return "IPv6"
}
