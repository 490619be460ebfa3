package divert

import (
	"bufio"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// Established is what was found of connections that are older than our rules. They stay as they are, uninspected,
// until they end.
type Established struct {
	Local  int // of programs and servers of this host
	Routed int // that this host routes, as conntrack knows them
	Known  bool
	Reason string // why Routed is not known
}

// before counts connections to and from the diverted ports that exist, and returns those of local programs as
// elements of the passed sets: their packets must not be turned round.
func (w *wanted) before() (e Established, passed map[string][]nftables.SetElement, err error) {
	in, fwd, out := w.all()
	passed = map[string][]nftables.SetElement{}
	for _, v := range w.families {
		list, err := dump(v, stEstablished|stSynSent|stFinWait1|stFinWait2|stCloseWait|stLastAck|stClosing, nil)
		if err != nil {
			return e, nil, err
		}
		ours := map[string]bool{}
		marks := []Mark{w.marks.client, w.marks.server}
		for i := range marks {
			l, err := dump(v, stLive|stLingering, &marks[i])
			if err != nil {
				return e, nil, err
			}
			for _, s := range l {
				ours[string(s.id)] = true
			}
		}
		for _, s := range list {
			if ours[string(s.id)] {
				continue // of a predecessor
			}
			if hasPort(in, s.local.Port()) && s.state == stEstablished {
				e.Local++
			}
			if hasPort(out, s.remote.Port()) {
				if s.state == stEstablished {
					e.Local++
				}
				name := setName(passedSet, v)
				passed[name] = append(passed[name], nftables.SetElement{Key: flowBytes(s.local, s.remote)})
			}
		}
	}
	e.Routed, e.Known, e.Reason = routedFlows(slices.Concat(in, fwd))
	return e, passed, nil
}

func hasPort(sides []side, port uint16) bool {
	return slices.ContainsFunc(sides, func(s side) bool { return slices.Contains(s.ports, port) })
}

// flowBytes is a key of a flow set: each field fills up words of four octets.
func flowBytes(a, b netip.AddrPort) []byte {
	var key []byte
	for _, p := range []netip.AddrPort{a, b} {
		key = append(key, p.Addr().AsSlice()...)
		key = append(key, byte(p.Port()>>8), byte(p.Port()), 0, 0)
	}
	return key
}

// routedFlows counts what conntrack knows. Conntrack may be absent, or follow nothing here.
func routedFlows(sides []side) (n int, known bool, reason string) {
	if len(sides) == 0 {
		return 0, true, ""
	}
	count, ok := conntrackCount()
	if !ok {
		return 0, false, "conntrack is not there"
	}
	if count == 0 {
		return 0, false, "conntrack follows nothing here"
	}
	f, err := os.Open("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		return 0, false, "conntrack's list cannot be read: " + err.Error()
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if src, dst, port, ok := parseConntrack(lines.Text()); ok && hasPort(sides, port) && !onThisHost(src, dst) {
			n++
		}
	}
	if err := lines.Err(); err != nil {
		return n, false, "conntrack's list cannot be read: " + err.Error()
	}
	return n, true, ""
}

func onThisHost(src, dst netip.Addr) bool {
	for _, a := range []netip.Addr{src, dst} {
		if local, err := isLocal(a); err == nil && local {
			return true
		}
	}
	return false
}

// parseConntrack reads a line of /proc/net/nf_conntrack: the original direction of an established TCP connection.
func parseConntrack(line string) (src, dst netip.Addr, port uint16, ok bool) {
	if !strings.Contains(line, " tcp ") || !strings.Contains(line, " ESTABLISHED ") {
		return
	}
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "src":
			src, _ = netip.ParseAddr(value)
		case "dst":
			dst, _ = netip.ParseAddr(value)
		case "dport":
			n, err := strconv.ParseUint(value, 10, 16)
			return src, dst, uint16(n), err == nil && src.IsValid() && dst.IsValid()
		}
	}
	return
}
