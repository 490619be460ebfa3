package divert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// String prints the plan as a file for nft(8). What nft has no word for, policy rules and routes, stands in comments
// as commands of ip(8).
func (p *Plan) String() string {
	var b strings.Builder
	if p.Owner {
		b.WriteString("# flags owner: the kernel removes this table when the gateway dies (FailMode = Open)\n")
	}
	for _, v := range p.Families {
		for _, r := range p.Policy {
			fmt.Fprintf(&b, "# ip -%d rule add %v\n", v, r)
		}
		fmt.Fprintf(&b, "# ip -%d route add local default dev lo table %d proto %d\n", v, RouteTable, RouteProtocol)
	}
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", TableName, TableName, TableName)
	for _, s := range p.Sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n\t}\n",
			s.Name, flowType(s.Family), flowsMost, seconds(s.Timeout))
	}
	for _, c := range p.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %d; policy accept;\n", c.Name, c.Type, c.Hook, c.Priority)
		for _, r := range c.Rules {
			b.WriteString("\t\t" + r.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// String prints the rule in the language of nft(8).
func (r Rule) String() string {
	var words []string
	for _, t := range r.Terms {
		words = append(words, t.text())
	}
	if r.Comment != "" {
		words = append(words, "comment "+strconv.Quote(r.Comment))
	}
	return strings.Join(words, " ")
}

// String prints the rule as the arguments of `ip rule add`.
func (r PolicyRule) String() string {
	s := fmt.Sprintf("pref %d", r.Priority)
	if r.Iif != "" {
		s += " iif " + r.Iif
	}
	if r.Mark.Mask != 0 {
		s += fmt.Sprintf(" fwmark 0x%x/0x%x", r.Mark.Value, r.Mark.Mask)
	}
	if r.Goto != 0 {
		return s + fmt.Sprintf(" goto %d protocol %d", r.Goto, RouteProtocol)
	}
	return s + fmt.Sprintf(" lookup %d protocol %d", r.Table, RouteProtocol)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" }

func flowType(v int) string {
	if v == 6 {
		return "ipv6_addr . inet_service . ipv6_addr . inet_service"
	}
	return "ipv4_addr . inet_service . ipv4_addr . inet_service"
}

func flowKey(v int, reverse bool) string {
	ip := "ip"
	if v == 6 {
		ip = "ip6"
	}
	if reverse {
		return ip + " daddr . tcp dport . " + ip + " saddr . tcp sport"
	}
	return ip + " saddr . tcp sport . " + ip + " daddr . tcp dport"
}

func (t family) text() string  { return fmt.Sprintf("meta nfproto ipv%d", t.v) }
func (t iifname) text() string { return "iifname " + strconv.Quote(t.name) }
func (t oifname) text() string { return "oifname " + strconv.Quote(t.name) }
func (isTCP) text() string     { return "meta l4proto tcp" }
func (t isICMP) text() string {
	if t.v == 6 {
		return "meta l4proto ipv6-icmp"
	}
	return "meta l4proto icmp"
}

func portList(list []uint16) string {
	if len(list) == 1 {
		return strconv.Itoa(int(list[0]))
	}
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = strconv.Itoa(int(p))
	}
	return "{ " + strings.Join(words, ", ") + " }"
}

func (t ports) text() string    { return "tcp dport " + portList(t.list) }
func (t fromPort) text() string { return "tcp sport " + portList(t.list) }
func (syn) text() string        { return "tcp flags & (syn|ack) == syn" }
func (notSyn) text() string     { return "tcp flags & (syn|ack) != syn" }

func (t fibType) text() string {
	where, op := "daddr", ""
	if t.source {
		where = "saddr"
	}
	if t.not {
		op = "!= "
	}
	return "fib " + where + " type " + op + t.kind
}

func (t markIs) text() string {
	return fmt.Sprintf("meta mark & 0x%08x == 0x%08x", t.m.Mask, t.m.Value)
}
func (transparent) text() string { return "socket transparent 1" }
func (t socketMark) text() string {
	return fmt.Sprintf("socket mark & 0x%08x == 0x%08x", t.m.Mask, t.m.Value)
}
func (counter) text() string { return "counter" }

func (t toProxy) text() string {
	if t.to.Addr().Is6() {
		return "tproxy ip6 to " + t.to.String()
	}
	return "tproxy ip to " + t.to.String()
}

func (t setMark) text() string {
	s := fmt.Sprintf("meta mark set meta mark & 0x%08x", ^t.m.Mask)
	if t.m.Value != 0 {
		s += fmt.Sprintf(" | 0x%08x", t.m.Value)
	}
	return s
}

func (t flowIn) text() string     { return flowKey(t.v, t.reverse) + " @" + t.set }
func (t flowUpdate) text() string { return "update @" + t.set + " { " + flowKey(t.v, false) + " }" }
func (t flowDelete) text() string { return "delete @" + t.set + " { " + flowKey(t.v, false) + " }" }

func (t queueTo) text() string { return fmt.Sprintf("queue flags bypass to %d", t.number) }
func (reject) text() string    { return "reject with tcp reset" }
func (accept) text() string    { return "accept" }

// chain returns the chain called name, or nil.
func (p *Plan) chain(name string) *Chain {
	if i := slices.IndexFunc(p.Chains, func(c Chain) bool { return c.Name == name }); i >= 0 {
		return &p.Chains[i]
	}
	return nil
}
