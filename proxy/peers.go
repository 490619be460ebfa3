package proxy

import (
	"fmt"
	"net/netip"
)

// Peers is a list of addresses and networks, each for one port or for all. The zero value has nobody.
type Peers []peer

type peer struct {
	net  netip.Prefix
	port uint16 // 0: any
}

// ParsePeers reads a list of "192.0.2.1", "192.0.2.1:110", "[2001:db8::1]:110" and "192.0.2.0/24".
func ParsePeers(list []string) (Peers, error) {
	var out Peers
	for _, word := range list {
		if p, err := netip.ParsePrefix(word); err == nil {
			out = append(out, peer{net: p.Masked()})
		} else if a, err := netip.ParseAddr(word); err == nil {
			out = append(out, peer{net: netip.PrefixFrom(a, a.BitLen())})
		} else if ap, err := netip.ParseAddrPort(word); err == nil {
			out = append(out, peer{netip.PrefixFrom(ap.Addr(), ap.Addr().BitLen()), ap.Port()})
		} else {
			return nil, fmt.Errorf("%q is not an address, an address:port or a network; write for example 192.0.2.1, [2001:db8::1]:110 or 192.0.2.0/24", word)
		}
	}
	return out, nil
}

// Has reports whether a is on the list.
func (l Peers) Has(a netip.AddrPort) bool {
	addr := a.Addr().Unmap()
	for _, p := range l {
		if p.net.Contains(addr) && (p.port == 0 || p.port == a.Port()) {
			return true
		}
	}
	return false
}
