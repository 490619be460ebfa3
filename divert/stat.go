package divert

import (
	"net/netip"
	"strings"
)

// Stat is what can be counted of a divert.
type Stat struct {
	Diverted     map[string]uint64 `json:"diverted"` // first packets sent to our listeners, by kind, repetitions included
	Accepted     map[string]uint64 `json:"accepted"` // connections accepted, by kind
	Refused      uint64            `json:"refused"`  // packets refused for want of a listener
	BindFailures uint64            `json:"bind_failures"`
	Repaired     uint64            `json:"repaired"` // times that rules were put back
	FailMode     string            `json:"fail_mode"`
	Established  Established       `json:"established"` // connections from before the start
}

// Stat counts. A kind of which more is diverted than accepted, and more all the time, loses connections between nft
// and listener: doctor helps (C1-37).
func (d *Divert) Stat() (Stat, error) {
	d.op.Lock()
	defer d.op.Unlock()
	s := Stat{Diverted: map[string]uint64{}, Accepted: map[string]uint64{}, FailMode: "Closed",
		BindFailures: uint64(d.bindFailures.Load()), Repaired: uint64(d.repaired.Load()), Established: d.before}
	if settings := d.current(); !settings.closed() {
		s.FailMode = "Open"
	}
	counts := map[string]uint64{}
	for k, n := range d.base {
		counts[k] += n
	}
	var err error
	if d.now != nil {
		_, err = d.kernel.rules(func(c string, n uint64) { counts[counterName(c)] += n })
	}
	for i, kind := range kinds {
		s.Diverted[kind] = counts[kind]
		s.Accepted[kind] = uint64(d.accepted[i].Load())
	}
	s.Refused = counts["closed"]
	return s, err
}

// counterName is the first word of a rule's comment: what it counts.
func counterName(comment string) string {
	name, _, _ := strings.Cut(comment, " ")
	return name
}

// standIns are addresses of listeners for a plan that is only shown.
func standIns() map[string][]netip.AddrPort {
	out := map[string][]netip.AddrPort{}
	for i, kind := range kinds {
		port := uint16(2525 + i)
		out[kind] = []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
			netip.AddrPortFrom(netip.IPv6Loopback(), port),
		}
	}
	return out
}
