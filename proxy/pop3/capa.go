package pop3

import (
	"slices"
	"strings"

	"mailweir/proxy/smtpwire"
)

// filter decides about the lines of a listing.
type filter struct {
	line func(text string) (string, bool)
	end  func()
}

// filter returns what decides about the lines of the reply to p.
func (s *session) filter(p pending) filter {
	f := filter{line: func(text string) (string, bool) { return text, true }, end: func() {}}
	var gone []string
	told := func() {
		if len(gone) > 0 && !s.told("feature-removed") {
			s.special("feature-removed", strings.Join(gone, " "))
		}
	}
	switch p.verb {
	case "CAPA":
		s.state.mechanisms = nil
		f.line = func(text string) (string, bool) { return s.capability(text, &gone) }
		f.end = told
	case "AUTH": // P-009: the list of old
		var all []string
		f.line = func(text string) (string, bool) {
			if len(all) < maxMechanisms {
				all = append(all, strings.TrimSpace(text))
			}
			return "", false
		}
		f.end = func() {
			for _, m := range s.mechanisms(all, &gone) {
				s.say(m)
			}
			s.state.mechanisms = all
			told()
		}
	case "LIST":
		f.line = func(text string) (string, bool) { return s.listLine(text), true }
	case "UIDL":
		f.line = func(text string) (string, bool) { s.uidlLine(text); return text, true }
	}
	return f
}

// maxMechanisms bounds what is remembered of a list of SASL mechanisms.
const maxMechanisms = 100

// capability decides about a line of the reply to CAPA (RFC 2449 §5). Blanks before the keyword do not save it.
func (s *session) capability(text string, gone *[]string) (string, bool) {
	word, args, _ := strings.Cut(strings.TrimLeft(text, " \t"), " ")
	keep := false
	switch word = strings.ToUpper(word); word {
	case "TOP", "USER", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "LOGIN-DELAY", "EXPIRE", "PIPELINING", "UTF8", "LANG",
		"IMPLEMENTATION":
		keep = true
	case "STLS":
		keep = !s.state.tls
	case "SASL":
		all := strings.Fields(args)
		s.state.mechanisms = all[:min(len(all), maxMechanisms)]
		kept := s.mechanisms(all, gone)
		if len(kept) == len(all) && len(all) > 0 {
			return text, true
		}
		if len(kept) == 0 {
			if len(all) > 0 && !s.told("no-auth-mechanism") {
				s.special("no-auth-mechanism", "none of the server's AUTH mechanisms can pass")
			}
			return "", false
		}
		return "SASL " + strings.Join(kept, " "), true
	}
	if !keep {
		*gone = append(*gone, printable(word, 40))
	}
	return text, keep
}

// mechanisms filters a list of SASL mechanisms by the rules of the AUTH keyword of SMTP (section 1.4).
func (s *session) mechanisms(all []string, gone *[]string) []string {
	o := smtpwire.FilterEHLO(&smtpwire.Reply{Code: 250, Lines: []string{"mechanisms", "AUTH " + strings.Join(all, " ")}},
		smtpwire.Policy{TLS: s.state.tls, UpstreamVerified: s.state.verified, KeepScram: s.h.set.ScramPolicy == "Keep"})
	for _, r := range o.Removed {
		if slices.Contains(all, r.Item) {
			*gone = append(*gone, "SASL="+printable(r.Item, 40))
		}
	}
	return strings.Fields(o.Caps["AUTH"])
}

// mechanism reports whether a client may use one, and whether it is shown though the server could bind the channel.
func (s *session) mechanism(name string) (ok, downgrade bool) {
	all := s.state.mechanisms
	has := func(l []string, name string) bool {
		return slices.ContainsFunc(l, func(m string) bool { return strings.EqualFold(m, name) })
	}
	if !has(all, name) {
		all = append(slices.Clone(all), name)
	}
	var gone []string
	return has(s.mechanisms(all, &gone), name), strings.HasPrefix(name, "SCRAM-") && has(all, name+"-PLUS")
}
