package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPeers(t *testing.T) {
	l, err := ParsePeers([]string{"192.0.2.1", "[2001:db8::1]:110", "198.51.100.7/24"})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"192.0.2.1:110": true, "192.0.2.2:110": false, "[2001:db8::1]:110": true, "[2001:db8::1]:995": false,
		"198.51.100.200:995": true, "[::ffff:192.0.2.1]:25": true,
	} {
		if got := l.Has(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %t", addr, got)
		}
	}
	if _, err := ParsePeers([]string{"pop.example"}); err == nil || !strings.Contains(err.Error(), "pop.example") {
		t.Errorf("error %v", err)
	}
}
