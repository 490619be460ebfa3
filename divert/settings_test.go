package divert

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSpecBad(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "empty; write Off or Auto(interface:eth0 protected:25,587)"},
		{"On", `"On" is neither Off nor Auto(…); write Off or Auto(interface:eth0 protected:25,587)`},
		{"Manual(client_port:1)", "the form Manual is not supported: the rules are always made by the gateway; write Off or Auto(interface:eth0 protected:25,587)"},
		{"Auto", "after Auto, arguments in parentheses are missing; write Off or Auto(interface:eth0 protected:25,587)"},
		{"Auto(interface:eth0 protected:25", `closing parenthesis is missing after "Auto(interface:eth0 protected:25"`},
		{"Auto(interface:eth0 protected:25))", `unexpected ")" after the closing parenthesis; separate several values by commas`},
		{"Auto(interface:eth0 protected:25) x", `unexpected "x" after the closing parenthesis; separate several values by commas`},
		{"Auto()", "protected: is missing; name the ports, as in protected:25,587"},
		{"Auto(interface:eth0)", "protected: is missing; name the ports, as in protected:25,587"},
		{"Auto(iface:eth0 protected:25)", `unknown key "iface"; the keys are interface and protected`},
		{"Auto(eth0 protected:25)", `"eth0" is not of the form key:value; the keys are interface and protected (no blanks within a list)`},
		{"Auto(interface:eth0 protected:25, 587)", `protected:25, has an empty place; write ports separated by single commas`},
		{"Auto(interface:eth0 protected:25 587)", `"587" is not of the form key:value; the keys are interface and protected (no blanks within a list)`},
		{"Auto(interface:eth0 protected:0)", "port 0 is out of range; ports are 1 to 65535"},
		{"Auto(interface:eth0 protected:65536)", "port 65536 is out of range; ports are 1 to 65535"},
		{"Auto(interface:eth0 protected:25,25)", "port 25 is given twice"},
		{"Auto(interface:eth0 protected:smtp)", `port "smtp" is not a number`},
		{"Auto(interface:eth0 protected:-25)", `port "-25" is not a number`},
		{"Auto(interface:eth0 protected:)", "protected: has an empty place; write ports separated by single commas"},
		{"Auto(interface: protected:25)", "interface: is empty; name an interface, as in interface:eth0"},
		{"Auto(interface:abcdefghijklmnop protected:25)", `interface name "abcdefghijklmnop" has 16 characters; 15 is the most`},
		{"Auto(interface:et/h0 protected:25)", `interface name "et/h0" contains '/'; letters, digits and . _ - : @ are allowed`},
		{`Auto(interface:e"0 protected:25)`, `interface name "e\"0" contains '"'; letters, digits and . _ - : @ are allowed`},
		{"Auto(interface:.. protected:25)", `".." is not an interface name`},
		{"Auto(interface:eth0,eth0 protected:25)", "interface eth0 is given twice"},
		{"Auto(interface:eth0 interface:eth1 protected:25)", "interface: is given twice"},
	} {
		s := Spec{Ports: []uint16{7}}
		err := s.UnmarshalText([]byte(c.in))
		if err == nil || err.Error() != c.want {
			t.Errorf("%q: %v, want %s", c.in, err, c.want)
		}
		if len(s.Ports) != 1 || s.Ports[0] != 7 {
			t.Errorf("%q changed the value", c.in)
		}
	}
}

func TestSpecGood(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Off", "Off"}, {"off", "Off"}, {"Disabled", "Off"}, {"No", "Off"}, {"none", "Off"},
		{"Auto(interface:eth0 protected:25,110,143)", "Auto(interface:eth0 protected:25,110,143)"},
		{"auto( protected:587,25\tinterface:eth0.100 )", "Auto(interface:eth0.100 protected:25,587)"},
		{"Auto(interface:br-lan,eth0:1 protected:65535)", "Auto(interface:br-lan,eth0:1 protected:65535)"},
		{"Auto(protected:1)", "Auto(protected:1)"},
	} {
		var s, again Spec
		if err := s.UnmarshalText([]byte(c.in)); err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if s.String() != c.want {
			t.Errorf("%q: %s, want %s", c.in, s, c.want)
		}
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again.String() != s.String() {
			t.Errorf("%s read again: %v, %v", s, again, err)
		}
	}
}

func TestMarkAndQueue(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{"Auto", "Auto", ""}, {"16", "0x10", ""}, {"0x10", "0x10", ""}, {"0x10/0xf0", "0x10/0xf0", ""},
		{"0", "", "mark 0 is what every packet has; choose at least one bit"},
		{"x", "", `mark "x" is not a number; write Auto, 0x10 or 0x10/0xf0`},
		{"1/x", "", `mask "x" is not a number; write Auto, 0x10 or 0x10/0xf0`},
		{"0x11/0x10", "", "mark 0x11 has bits outside of its mask 0x10"},
		{"0x100000000", "", `mark "0x100000000" is not a number; write Auto, 0x10 or 0x10/0xf0`},
	} {
		var m Mark
		err := m.UnmarshalText([]byte(c.in))
		if c.err != "" && (err == nil || err.Error() != c.err) || c.err == "" && (err != nil || m.String() != c.want) {
			t.Errorf("%q: %v, %v; want %s%s", c.in, m, err, c.want, c.err)
		}
	}
	for _, c := range []struct{ in, err string }{{"Auto", ""}, {"0", ""}, {"65535", ""}, {"65536", `queue "65536" is neither Auto nor a number from 0 to 65535`}} {
		var q Queue
		if err := q.UnmarshalText([]byte(c.in)); (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%q: %v", c.in, err)
		} else if text, _ := q.MarshalText(); err == nil && string(text) != c.in {
			t.Errorf("%q became %s", c.in, text)
		}
	}
}

func TestSettingsCheck(t *testing.T) {
	for _, c := range []struct {
		s    Settings
		want string
	}{
		{Settings{}, ""},
		{Settings{OutputDivert: auto("", 25)}, ""},
		{Settings{InputDivert: append(auto("eth0", 25), auto("eth1", 25)...)}, ""},
		{Settings{InputDivert: auto("", 25)}, "InputDivert: interface: is missing in Auto(protected:25); name the interface on which clients arrive"},
		{Settings{ForwardDivert: auto("", 25)}, "ForwardDivert: interface: is missing in Auto(protected:25); name the interface on which clients arrive"},
		{Settings{ForwardDivert: append(auto("a", 25), auto("a,b", 25)...)}, `ForwardDivert: port 25 of interface "a" is given twice`},
		{Settings{ForwardDivert: append(auto("a", 25), Spec{})}, "ForwardDivert: Off stands beside Auto(…); write one or the other"},
		{Settings{ClientPacketsMark: Mark{0x80000000, 0x80000000}}, "LocalDeliveryMark (0x80000000) and ClientPacketsMark (0x80000000) share bits 0x80000000; each needs bits of its own"},
		{Settings{FailMode: "Shut"}, `FailMode: "Shut" is neither Closed nor Open`},
		{Settings{ExcludedProc: []string{"exim4"}}, `ExcludedProc: "exim4" is not a full path`},
	} {
		err := c.s.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%+v: %v, want %s", c.s, err, c.want)
		}
	}
}

func TestSettingsAsJSON(t *testing.T) {
	in := Settings{ForwardDivert: auto("gc", 25), ClientPacketsMark: Mark{1, 3}, OutputDivertNfqueueNumber: Queue{7, true}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Settings
	if err := json.Unmarshal(b, &out); err != nil || out.ForwardDivert[0].String() != "Auto(interface:gc protected:25)" ||
		out.ClientPacketsMark != in.ClientPacketsMark || out.OutputDivertNfqueueNumber != in.OutputDivertNfqueueNumber {
		t.Errorf("%s: %+v, %v", b, out, err)
	}
}

func TestShow(t *testing.T) {
	text, err := Show(Settings{ForwardDivert: auto("eth0", 25)})
	if err != nil || !strings.Contains(text, `iifname "eth0" tcp dport 25`) || !strings.Contains(text, "stand-ins") {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := Show(Settings{ForwardDivert: auto("", 25)}); err == nil {
		t.Error("bad settings are shown")
	}
}

func FuzzSpec(f *testing.F) {
	for _, s := range []string{"Off", "Auto(interface:eth0 protected:25,110,143)", "Auto(protected:1)", "Auto(interface:a,b protected:2)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var d, again Spec
		if d.UnmarshalText([]byte(s)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again.String() != d.String() {
			t.Errorf("%q: %s, read again %s, %v", s, d, again, err)
		}
	})
}
