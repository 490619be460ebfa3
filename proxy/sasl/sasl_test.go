package sasl

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestExchange(t *testing.T) {
	for _, c := range []struct {
		mechanism, said, user string
		bind                  bool
	}{
		{"PLAIN", "admin\x00alice\x00secret", "alice", false},
		{"PLAIN", "alice\x00secret", "", false},
		{"LOGIN", "alice", "alice", false},
		{"CRAM-MD5", "alice b 0123456789abcdef", "alice b", false},
		{"XOAUTH2", "user=alice@x.example\x01auth=Bearer t\x01\x01", "alice@x.example", false},
		{"OAUTHBEARER", "n,a=alice@x.example,\x01auth=Bearer t\x01\x01", "alice@x.example", false},
		{"SCRAM-SHA-256", "y,,n=al=2Cice,r=abc", "al,ice", true},
		{"SCRAM-SHA-1", "n,,n=alice,r=abc", "alice", false},
		{"NTLM", "NTLMSSP\x00alice", "", false},
	} {
		x := Exchange{Mechanism: c.mechanism}
		x.Client(base64.StdEncoding.EncodeToString([]byte(c.said)))
		x.Client(base64.StdEncoding.EncodeToString([]byte("second\x00line\x00x")))
		if x.User != c.user || x.CouldBind != c.bind {
			t.Errorf("%s %q: user %q, could bind %t", c.mechanism, c.said, x.User, x.CouldBind)
		}
	}
	for _, line := range []string{"*", "=", "no base64!", strings.Repeat("QUJD", 2000)} {
		x := Exchange{Mechanism: "LOGIN"}
		if x.Client(line); x.User != "" {
			t.Errorf("a user %q was read from %.20q", x.User, line)
		}
	}
}
