package divert

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// By these numbers our policy rules and routes are recognised, whoever made them: no configuration is needed to sweep
// them.
const (
	RouteTable    = 2525
	RouteProtocol = 125
	firstPriority = 25
	lastPriority  = firstPriority + 3
)

// policy is how a mark leads to local delivery.
//
// Packets that come in by an interface carry the client or the server mark and are delivered here. The first rule
// leads lookups for packets of this host past that: and the kernel's check of a source address, which asks with
// `iif lo` too and, under src_valid_mark=1, with the packet's mark. Were it to find the local table the packet would
// be dropped as a martian (field.md C1-6, C2). One rule per ingress interface would do as well, but we do not know in
// advance by which interface a server answers. Packets of this host that are turned round have a mark of their own.
func policy(m marks) []PolicyRule {
	return []PolicyRule{
		{Priority: firstPriority, Iif: "lo", Goto: lastPriority},
		{Priority: firstPriority + 1, Mark: m.client, Table: RouteTable},
		{Priority: firstPriority + 2, Mark: m.server, Table: RouteTable},
		{Priority: lastPriority, Iif: "lo", Mark: m.local, Table: RouteTable},
	}
}

func netlinkFamily(v int) int {
	if v == 6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

func (r PolicyRule) netlink(v int) *netlink.Rule {
	out := netlink.NewRule()
	out.Family, out.Priority, out.IifName, out.Table, out.Protocol = netlinkFamily(v), r.Priority, r.Iif, r.Table, RouteProtocol
	if r.Mark.Mask != 0 {
		mask := r.Mark.Mask
		out.Mark, out.Mask = r.Mark.Value, &mask
	}
	if r.Goto != 0 {
		out.Goto = r.Goto
	}
	return out
}

func (r PolicyRule) is(k *netlink.Rule) bool {
	mask := uint32(0)
	if k.Mask != nil {
		mask = *k.Mask
	}
	return k.Priority == r.Priority && k.IifName == r.Iif && k.Mark == r.Mark.Value && mask == r.Mark.Mask &&
		max(k.Goto, 0) == r.Goto && (r.Goto != 0 || k.Table == r.Table)
}

// again repeats a dump that was interrupted by a change (N2).
func again[T any](dump func() (T, error)) (v T, err error) {
	for range 10 {
		if v, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

// ourRules lists the policy rules of a family that are ours.
func ourRules(v int) ([]netlink.Rule, error) {
	all, err := again(func() ([]netlink.Rule, error) { return netlink.RuleList(netlinkFamily(v)) })
	if err != nil {
		return nil, fmt.Errorf("list IPv%d policy rules: %w", v, err)
	}
	var ours []netlink.Rule
	for _, r := range all {
		if r.Protocol == RouteProtocol && r.Priority >= firstPriority && r.Priority <= lastPriority {
			ours = append(ours, r)
		}
	}
	return ours, nil
}

func localRoute(v int) (*netlink.Route, error) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find interface lo: %w", err)
	}
	_, dst, _ := net.ParseCIDR("0.0.0.0/0")
	if v == 6 {
		_, dst, _ = net.ParseCIDR("::/0")
	}
	return &netlink.Route{LinkIndex: lo.Index, Dst: dst, Family: netlinkFamily(v), Table: RouteTable, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Protocol: RouteProtocol}, nil
}

func ourRoutes(v int) ([]netlink.Route, error) {
	list, err := again(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlinkFamily(v), &netlink.Route{Table: RouteTable, Type: unix.RTN_LOCAL},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, fmt.Errorf("list IPv%d routes of table %d: %w", v, RouteTable, err)
	}
	return list, nil
}

// route makes policy rules and routes those of the plan, and tells whether anything had to be changed.
func route(p *Plan) (changed bool, err error) {
	var errs []error
	for _, v := range p.Families {
		c, err := routeFamily(p, v)
		changed = changed || c
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

func routeFamily(p *Plan, v int) (changed bool, err error) {
	routes, err := ourRoutes(v)
	if err != nil {
		return false, err
	}
	if len(routes) == 0 {
		changed = true
		r, err := localRoute(v)
		if err != nil {
			return changed, err
		}
		if err := netlink.RouteReplace(r); err != nil {
			return changed, fmt.Errorf("add IPv%d route of table %d: %w", v, RouteTable, err)
		}
	}
	have, err := ourRules(v)
	if err != nil {
		return changed, err
	}
	var errs []error
	for _, want := range p.Policy {
		found := false
		for i := range have {
			found = found || want.is(&have[i])
		}
		if found {
			continue
		}
		changed = true
		if err := netlink.RuleAdd(want.netlink(v)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add IPv%d policy rule %v: %w", v, want, err))
		}
	}
	for i := range have {
		wanted := false
		for _, w := range p.Policy {
			wanted = wanted || w.is(&have[i])
		}
		if !wanted {
			changed = true
			errs = append(errs, deleteRule(&have[i]))
		}
	}
	return changed, errors.Join(errs...)
}

func deleteRule(r *netlink.Rule) error {
	if err := netlink.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete policy rule %d: %w", r.Priority, err)
	}
	return nil
}

// unroute removes every policy rule and route of ours, and returns the marks that the rules named.
func unroute() (found []Mark, err error) {
	var errs []error
	for _, v := range []int{4, 6} {
		rules, err := ourRules(v)
		if err != nil {
			if v == 6 && !haveIPv6() {
				continue
			}
			errs = append(errs, err)
		}
		for i := range rules {
			if m := rules[i].Mask; m != nil {
				found = append(found, Mark{rules[i].Mark, *m})
			}
			errs = append(errs, deleteRule(&rules[i]))
		}
		routes, err := ourRoutes(v)
		if err != nil && !(v == 6 && !haveIPv6()) {
			errs = append(errs, err)
		}
		for i := range routes {
			if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("delete IPv%d route of table %d: %w", v, RouteTable, err))
			}
		}
	}
	return found, errors.Join(errs...)
}
