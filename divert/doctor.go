package divert

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// States of a Check.
const (
	OK   = "ok"
	Warn = "warn"
	Bad  = "bad"
)

// Check is one thing that the doctor has looked at.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // OK, Warn, Bad
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // a command, or what to ask of whom
}

// Doctor looks for what is in the way of the divert that the settings want: the exact setting, who usually sets it,
// and the cure. It changes nothing: what it tries out in the kernel is gone at the end of the same transaction.
func Doctor(ctx context.Context, s Settings) []Check {
	d := &doctor{settings: s, marks: s.marks()}
	if err := s.Check(); err != nil {
		d.add("settings", Bad, err.Error(), "correct the setting")
		return d.list
	}
	for _, look := range []func(){d.rights, d.kernel, d.queue, d.interfaces, d.forwarding, d.sourceChecks, d.martians,
		d.bridges, d.policyRules, d.foreign, d.conntrack, d.ports, d.unanswered, d.clock, d.remains} {
		if ctx.Err() != nil {
			d.add("doctor", Warn, "interrupted: "+ctx.Err().Error(), "")
			break
		}
		look()
	}
	return d.list
}

type doctor struct {
	settings Settings
	marks    marks
	list     []Check
}

func (d *doctor) add(name, state, detail, fix string) {
	d.list = append(d.list, Check{name, state, detail, fix})
}

func (d *doctor) ingress() []string {
	var names []string
	for _, v := range append(slices.Clone(d.settings.InputDivert), d.settings.ForwardDivert...) {
		names = append(names, v.Interfaces...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func anyOn(list []Spec) bool { return slices.ContainsFunc(list, Spec.On) }

func (d *doctor) rights() {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		d.add("rights", Warn, "capabilities cannot be read: "+err.Error(), "")
		return
	}
	_, rest, _ := strings.Cut(string(b), "CapEff:")
	word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	caps, _ := strconv.ParseUint(word, 16, 64)
	has := func(c uint) bool { return caps&(1<<c) != 0 }
	switch {
	case !has(unix.CAP_NET_ADMIN):
		d.add("rights", Bad, "CAP_NET_ADMIN is missing: neither rules nor transparent sockets can be made",
			"run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE in the systemd unit")
	case !has(unix.CAP_NET_BIND_SERVICE):
		d.add("rights", Warn, "CAP_NET_BIND_SERVICE is missing: clients with a port below 1024 get another one towards the server",
			"AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE in the systemd unit")
	case d.needsProc() && !has(unix.CAP_SYS_PTRACE):
		d.add("rights", Warn, "CAP_SYS_PTRACE is missing: programs of other users are not recognised, so ExcludedProc does not hold for them",
			"AmbientCapabilities=… CAP_SYS_PTRACE in the systemd unit")
	default:
		d.add("rights", OK, "CAP_NET_ADMIN is there", "")
	}
}

func (d *doctor) needsProc() bool {
	return len(d.settings.ExcludedProc) > 0 && anyOn(d.settings.OutputDivert)
}

// kernel tries every kind of expression by itself, so that the missing option has a name (C1-28, C1-40).
func (d *doctor) kernel() {
	ok := true
	try := func(option, what string, err error) {
		if err == nil {
			return
		}
		ok = false
		d.add("kernel", Bad, fmt.Sprintf("%s does not work: %v", what, err),
			"a kernel with "+option+" is needed (distribution kernels have it as a module; some containers and WSL do not)")
	}
	to := standIns()[Forward]
	try("CONFIG_NF_TABLES_INET", "an inet table", tryRule(nil))
	try("CONFIG_NFT_TPROXY and CONFIG_NF_TPROXY_IPV4", "tproxy for IPv4", tryRule([]term{family{4}, isTCP{}, toProxy{to[0]}}))
	if haveIPv6() {
		try("CONFIG_NFT_TPROXY and CONFIG_NF_TPROXY_IPV6", "tproxy for IPv6", tryRule([]term{family{6}, isTCP{}, toProxy{to[1]}}))
	}
	try("CONFIG_NFT_SOCKET", "the socket expression", tryRule([]term{transparent{}, socketMark{}}))
	try("CONFIG_NFT_FIB_INET", "the fib expression", tryRule([]term{fibType{kind: "local"}}))
	try("CONFIG_NFT_REJECT_INET (and Linux 5.9: reject in prerouting)", "the reject expression", tryRule([]term{isTCP{}, reject{}}))
	for _, v := range []int{4, 6} {
		if v == 4 || haveIPv6() {
			try("CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES", fmt.Sprintf("IPv%d policy routing", v), second(ourRules(v)))
			try("IP_TRANSPARENT (CAP_NET_ADMIN)", fmt.Sprintf("an IPv%d transparent socket", v), tryTransparent(v))
		}
	}
	if err := tryDestroy(); err != nil {
		ok = false
		d.add("kernel", Warn, "sockets cannot be destroyed: "+err.Error()+". After a stop, clients that use a port again within a minute may wait some seconds",
			"a kernel with CONFIG_INET_DIAG_DESTROY; or sysctl -w net.ipv4.tcp_early_demux=0 before the gateway is stopped")
	}
	if ok {
		d.add("kernel", OK, "everything that the rules need works", "")
	}
}

func second[T any](_ T, err error) error { return err }

func tryTransparent(v int) error {
	domain := unix.AF_INET
	if v == 6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return setTransparent(fd, v)
}

// tryDestroy asks for the end of a socket that cannot exist.
func tryDestroy() error {
	id := make([]byte, 48)
	for i := 40; i < 48; i++ {
		id[i] = 0xff
	}
	id[0], id[1], id[4], id[20] = 0, 1, 240, 240
	return destroy(socketInfo{v: 4, id: id, state: stTimeWait})
}

func (d *doctor) queue() {
	if !d.needsProc() {
		return
	}
	compat, err := queueSupport()
	switch {
	case err != nil:
		d.add("nfqueue", Bad, "ExcludedProc cannot be used: "+err.Error(), "a kernel with CONFIG_NFT_QUEUE, or leave ExcludedProc empty")
	case compat:
		d.add("nfqueue", OK, "first packets are queued by the xtables target NFQUEUE; nft list shows it as a foreign expression", "")
	default:
		d.add("nfqueue", OK, "first packets can be queued", "")
	}
}

func (d *doctor) interfaces() {
	names := d.ingress()
	for _, o := range d.settings.OutputDivert {
		names = append(names, o.Interfaces...)
	}
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		switch {
		case err != nil:
			d.add("interface "+name, Warn, "does not exist (yet); nothing is diverted on it until it does", "ip link shows the names there are")
		case link.Attrs().Flags&net.FlagUp == 0:
			d.add("interface "+name, Warn, "is down", "ip link set "+name+" up")
		default:
			d.add("interface "+name, OK, "is up", "")
		}
	}
	if lo, err := netlink.LinkByName("lo"); err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		d.add("interface lo", Bad, "is down: local delivery goes through it", "ip link set lo up")
	}
}

func sysctl(key string) (string, bool) {
	b, err := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSpace(string(b)), err == nil
}

func (d *doctor) forwarding() {
	if !anyOn(d.settings.ForwardDivert) {
		return
	}
	for _, f := range []struct{ key, name string }{{"net/ipv4/ip_forward", "net.ipv4.ip_forward"},
		{"net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"}} {
		v, known := sysctl(f.key)
		switch {
		case !known:
			d.add(f.name, Warn, "is not there: this kernel does not speak the family", "")
		case v == "0":
			d.add(f.name, Bad, "is 0: this host does not route, so there is nothing to divert on the way (the kernel's default; routers and container engines set 1)",
				"sysctl -w "+f.name+"=1, and the same in /etc/sysctl.d/")
		default:
			d.add(f.name, OK, "is "+v, "")
		}
	}
}

// effective is the value that holds for an interface: the larger of its own and all.
func effective(name, iface string) int {
	value := 0
	for _, where := range []string{"all", iface} {
		s, _ := sysctl("net/ipv4/conf/" + where + "/" + name)
		n, _ := strconv.Atoi(s)
		value = max(value, n)
	}
	return value
}

func (d *doctor) sourceChecks() {
	for _, name := range d.ingress() {
		if _, err := netlink.LinkByName(name); err != nil {
			continue
		}
		if effective("rp_filter", name) == 1 {
			d.add("rp_filter "+name, Warn, "is 1 (strict): harmless while packets leave by the interface they come in by; with asymmetric routes they vanish without a trace (set by distributions in /etc/sysctl.d or /usr/lib/sysctl.d)",
				"with asymmetric routes: sysctl -w net.ipv4.conf."+name+".rp_filter=2")
		} else {
			d.add("rp_filter "+name, OK, "is not strict", "")
		}
		if effective("src_valid_mark", name) == 1 {
			d.add("src_valid_mark "+name, OK, "is 1 (set by Tailscale, wg-quick and some container networks); our policy rules allow for it", "")
		}
	}
}

// martians reads the one counter in which wrong source checks show (C1-6).
func (d *doctor) martians() {
	b, err := os.ReadFile("/proc/thread-self/net/stat/rt_cache")
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	column := slices.Index(strings.Fields(lines[0]), "in_martian_src")
	if column < 0 {
		return
	}
	total := uint64(0)
	for _, line := range lines[1:] {
		if words := strings.Fields(line); column < len(words) {
			n, _ := strconv.ParseUint(words[column], 16, 64)
			total += n
		}
	}
	if total > 0 {
		d.add("martians", Warn, fmt.Sprintf("%d packets were dropped for their source address since boot; if the number grows while connections hang, rp_filter or src_valid_mark is in the way", total),
			"sysctl -w net.ipv4.conf.all.log_martians=1 names them in the kernel log")
	}
}

// bridges looks for br_netfilter: packets of a bridge then pass the hooks too early, and the divert is undone (C1-12).
func (d *doctor) bridges() {
	v4, _ := sysctl("net/bridge/bridge-nf-call-iptables")
	v6, _ := sysctl("net/bridge/bridge-nf-call-ip6tables")
	for _, name := range d.ingress() {
		link, err := netlink.LinkByName(name)
		if err != nil {
			continue
		}
		if master := link.Attrs().MasterIndex; master != 0 {
			if m, err := netlink.LinkByIndex(master); err == nil && m.Type() == "bridge" {
				d.add("bridge "+name, Bad, fmt.Sprintf("%s is a port of the bridge %s: packets arrive on the bridge, not on the port", name, m.Attrs().Name),
					"name "+m.Attrs().Name+" as the interface")
			}
		}
		if link.Type() == "bridge" && (v4 == "1" || v6 == "1") {
			d.add("br_netfilter "+name, Bad, "net.bridge.bridge-nf-call-iptables or -ip6tables is 1 (set by Docker, Kubernetes and libvirt when they load br_netfilter): packets of the bridge pass the hooks inside of it, and what tproxy chose is forgotten",
				"sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, if nothing else needs it")
		}
	}
}

// policyRules looks for rules of others that our marks meet, or that come before ours (C1-14).
func (d *doctor) policyRules() {
	ours := d.marks.local.Mask | d.marks.client.Mask | d.marks.server.Mask
	clean := true
	for _, v := range []int{4, 6} {
		rules, err := again(func() ([]netlink.Rule, error) { return netlink.RuleList(netlinkFamily(v)) })
		if err != nil {
			if v == 4 || haveIPv6() {
				d.add("policy rules", Warn, err.Error(), "")
			}
			continue
		}
		for _, r := range rules {
			if r.Protocol == RouteProtocol {
				continue
			}
			mask := uint32(0)
			if r.Mark != 0 {
				mask = 0xffffffff
			}
			if r.Mask != nil {
				mask = *r.Mask
			}
			if shared := mask & ours; shared != 0 {
				clean = false
				d.add("mark collision", Warn, fmt.Sprintf("ip -%d rule %d (table %d) looks at mark bits 0x%x, of which 0x%x are ours%s", v, r.Priority, r.Table, mask, shared, owner(mask)),
					"set LocalDeliveryMark, ClientPacketsMark and ServerPacketsMark to bits that nobody uses")
			}
			if r.Priority > 0 && r.Priority < firstPriority {
				clean = false
				d.add("policy rules", Warn, fmt.Sprintf("ip -%d rule %d comes before ours (%d to %d): where it has a route, diverted packets take that", v, r.Priority, firstPriority, lastPriority),
					"give it a priority above "+strconv.Itoa(lastPriority))
			}
		}
	}
	if clean {
		d.add("policy rules", OK, "no rule of others shares our marks", "")
	}
}

// owner names the software known for a mask.
func owner(mask uint32) string {
	for _, k := range []struct {
		mask uint32
		name string
	}{{0xff0000, "Tailscale"}, {0xffff0000, "Calico"}, {0xf00, "Cilium"}, {0x3f00, "mwan3"}, {0xc000, "kube-proxy"}} {
		if mask == k.mask {
			return " (" + k.name + "'s default)"
		}
	}
	return ""
}

func (d *doctor) conntrack() {
	if tracked() {
		d.add("conntrack", OK, "follows connections here: towards servers the gateway chooses its own source ports under the client's address", "")
	} else {
		d.add("conntrack", OK, "follows nothing here: clients keep their source ports, and routed connections from before a start cannot be counted", "")
	}
}

func (d *doctor) ports() {
	v, ok := sysctl("net/ipv4/ip_local_port_range")
	words := strings.Fields(v)
	if !ok || len(words) != 2 {
		return
	}
	low, _ := strconv.Atoi(words[0])
	high, _ := strconv.Atoi(words[1])
	if n := high - low + 1; n < 10000 {
		d.add("ip_local_port_range", Warn, fmt.Sprintf("%d to %d are only %d ports", low, high, n), "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"")
	} else {
		d.add("ip_local_port_range", OK, fmt.Sprintf("%d ports", n), "")
	}
}

// unanswered looks for connections to servers whose answers do not come back to us (C1-20).
func (d *doctor) unanswered() {
	list, err := marked(stSynSent, d.marks.server)
	if err != nil || len(list) == 0 {
		return
	}
	foreign := 0
	for _, s := range list {
		if local, err := isLocal(unmap(s.local).Addr()); err == nil && !local {
			foreign++
		}
	}
	if foreign > 0 {
		d.add("answers", Warn, fmt.Sprintf("%d connections under a client's address wait for an answer, for instance %v to %v: the server is down, or answers the client by a way that does not lead through this host", foreign, list[0].local, list[0].remote),
			"let this host be the server's way to the clients, or set …ConnectTransparently = No")
	}
}

// clock warns of a clock that nobody keeps right: certificates we make would not be valid (field.md B 23).
func (d *doctor) clock() {
	const unsynchronised = 0x40 // STA_UNSYNC
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		d.add("clock", Warn, "the kernel does not tell whether the clock is synchronised: "+err.Error(), "")
		return
	}
	if t.Status&unsynchronised != 0 {
		d.add("clock", Warn, "is not synchronised: certificates made here may be refused by clients", "run chrony, systemd-timesyncd or ntpd")
	} else {
		d.add("clock", OK, "is synchronised", "")
	}
}

// remains looks for rules without a gateway.
func (d *doctor) remains() {
	l, err := net.Listen("unix", lockName)
	if errors.Is(err, unix.EADDRINUSE) {
		d.add("gateway", OK, "is running here", "")
		return
	}
	if err == nil {
		defer func() { _ = l.Close() }()
	}
	n, err := countChains()
	rules, _ := ourRules(4)
	switch {
	case err != nil:
		d.add("gateway", Warn, err.Error(), "")
	case n > 0:
		d.add("gateway", Warn, "is not running, and the rules of one that died refuse connections (FailMode = Closed)", "start it, or mailweir divert off")
	case len(rules) > 0:
		d.add("gateway", Warn, "is not running, but policy rules of one that died are left; they do no harm", "start it, or mailweir divert off")
	default:
		d.add("gateway", OK, "is not running here, and has left nothing", "")
	}
}
