package divert

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Settings is what an administrator writes. Its zero value diverts nothing.
type Settings struct {
	InputDivert   []Spec `key:"InputDivert" default:"Off" type:"Off or Auto(interface:IF protected:PORTS)" doc:"Divert connections that arrive on the interface and aim at one of the ports of this host itself. Several interfaces: repeat the line, or separate the values by commas."`
	ForwardDivert []Spec `key:"ForwardDivert" default:"Off" type:"Off or Auto(interface:IF protected:PORTS)" doc:"Divert connections that arrive on the interface and are routed on to one of the ports of another host."`
	OutputDivert  []Spec `key:"OutputDivert" default:"Off" type:"Off or Auto(protected:PORTS)" doc:"Divert connections that programs of this host open to one of the ports of another host; with an interface, only those that leave by it."`

	InputDivertConnectTransparently   bool `key:"InputDivertConnectTransparently" default:"Yes" doc:"Connect to the server from the client's own address, so that the server sees who is there."`
	ForwardDivertConnectTransparently bool `key:"ForwardDivertConnectTransparently" default:"Yes" doc:"Connect to the server from the client's own address, so that the server sees who is there."`
	OutputDivertConnectTransparently  bool `key:"OutputDivertConnectTransparently" default:"No" doc:"Connect to the server from the very address of this host that the local program uses."`

	LocalDeliveryMark Mark `key:"LocalDeliveryMark" default:"Auto" type:"mark" restart:"yes" doc:"Mark of packets of this host that are turned round to the gateway: VALUE or VALUE/MASK, or Auto (0x80000000). No bit outside of the mask is ever changed or looked at."`
	ClientPacketsMark Mark `key:"ClientPacketsMark" default:"Auto" type:"mark" restart:"yes" doc:"Mark of packets between client and gateway: VALUE or VALUE/MASK, or Auto (0x10000000)."`
	ServerPacketsMark Mark `key:"ServerPacketsMark" default:"Auto" type:"mark" restart:"yes" doc:"Mark of packets between gateway and server: VALUE or VALUE/MASK, or Auto (0x02000000). The gateway's own connections carry it and are never diverted."`

	ExcludedProc              []string `key:"ExcludedProc" default:"" doc:"Programs of this host whose connections are not diverted: full paths."`
	OutputDivertNfqueueNumber Queue    `key:"OutputDivertNfqueueNumber" default:"Auto" type:"number or Auto" doc:"NFQUEUE in which the first packet of a connection of this host waits for the decision when ExcludedProc is set. Auto is 2525."`
	FailMode                  string   `key:"FailMode" enum:"Closed|Open" default:"Closed" doc:"What happens to new connections when the gateway has died: Closed refuses them until it runs again, Open lets them through uninspected. A deliberate stop always lets them through."`
}

// The kinds of divert, as they appear in Listener.Kind, Conn.Kind and Flow.Kind.
const (
	Input   = "input"
	Forward = "forward"
	Output  = "output"
)

// Spec is one value of InputDivert, ForwardDivert or OutputDivert. The zero value is Off.
type Spec struct {
	Interfaces []string // empty only for output: whatever interface
	Ports      []uint16 // ascending; empty is Off
}

// On says whether d diverts anything.
func (d Spec) On() bool { return len(d.Ports) > 0 }

// MarshalText implements encoding.TextMarshaler.
func (d Spec) MarshalText() ([]byte, error) {
	if !d.On() {
		return []byte("Off"), nil
	}
	var b strings.Builder
	b.WriteString("Auto(")
	if len(d.Interfaces) > 0 {
		b.WriteString("interface:" + strings.Join(d.Interfaces, ",") + " ")
	}
	b.WriteString("protected:")
	for i, p := range d.Ports {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(p)))
	}
	b.WriteByte(')')
	return []byte(b.String()), nil
}

// String returns the form in which d is written.
func (d Spec) String() string {
	text, _ := d.MarshalText()
	return string(text)
}

const divertForm = "write Off or Auto(interface:eth0 protected:25,587)"

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Spec) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	switch strings.ToLower(s) {
	case "off", "disabled", "no", "none":
		*d = Spec{}
		return nil
	case "":
		return errors.New("empty; " + divertForm)
	}
	name, args, ok := strings.Cut(s, "(")
	name = strings.TrimSpace(name)
	if !strings.EqualFold(name, "Auto") {
		if strings.EqualFold(name, "Manual") {
			return errors.New("the form Manual is not supported: the rules are always made by the gateway; " + divertForm)
		}
		return fmt.Errorf("%q is neither Off nor Auto(…); %s", name, divertForm)
	}
	if !ok {
		return errors.New("after Auto, arguments in parentheses are missing; " + divertForm)
	}
	args, rest, ok := strings.Cut(args, ")")
	if !ok {
		return fmt.Errorf("closing parenthesis is missing after %q", s)
	}
	if rest = strings.TrimSpace(rest); rest != "" {
		return fmt.Errorf("unexpected %q after the closing parenthesis; separate several values by commas", rest)
	}
	v, err := parseAuto(args)
	if err != nil {
		return err
	}
	*d = v
	return nil
}

func parseAuto(args string) (Spec, error) {
	var d Spec
	seen := map[string]bool{}
	for _, word := range strings.Fields(args) {
		key, value, ok := strings.Cut(word, ":")
		if !ok {
			return d, fmt.Errorf("%q is not of the form key:value; the keys are interface and protected (no blanks within a list)", word)
		}
		key = strings.ToLower(key)
		if seen[key] {
			return d, fmt.Errorf("%s: is given twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "interface":
			d.Interfaces, err = parseInterfaces(value)
		case "protected":
			d.Ports, err = parsePorts(value)
		default:
			err = fmt.Errorf("unknown key %q; the keys are interface and protected", key)
		}
		if err != nil {
			return d, err
		}
	}
	if len(d.Ports) == 0 {
		return d, errors.New("protected: is missing; name the ports, as in protected:25,587")
	}
	return d, nil
}

func parseInterfaces(value string) ([]string, error) {
	var list []string
	for _, name := range strings.Split(value, ",") {
		if err := checkInterface(name); err != nil {
			return nil, err
		}
		if slices.Contains(list, name) {
			return nil, fmt.Errorf("interface %s is given twice", name)
		}
		list = append(list, name)
	}
	return list, nil
}

// checkInterface holds a name against what the kernel takes (dev_valid_name: at most 15 octets, no slash, no blank)
// and what is safe to print into nft text.
func checkInterface(name string) error {
	switch {
	case name == "":
		return errors.New("interface: is empty; name an interface, as in interface:eth0")
	case len(name) > 15:
		return fmt.Errorf("interface name %q has %d characters; 15 is the most", name, len(name))
	case name == "." || name == "..":
		return fmt.Errorf("%q is not an interface name", name)
	}
	for _, c := range name {
		if !strings.ContainsRune("._-:@", c) && (c > 'z' || c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a') {
			return fmt.Errorf("interface name %q contains %q; letters, digits and . _ - : @ are allowed", name, c)
		}
	}
	return nil
}

func parsePorts(value string) ([]uint16, error) {
	var list []uint16
	for _, word := range strings.Split(value, ",") {
		if word == "" {
			return nil, fmt.Errorf("protected:%s has an empty place; write ports separated by single commas", value)
		}
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("port %q is not a number", word)
		}
		if n < 1 || n > 65535 {
			return nil, fmt.Errorf("port %s is out of range; ports are 1 to 65535", word)
		}
		if slices.Contains(list, uint16(n)) {
			return nil, fmt.Errorf("port %d is given twice", n)
		}
		list = append(list, uint16(n))
	}
	slices.Sort(list)
	return list, nil
}

// Mark is a packet mark and the bits of it that are ours. The zero value is Auto.
type Mark struct{ Value, Mask uint32 }

// MarshalText implements encoding.TextMarshaler.
func (m Mark) MarshalText() ([]byte, error) {
	switch {
	case m == Mark{}:
		return []byte("Auto"), nil
	case m.Value == m.Mask:
		return fmt.Appendf(nil, "0x%x", m.Value), nil
	}
	return fmt.Appendf(nil, "0x%x/0x%x", m.Value, m.Mask), nil
}

// String returns the form in which m is written.
func (m Mark) String() string {
	text, _ := m.MarshalText()
	return string(text)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mark) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if strings.EqualFold(s, "Auto") {
		*m = Mark{}
		return nil
	}
	value, mask, masked := strings.Cut(s, "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return fmt.Errorf("mark %q is not a number; write Auto, 0x10 or 0x10/0xf0", value)
	}
	k := v
	if masked {
		if k, err = strconv.ParseUint(mask, 0, 32); err != nil {
			return fmt.Errorf("mask %q is not a number; write Auto, 0x10 or 0x10/0xf0", mask)
		}
	}
	if v == 0 {
		return errors.New("mark 0 is what every packet has; choose at least one bit")
	}
	if v&^k != 0 {
		return fmt.Errorf("mark 0x%x has bits outside of its mask 0x%x", v, k)
	}
	*m = Mark{uint32(v), uint32(k)}
	return nil
}

// Queue is the number of an NFQUEUE. The zero value is Auto.
type Queue struct {
	Number uint16
	Given  bool
}

// autoQueue is the queue of Auto.
const autoQueue = 2525

// number returns the queue to use.
func (q Queue) number() uint16 {
	if q.Given {
		return q.Number
	}
	return autoQueue
}

// MarshalText implements encoding.TextMarshaler.
func (q Queue) MarshalText() ([]byte, error) {
	if !q.Given {
		return []byte("Auto"), nil
	}
	return strconv.AppendUint(nil, uint64(q.Number), 10), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (q *Queue) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if strings.EqualFold(s, "Auto") {
		*q = Queue{}
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return fmt.Errorf("queue %q is neither Auto nor a number from 0 to 65535", s)
	}
	*q = Queue{uint16(n), true}
	return nil
}

// marks are the three marks with Auto resolved.
type marks struct{ local, client, server Mark }

// The bits of Auto are 31, 28 and 25. They stay clear of Kubernetes (14, 15), Tailscale (16-23), Cilium (8-11), mwan3
// (8-13), Weave (17, 18), AWS (7), WireGuard's and Mullvad's fixed marks (0xca6c, 0x6d6f6c65), and of the small
// numbers that people write by hand. Calico's default (0xffff0000) overlaps with everything above 15: the doctor says
// so.
func (s *Settings) marks() marks {
	auto := func(m Mark, value uint32) Mark {
		if m == (Mark{}) {
			return Mark{value, value}
		}
		return m
	}
	return marks{
		local:  auto(s.LocalDeliveryMark, 1<<31),
		client: auto(s.ClientPacketsMark, 1<<28),
		server: auto(s.ServerPacketsMark, 1<<25),
	}
}

// closed says whether connections are refused when the gateway has died.
func (s *Settings) closed() bool { return s.FailMode != "Open" }

// Check tells what is wrong with the settings taken together.
func (s *Settings) Check() error {
	var errs []error
	for _, k := range []struct {
		key  string
		list []Spec
	}{{"InputDivert", s.InputDivert}, {"ForwardDivert", s.ForwardDivert}, {"OutputDivert", s.OutputDivert}} {
		errs = append(errs, checkDiverts(k.key, k.list))
	}
	m := s.marks()
	for _, p := range []struct {
		a, b   Mark
		an, bn string
	}{
		{m.local, m.client, "LocalDeliveryMark", "ClientPacketsMark"},
		{m.local, m.server, "LocalDeliveryMark", "ServerPacketsMark"},
		{m.client, m.server, "ClientPacketsMark", "ServerPacketsMark"},
	} {
		// Each mark is set and read by itself while the others may be set: no bit may be shared.
		if p.a.Mask&p.b.Mask != 0 {
			errs = append(errs, fmt.Errorf("%s (%v) and %s (%v) share bits 0x%x; each needs bits of its own",
				p.an, p.a, p.bn, p.b, p.a.Mask&p.b.Mask))
		}
	}
	if s.FailMode != "" && s.FailMode != "Closed" && s.FailMode != "Open" {
		errs = append(errs, fmt.Errorf("FailMode: %q is neither Closed nor Open", s.FailMode))
	}
	for _, p := range s.ExcludedProc {
		if !strings.HasPrefix(p, "/") {
			errs = append(errs, fmt.Errorf("ExcludedProc: %q is not a full path", p))
		}
	}
	return errors.Join(errs...)
}

func checkDiverts(key string, list []Spec) error {
	type place struct {
		iface string
		port  uint16
	}
	seen := map[place]bool{}
	off := false
	for _, d := range list {
		if !d.On() {
			off = true
			continue
		}
		ifaces := d.Interfaces
		if len(ifaces) == 0 {
			if key != "OutputDivert" {
				return fmt.Errorf("%s: interface: is missing in %v; name the interface on which clients arrive", key, d)
			}
			ifaces = []string{""}
		}
		for _, i := range ifaces {
			for _, p := range d.Ports {
				if seen[place{i, p}] {
					return fmt.Errorf("%s: port %d of interface %q is given twice", key, p, i)
				}
				seen[place{i, p}] = true
			}
		}
	}
	if off && len(seen) > 0 {
		return fmt.Errorf("%s: Off stands beside Auto(…); write one or the other", key)
	}
	return nil
}
