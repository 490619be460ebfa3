package divert

import (
	"net/netip"
	"slices"
	"time"
)

// TableName is the name of the one nftables table (family inet) that is ours.
const TableName = "mailweir"

// Hook priorities. The prerouting chain comes after dstnat (-100): the destination that a port forward has chosen is
// the one that counts, and answers to masqueraded connections already carry their true destination there.
const (
	prerouteHook = -90
	decideHook   = -151
	outputHook   = -150
)

// How long the kernel remembers flows in the two kinds of flow sets. Each packet renews its flow; the sockets of the
// gateway send keepalives far more often than localTime.
const (
	localTime  = 5 * time.Minute
	passedTime = 24 * time.Hour
	flowsMost  = 1 << 20
)

// Names of the flow sets, less the family.
const (
	localSet  = "local"  // connections of ours, under a client's address, to a server on this host
	passedSet = "passed" // connections of local programs that are not diverted
)

// Plan is what the kernel shall know: nft rules, policy rules and routes. It is a value; String prints it in the
// language of nft(8), and package divert writes the very same value by netlink.
type Plan struct {
	Owner    bool // the table dies with the process that made it
	Families []int
	Sets     []FlowSet
	Chains   []Chain
	Policy   []PolicyRule
}

// FlowSet is a set of connections: source address and port, destination address and port.
type FlowSet struct {
	Name    string
	Family  int // 4 or 6
	Timeout time.Duration
}

// Chain is a base chain.
type Chain struct {
	Name     string
	Type     string // filter, route
	Hook     string // prerouting, output
	Priority int
	Rules    []Rule
}

// Rule is a list of terms, carried out from left to right, and a comment by which it is known.
type Rule struct {
	Terms   []term
	Comment string
}

// PolicyRule is an entry of `ip rule`. It goes to a table, or over to the rule at Goto.
type PolicyRule struct {
	Priority int
	Iif      string
	Mark     Mark
	Table    int
	Goto     int
}

// term is a part of a rule: text.go prints it, kernel.go makes expressions of it.
type term interface {
	text() string
	exprs(*rendering)
}

// The terms.
type (
	family   struct{ v int } // 4 or 6
	iifname  struct{ name string }
	oifname  struct{ name string }
	isTCP    struct{}
	isICMP   struct{ v int }         // an error message about one of our connections, among others
	ports    struct{ list []uint16 } // destination
	fromPort struct{ list []uint16 }
	syn      struct{} // opens a connection: SYN without ACK
	notSyn   struct{}
	fibType  struct {
		source bool
		kind   string // unicast, local
		not    bool
	}
	markIs      struct{ m Mark }
	transparent struct{}         // a transparent socket of this host owns the packet
	socketMark  struct{ m Mark } // … and carries this mark; a zero mark: it is a full socket
	counter     struct{}
	toProxy     struct{ to netip.AddrPort }
	setMark     struct{ m Mark }
	flowIn      struct {
		set     string
		v       int
		reverse bool
	}
	flowUpdate struct {
		set string
		v   int
	}
	flowDelete struct {
		set string
		v   int
	}
	queueTo struct {
		number uint16
		compat bool // by the xtables target: this kernel has no queue expression
	}
	reject struct{}
	accept struct{}
)

// wanted is everything that a plan follows from.
type wanted struct {
	settings  Settings
	marks     marks
	listeners map[string][]netip.AddrPort // by kind, IPv4 and IPv6; from live sockets only (field.md C1-26)
	families  []int
	door      func(uint16) bool
	draining  bool   // no new connection is diverted; those that live go on
	former    []side // what was diverted before a change of settings: connections may live
	asks      bool   // first packets of local programs are decided on
	compat    bool   // queueTo needs the xtables target
}

// side is one divert resolved to one interface and one family.
type side struct {
	kind  string
	iface string
	v     int
	ports []uint16
	to    netip.AddrPort
	ended bool // no new connections: those that live go on
}

// sides lists what is diverted, interface by interface, IPv4 before IPv6.
func (w *wanted) sides(kind string, list []Spec) []side {
	var out []side
	for _, d := range list {
		var open []uint16
		for _, p := range d.Ports {
			if w.door == nil || w.door(p) {
				open = append(open, p)
			}
		}
		if len(open) == 0 {
			continue
		}
		ifaces := d.Interfaces
		if len(ifaces) == 0 {
			ifaces = []string{""}
		}
		for _, i := range ifaces {
			for _, to := range w.listeners[kind] {
				v := 4
				if to.Addr().Is6() {
					v = 6
				}
				out = append(out, side{kind, i, v, open, to, w.draining})
			}
		}
	}
	for _, s := range w.former {
		if s.kind == kind {
			out = append(out, s)
		}
	}
	return out
}

func (w *wanted) all() (in, fwd, out []side) {
	return w.sides(Input, w.settings.InputDivert), w.sides(Forward, w.settings.ForwardDivert), w.sides(Output, w.settings.OutputDivert)
}

// replacedBy returns what of w has no place in next any more, as ended sides.
func (w *wanted) replacedBy(next *wanted) []side {
	in, fwd, out := w.all()
	nin, nfwd, nout := next.all()
	now := slices.Concat(nin, nfwd, nout)
	var former []side
	for _, s := range slices.Concat(in, fwd, out) {
		var left []uint16
		for _, p := range s.ports {
			if !slices.ContainsFunc(now, func(n side) bool {
				return n.kind == s.kind && n.iface == s.iface && n.v == s.v && slices.Contains(n.ports, p)
			}) {
				left = append(left, p)
			}
		}
		if len(left) > 0 {
			former = append(former, side{s.kind, s.iface, s.v, left, s.to, true})
		}
	}
	return former
}

// allPorts lists every diverted port, and those that were until a change of settings: closing connections are known
// by them.
func (w *wanted) allPorts() []uint16 {
	var list []uint16
	in, fwd, out := w.all()
	for _, s := range slices.Concat(in, fwd, out) {
		list = append(list, s.ports...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// plan makes the plan.
func (w *wanted) plan() *Plan {
	in, fwd, out := w.all()
	p := &Plan{Owner: !w.settings.closed(), Families: w.families, Policy: policy(w.marks)}
	hasIn, hasOut := len(in) > 0, len(out) > 0
	for _, v := range w.families {
		if hasIn {
			p.Sets = append(p.Sets, FlowSet{setName(localSet, v), v, localTime})
		}
		if hasOut {
			p.Sets = append(p.Sets, FlowSet{setName(passedSet, v), v, passedTime})
		}
	}
	pre := Chain{Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: prerouteHook}
	pre.Rules = slices.Concat(w.ownRules(), w.secondPass(out), w.openings(in), w.openings(fwd), w.established())
	output := Chain{Name: "output", Type: "route", Hook: "output", Priority: outputHook}
	if len(out) > 0 && w.asks {
		p.Chains = append(p.Chains, w.decideChain(out))
		output.Rules = w.verdicts()
	}
	if hasIn || hasOut {
		output.Rules = slices.Concat(output.Rules, w.ownLeg(hasIn), w.turnRound(hasIn), w.outgoing(out))
	}
	p.Chains = append(p.Chains, pre)
	if len(output.Rules) > 0 {
		p.Chains = append(p.Chains, output)
	}
	return p
}

func setName(set string, v int) string {
	if v == 6 {
		return set + "6"
	}
	return set + "4"
}

// ownRules lets the gateway's own connections to servers pass where they come in again through lo (G-16).
func (w *wanted) ownRules() []Rule {
	return []Rule{{[]term{iifname{"lo"}, markIs{w.marks.server}, accept{}}, "own"}}
}

// openings are the rules that divert the first packet of a connection, and refuse it where nobody listens: tproxy
// breaks off its rule then, and the packet would go on uninspected (field.md C2).
func (w *wanted) openings(sides []side) []Rule {
	var rules []Rule
	for _, s := range sides {
		if s.ended {
			continue
		}
		kind := "unicast" // neither our own address nor broadcast, multicast, anycast (C1-3)
		if s.kind == Input {
			kind = "local"
		}
		// One match for both rules (C1-4); the family comes before tproxy, which an inet table needs (N1).
		match := []term{family{s.v}, iifname{s.iface}, ports{s.ports}, syn{}, fibType{kind: kind}}
		rules = append(rules, Rule{append(slices.Clone(match), counter{}, toProxy{s.to}, setMark{w.marks.client}, accept{}), s.kind + " " + s.iface})
		if w.settings.closed() {
			rules = append(rules, Rule{append(slices.Clone(match), counter{}, reject{}), "closed"})
		}
	}
	return rules
}

// secondPass diverts the packets of local programs that the output chain has turned round. What no socket wants is
// refused: it cannot go anywhere any more.
func (w *wanted) secondPass(out []side) []Rule {
	var rules []Rule
	for _, v := range w.families {
		var to netip.AddrPort
		var list []uint16
		for _, s := range out {
			if s.v != v {
				continue
			}
			if list = append(list, s.ports...); !s.ended {
				to = s.to
			}
		}
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		match := []term{family{v}, iifname{"lo"}, markIs{w.marks.local}, ports{slices.Compact(list)}}
		if to.IsValid() {
			rules = append(rules,
				Rule{append(slices.Clone(match), syn{}, counter{}, toProxy{to}, accept{}), Output},
				Rule{append(slices.Clone(match), toProxy{to}, accept{}), ""})
		}
		rules = append(rules,
			Rule{append(slices.Clone(match), transparent{}, accept{}), ""},
			Rule{append(slices.Clone(match), counter{}, reject{}), "closed"})
	}
	return rules
}

// established catches the later packets of our connections: those that servers send to a client's address above all.
// Transparent sockets of other programs are left alone.
func (w *wanted) established() []Rule {
	ours := func(m Mark) Rule {
		return Rule{[]term{isTCP{}, transparent{}, socketMark{m}, setMark{m}, accept{}}, ""}
	}
	rules := []Rule{ours(w.marks.client), ours(w.marks.server)}
	// A router that cannot reach the server says so to the client's address, which is what we connect from: without
	// these the gateway would never hear of it, and the client would wait where it ought to see a reset (G-17).
	for _, v := range w.families {
		rules = append(rules, Rule{[]term{family{v}, isICMP{v}, transparent{}, socketMark{w.marks.server}, setMark{w.marks.server}, accept{}}, "errors"})
	}
	if list := w.allPorts(); len(list) > 0 {
		// A connection in TIME_WAIT or SYN_RECV has no mark that nft could read: socketMark{} breaks off for it.
		rules = append(rules,
			Rule{[]term{isTCP{}, transparent{}, socketMark{}, accept{}}, "not ours"},
			Rule{[]term{ports{list}, notSyn{}, transparent{}, setMark{w.marks.client}, accept{}}, ""},
			Rule{[]term{fromPort{list}, notSyn{}, transparent{}, setMark{w.marks.server}, accept{}}, ""})
	}
	return rules
}

// decideChain asks the gateway about the first packet. Without an answer (bypass) the packet is diverted.
func (w *wanted) decideChain(out []side) Chain {
	c := Chain{Name: "decide", Type: "filter", Hook: "output", Priority: decideHook}
	free := Mark{0, w.marks.client.Mask | w.marks.server.Mask | w.marks.local.Mask}
	q := queueTo{w.settings.OutputDivertNfqueueNumber.number(), w.compat}
	for _, s := range out {
		if s.ended {
			continue
		}
		c.Rules = append(c.Rules, Rule{append(outMatch(s), syn{}, markIs{free}, q), ""})
	}
	return c
}

// outMatch is what a packet of a local program must be to be diverted.
func outMatch(s side) []term {
	match := []term{family{s.v}}
	if s.iface != "" {
		match = append(match, oifname{s.iface})
	}
	return append(match, ports{s.ports}, fibType{kind: "unicast"})
}

// passMark and rejectMark are how the answer of decide is written on the packet for the output chain. No other packet
// carries two of our marks there.
func (m marks) passMark() Mark {
	return Mark{m.client.Value | m.server.Value, m.client.Mask | m.server.Mask}
}

func (m marks) rejectMark() Mark {
	return Mark{m.client.Value | m.local.Value, m.client.Mask | m.local.Mask}
}

// verdicts carries out what decide has answered.
func (w *wanted) verdicts() []Rule {
	pass, no := w.marks.passMark(), w.marks.rejectMark()
	var rules []Rule
	for _, v := range w.families {
		rules = append(rules, Rule{[]term{family{v}, markIs{pass}, flowUpdate{setName(passedSet, v), v},
			setMark{Mark{0, pass.Mask}}, accept{}}, "passed"})
	}
	return append(rules, Rule{[]term{isTCP{}, markIs{no}, reject{}}, "rejected"})
}

// ownLeg ends the chain for the gateway's own packets. Those that go under a client's address to a server on this
// very host are written down: the server's answers must be turned round.
func (w *wanted) ownLeg(input bool) []Rule {
	var rules []Rule
	if input {
		for _, v := range w.families {
			rules = append(rules, Rule{[]term{family{v}, isTCP{}, markIs{w.marks.server}, fibType{kind: "local"},
				fibType{source: true, kind: "local", not: true}, flowUpdate{setName(localSet, v), v}, accept{}}, "server here"})
		}
	}
	return append(rules, Rule{[]term{markIs{w.marks.server}, accept{}}, "own"}, Rule{[]term{markIs{w.marks.client}, accept{}}, "own"})
}

// turnRound sends the answers of a server on this host back to the gateway instead of out to the client.
func (w *wanted) turnRound(input bool) []Rule {
	if !input {
		return nil
	}
	var rules []Rule
	for _, v := range w.families {
		rules = append(rules, Rule{[]term{family{v}, isTCP{}, flowIn{setName(localSet, v), v, true}, setMark{w.marks.local}, accept{}}, "answers"})
	}
	return rules
}

// outgoing turns round the packets of local programs, but for connections that are known to pass.
func (w *wanted) outgoing(out []side) []Rule {
	var rules []Rule
	for _, s := range out {
		match, passed := outMatch(s), setName(passedSet, s.v)
		first := append(slices.Clone(match), syn{}, flowDelete{passed, s.v})
		if s.ended {
			first = append(slices.Clone(match), syn{}, flowUpdate{passed, s.v}, accept{})
		}
		rules = append(rules,
			Rule{first, ""},
			Rule{append(slices.Clone(match), flowIn{passed, s.v, false}, flowUpdate{passed, s.v}, accept{}), "passed"},
			Rule{append(slices.Clone(match), setMark{w.marks.local}, accept{}), "output " + s.iface})
	}
	return rules
}
