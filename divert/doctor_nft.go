package divert

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

func countChains() (int, error) {
	conn, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("open nftables: %w", err)
	}
	names, err := chainNames(conn)
	if err != nil {
		return 0, fmt.Errorf("list nft chains: %w", err)
	}
	return len(names), nil
}

// foreign reads the rules of other programs, by netlink and never as text (C1-29). We only look: no table but our own
// is ever touched (C1-11).
func (d *doctor) foreign() {
	conn, err := nftables.New()
	if err != nil {
		d.add("firewall", Warn, err.Error(), "")
		return
	}
	chains, err := conn.ListChains()
	if err != nil {
		d.add("firewall", Warn, "nft chains cannot be listed: "+err.Error(), "")
		return
	}
	d.managers(chains)
	before := len(d.list)
	for _, c := range chains {
		if c.Table.Name == TableName && c.Table.Family == nftables.TableFamilyINet {
			continue
		}
		d.policy(c)
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			d.add("nft "+c.Table.Name+" "+c.Name, Warn, "cannot be read: "+err.Error(), "")
			continue
		}
		for _, r := range rules {
			d.rule(c, r)
		}
	}
	d.flowtables(conn)
	if len(d.list) == before {
		d.add("firewall", OK, "no rule of others is in the way", "")
	}
}

// managers recognises firewalls by their chains and tables.
func (d *doctor) managers(chains []*nftables.Chain) {
	var ufw, docker, firewalld bool
	for _, c := range chains {
		ufw = ufw || c.Name == "ufw-not-local"
		docker = docker || c.Name == "DOCKER-USER" || c.Name == "DOCKER"
		firewalld = firewalld || c.Table.Name == "firewalld"
	}
	client, server := d.marks.client, d.marks.server
	mark := func(m Mark) string { return fmt.Sprintf("0x%x/0x%x", m.Value, m.Mask) }
	if ufw { // C1-8
		d.add("ufw", Warn, "chain ufw-not-local drops packets that are not for an address of this host: diverted ones",
			fmt.Sprintf("add to /etc/ufw/before.rules and before6.rules, ahead of ufw-not-local: -A ufw-before-input -m mark --mark %s -j ACCEPT and -A ufw-before-input -m mark --mark %s -j ACCEPT", mark(client), mark(server)))
	}
	if firewalld { // C1-10
		d.add("firewalld", Warn, "zones may reject diverted packets in input",
			fmt.Sprintf("firewall-cmd --permanent --direct --add-rule ipv4 filter INPUT 0 -m mark --mark %s -j ACCEPT, the same for %s and for ipv6; then firewall-cmd --reload", mark(client), mark(server)))
	}
	if docker { // C1-11
		d.add("docker", OK, "its chains are there; we leave them alone. It sets the policy of forward to drop, which concerns connections that are not diverted", "")
	}
	if b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && strings.TrimSpace(string(b)) != "" {
		d.add("iptables", Warn, "rules of iptables-legacy are there ("+strings.Join(strings.Fields(string(b)), ", ")+"), which are not looked into", "iptables-legacy-save shows them")
	}
}

// policy warns of input chains that drop what they do not know: an accept in our chain does not help against a drop in
// a later one (C1-9).
func (d *doctor) policy(c *nftables.Chain) {
	if c.Hooknum == nil || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop || *c.Hooknum != *nftables.ChainHookInput {
		return
	}
	d.add("nft "+c.Table.Name+" "+c.Name, Warn, "input drops what no rule accepts; diverted connections pass input too, with the server's address as destination",
		fmt.Sprintf("let it accept the diverted ports, or: meta mark & 0x%x == 0x%x accept; meta mark & 0x%x == 0x%x accept",
			d.marks.client.Mask, d.marks.client.Value, d.marks.server.Mask, d.marks.server.Value))
}

// rule looks for marks that overlap ours and for reverse path checks.
func (d *doctor) rule(c *nftables.Chain, r *nftables.Rule) {
	ours := d.marks.local.Mask | d.marks.client.Mask | d.marks.server.Mask
	where := "nft " + c.Table.Name + " " + c.Name
	used := uint32(0)
	for i, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if e.Key == expr.MetaKeyMARK {
				used |= markBits(r.Exprs, i, e.SourceRegister)
			}
		case *expr.Target:
			used |= targetBits(e)
		case *expr.Fib:
			if e.FlagSADDR && (e.ResultOIF || e.ResultOIFNAME) {
				d.fib(where, c, e)
			}
		}
	}
	if shared := used & ours; shared != 0 {
		d.add("mark collision", Warn, fmt.Sprintf("%s uses mark bits 0x%x, of which 0x%x are ours%s", where, used, shared, owner(used)),
			"set LocalDeliveryMark, ClientPacketsMark and ServerPacketsMark to bits that nobody uses")
	}
}

// markBits tells which bits of the mark a rule looks at, or changes: those of the mask that stands next to it; all if
// none does.
func markBits(list []expr.Any, i int, set bool) uint32 {
	bits := func(at int) (mask, xor uint32, ok bool) {
		if at < 0 || at >= len(list) {
			return 0, 0, false
		}
		b, ok := list[at].(*expr.Bitwise)
		if !ok || len(b.Mask) != 4 || len(b.Xor) != 4 {
			return 0, 0, false
		}
		return binary.NativeEndian.Uint32(b.Mask), binary.NativeEndian.Uint32(b.Xor), true
	}
	if set {
		if mask, xor, ok := bits(i - 1); ok {
			return ^mask | xor // what is kept is not touched
		}
		return 0xffffffff
	}
	mask, _, ok := bits(i + 1)
	if !ok {
		return 0xffffffff
	}
	if i+2 < len(list) {
		if m, ok := list[i+2].(*expr.Meta); ok && m.Key == expr.MetaKeyMARK && m.SourceRegister {
			return 0 // only read to be written back
		}
	}
	return mask
}

// targetBits reads the MARK target of iptables: mark and mask, since revision 2.
func targetBits(t *expr.Target) uint32 {
	info, ok := t.Info.(*xt.Unknown)
	if t.Name != "MARK" || !ok || len(*info) < 8 {
		return 0
	}
	return binary.NativeEndian.Uint32((*info)[4:])
}

// fib judges a reverse path check in nft, as NixOS and Fedora have (C1-7).
func (d *doctor) fib(where string, c *nftables.Chain, e *expr.Fib) {
	if c.Priority != nil && int32(*c.Priority) <= prerouteHook {
		d.add(where, OK, "checks source addresses before we mark packets", "")
		return
	}
	if e.FlagMARK {
		d.add(where, Bad, "checks source addresses by fib saddr . mark after we have marked packets: they are dropped",
			fmt.Sprintf("give the chain a priority below %d, or let it return packets with mark & 0x%x != 0", prerouteHook, d.marks.client.Mask|d.marks.server.Mask))
		return
	}
	d.add(where, Warn, "checks source addresses: with asymmetric routes packets vanish", "")
}

// flowtables carry connections past every hook; diverted ones are never in them, exempted ones are (C1-30).
func (d *doctor) flowtables(conn *nftables.Conn) {
	tables, err := conn.ListTables()
	if err != nil {
		return
	}
	for _, t := range tables {
		list, err := conn.ListFlowtables(t)
		if err != nil {
			continue
		}
		d.flowtable(t, list)
	}
}

func (d *doctor) flowtable(t *nftables.Table, list []*nftables.Flowtable) {
	for _, f := range list {
		d.add("flowtable "+t.Name+" "+f.Name, Warn, "carries established connections past the hooks: those from before the divert's start are not seen any more",
			"leave the mail ports out of the rule that adds connections to it")
	}
}
