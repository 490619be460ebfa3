package tlsunwrap

import (
	"crypto/tls"
	"testing"
)

func TestT001(t *testing.T) {
	b := newBench(t, Settings{})
	var seen []string
	leaf := b.root.Leaf(t, []string{mx, "*.other.example"})
	out := b.run(flow{
		client: b.talk(func(c *tls.Config) {
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				seen = cs.PeerCertificates[0].DNSNames
				return nil
			}
		}),
		server: echo(serverConfig(leaf)),
	})
	if out.err != nil || out.client != nil || out.server != nil {
		t.Fatal(out.err, out.client, out.server)
	}
	if len(seen) != 2 || seen[0] != mx {
		t.Errorf("names %v", seen)
	}
	if i := out.session.Info; !i.Verified || i.SNI != mx || i.ClientVersion != "TLS 1.3" || i.ServerVersion != "TLS 1.3" {
		t.Errorf("%+v", i)
	}
}
