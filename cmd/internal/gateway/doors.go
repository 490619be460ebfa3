package gateway

import (
	"fmt"
	"slices"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/divert"
	"mailweir/inspect"
)

// door says whether there is a door for a port, and if not, why it is not diverted. Ports that belong to nothing we
// know go to the SMTP door, which looks at the first octets and decides by Smtp.NotSmtpTunnel.
func door(s *config.LinuxFirewall, port uint16) (ok bool, reason string) {
	switch port {
	case 110, 995:
		if !s.InspectPop3 {
			return false, "InspectPop3 is Off"
		}
		return false, "this version has no POP3 door yet"
	case 143, 993:
		if !s.InspectImap {
			return false, "InspectImap is Off"
		}
		return false, "this version has no IMAP door yet"
	}
	if !s.InspectSmtp {
		return false, "InspectSmtp is Off"
	}
	return true, ""
}

// implicitTLS says whether TLS begins at once on a port. RFC 8314 §3
func implicitTLS(port uint16) bool { return port == 465 || port == 993 || port == 995 }

// hasDoor is what divert asks before it diverts a port.
func (g *Gateway) hasDoor(port uint16) bool {
	ok, _ := door(&g.current.Load().settings.LinuxFirewall, port)
	return ok
}

// Skipped lists the ports that the settings name and that are not diverted.
func Skipped(s *config.LinuxFirewall) []control.Skipped {
	var ports []uint16
	for _, list := range [][]divert.Spec{s.Divert.InputDivert, s.Divert.ForwardDivert, s.Divert.OutputDivert} {
		for _, d := range list {
			ports = append(ports, d.Ports...)
		}
	}
	slices.Sort(ports)
	var out []control.Skipped
	for _, p := range slices.Compact(ports) {
		if ok, reason := door(s, p); !ok {
			out = append(out, control.Skipped{Port: p, Reason: reason})
		}
	}
	return out
}

// Diverted returns what the settings ask to divert, less the ports for which there is no door.
func Diverted(s *config.LinuxFirewall) divert.Settings {
	d := s.Divert
	for _, list := range []*[]divert.Spec{&d.InputDivert, &d.ForwardDivert, &d.OutputDivert} {
		var kept []divert.Spec
		for _, spec := range *list {
			spec.Ports = slices.DeleteFunc(slices.Clone(spec.Ports), func(p uint16) bool {
				ok, _ := door(s, p)
				return !ok
			})
			if spec.On() {
				kept = append(kept, spec)
			}
		}
		*list = kept
	}
	return d
}

// tellSkipped logs and records what is not diverted although it is asked for, as far as it was not so before, and
// returns it as notes for people.
func (g *Gateway) tellSkipped(now, before *config.LinuxFirewall) (notes []string) {
	known := Skipped(before)
	for _, k := range Skipped(now) {
		if slices.Contains(known, k) {
			continue
		}
		note := fmt.Sprintf("port %d is not diverted: %s", k.Port, k.Reason)
		notes = append(notes, note)
		g.log.Warn("port is not diverted", "port", k.Port, "reason", k.Reason)
		g.events.Record(inspect.Event{Event: "not-diverted", Reason: k.Reason, Detail: note})
	}
	return notes
}
