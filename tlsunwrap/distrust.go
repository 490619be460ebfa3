package tlsunwrap

import (
	"fmt"
	"net/netip"
	"time"
)

const (
	distrustTimes = 3         // refusals that are worth an event
	distrustLife  = time.Hour // in this time
)

// distrust counts how often clients refuse our certificates, by client net and destination.
type distrust struct{ seen *memory }

func newDistrust() *distrust { return &distrust{newMemory(maxDistrust)} }

// distrusted counts a refusal. It changes nothing about the next connection: a client could refuse on purpose, to be let
// through. An administrator is told what to write into the settings.
func (u *Unwrapper) distrusted(r Request, sni string) {
	n := u.distrust.seen.add(clientNet(r.ClientAddr.Addr()).String()+"|"+r.ServerAddr.String(), u.now(), distrustLife)
	if n != distrustTimes {
		return
	}
	e := u.event("bypass-suggested", r)
	e.Reason = EventUnknownCA
	e.Detail = fmt.Sprintf("the client refused our certificate %d times (%s): it does not have our authority in its store, or knows "+
		"the server's own certificate; if it cannot be told otherwise, TlsBypass = %s or TlsBypass = client:%s lets it through "+
		"without inspection", n, nameDetail(sni, nil), r.ServerAddr, r.ClientAddr.Addr())
	if r.ServerAddr.Port() == 25 {
		e.Detail += "; a mail server that checks DANE (TLSA records, RFC 7672) behaves like this: exempt it with TlsBypass = client:" +
			r.ClientAddr.Addr().String() + " and scan in that mail server, by milter"
	}
	u.events.Record(e)
}

// clientNet is the net that counts as one client: with IPv6 a host has a whole /64.
func clientNet(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // the zero Addr
		return netip.Prefix{}
	}
	return p
}
