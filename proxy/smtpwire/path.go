package smtpwire

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Param is one parameter, as written.
type Param struct {
	Name  string // as written; compare with Is
	Value string
	Given bool // an equals sign was there
}

// Is reports whether the parameter has the name.
func (p Param) Is(name string) bool { return strings.EqualFold(p.Name, name) }

// String returns the parameter as written.
func (p Param) String() string {
	if p.Given {
		return p.Name + "=" + p.Value
	}
	return p.Name
}

// Path is the argument of MAIL or RCPT.
type Path struct {
	Address  string // as written, without brackets and source route; empty for <>
	Route    string // "@a,@b", which servers ignore (RFC 5321 §4.1.1.3)
	Brackets bool   // there were angle brackets
	Params   []Param
}

// Param returns the first parameter of that name.
func (p *Path) Param(name string) (Param, bool) {
	for _, x := range p.Params {
		if x.Is(name) {
			return x, true
		}
	}
	return Param{}, false
}

// ParseMail parses what follows MAIL and a blank.
func ParseMail(rest string) (Path, error) { return parsePath("FROM", rest) }

// ParseRcpt parses what follows RCPT and a blank.
func ParseRcpt(rest string) (Path, error) { return parsePath("TO", rest) }

// parsePath accepts what RFC 5321 §4.1.2 allows, and what common clients send, as far as every server extracts the
// same address from it. An error says that the envelope cannot be told.
func parsePath(key, rest string) (Path, error) {
	var p Path
	if len(rest) <= len(key) || !strings.EqualFold(rest[:len(key)], key) || rest[len(key)] != ':' {
		return p, bad("%s: expected", key)
	}
	for i := 0; i < len(rest); i++ {
		if c := rest[i]; c < ' ' || c == 0x7f {
			return p, bad("control character")
		}
	}
	if !utf8.ValidString(rest) {
		return p, bad("address is not UTF-8") // RFC 6531 §3.3
	}
	s := strings.TrimLeft(rest[len(key)+1:], " ") // S-112: a blank is seen of many clients
	if s == "" {
		return p, bad("address expected")
	}
	var err error
	if s[0] == '<' {
		p.Brackets = true
		s = s[1:]
		if p.Route, s, err = route(s); err != nil {
			return p, err
		}
		if p.Address, s, err = address(s); err != nil {
			return p, err
		}
		if s == "" || s[0] != '>' {
			return p, bad("no > behind the address")
		}
		if s = s[1:]; p.Address == "" && p.Route != "" {
			return p, bad("route without address")
		}
	} else {
		if p.Address, s, err = address(s); err != nil {
			return p, err
		}
		if p.Address == "" {
			return p, bad("address expected")
		}
	}
	if s != "" && s[0] != ' ' {
		return p, bad("unexpected %q behind the address", cut(s))
	}
	p.Params, err = params(s)
	return p, err
}

// bad makes an error about syntax.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSyntax, fmt.Sprintf(format, args...))
}

// cut shortens octets of a client for an error.
func cut(s string) string {
	if len(s) > 20 {
		return s[:20] + "…"
	}
	return s
}

// route takes a source route "@a,@b:" off s.
func route(s string) (r, rest string, err error) {
	if s == "" || s[0] != '@' {
		return "", s, nil
	}
	i := 0
	for {
		if i >= len(s) || s[i] != '@' {
			return "", "", bad("source route")
		}
		n := domain(s[i+1:])
		if n == 0 {
			return "", "", bad("source route")
		}
		i += 1 + n
		if i < len(s) && s[i] == ':' {
			return s[:i], s[i+1:], nil
		}
		if i >= len(s) || s[i] != ',' {
			return "", "", bad("source route")
		}
		i++
	}
}

// address takes a mailbox off s: local part, quoted or not, and an optional domain.
func address(s string) (a, rest string, err error) {
	i := 0
	if s != "" && s[0] == '"' {
		for i = 1; ; i++ {
			if i >= len(s) {
				return "", "", bad("quoted local part does not end")
			}
			if s[i] == '\\' {
				i++
			} else if s[i] == '"' {
				break
			}
		}
		if i++; i == 2 {
			return "", "", bad("empty local part")
		}
	} else {
		for i < len(s) && isAtext(s[i]) {
			i++
		}
	}
	if i == len(s) || s[i] != '@' {
		return s[:i], s[i:], nil
	}
	if i == 0 {
		return "", "", bad("empty local part")
	}
	n := domain(s[i+1:])
	if n == 0 {
		return "", "", bad("domain expected")
	}
	i += 1 + n
	return s[:i], s[i:], nil
}

// isAtext reports whether c may stand in an unquoted local part: atext of RFC 5321 §4.1.2, dots anywhere, and UTF-8.
func isAtext(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80 ||
		strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) >= 0
}

// domain returns the length of the domain or address literal at the begin of s.
func domain(s string) int {
	if s != "" && s[0] == '[' {
		for i := 1; i < len(s); i++ {
			switch c := s[i]; {
			case c == ']' && i > 1:
				return i + 1
			case c == ' ' || c == '[' || c == ']' || c == '\\' || c == '<' || c == '>':
				return 0
			}
		}
		return 0
	}
	i := 0
	for i < len(s) && (s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || s[i] >= '0' && s[i] <= '9' ||
		s[i] >= 0x80 || s[i] == '-' || s[i] == '.' || s[i] == '_') {
		i++
	}
	return i
}

// params splits parameters. Order and duplicates are kept.
func params(s string) ([]Param, error) {
	var list []Param
	for _, f := range strings.Split(s, " ") {
		if f == "" {
			continue
		}
		name, value, given := strings.Cut(f, "=")
		if !isKeyword(name) || given && value == "" {
			return nil, bad("parameter %q", cut(f))
		}
		list = append(list, Param{name, value, given})
	}
	return list, nil
}

// isKeyword reports whether s is an esmtp-keyword (RFC 5321 §4.1.2).
func isKeyword(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' && i > 0) {
			return false
		}
	}
	return s != ""
}

// Refused is a parameter that the client may not use, and the answer to it.
type Refused struct {
	Param    Param
	Code     int
	Enhanced string
	Text     string
}

// CheckParams looks for parameters that belong to a capability which the client was not shown (S-052), and for ones
// given twice, which servers read differently. It returns nil when there is none.
func CheckParams(list []Param, caps Capabilities, allow []string) *Refused {
	for i, p := range list {
		for _, q := range list[:i] {
			if q.Is(p.Name) {
				return &Refused{p, 501, "5.5.4", "parameter given twice"}
			}
		}
		kw := strings.ToUpper(p.Name)
		switch kw {
		case "SIZE", "SMTPUTF8", "AUTH", "MT-PRIORITY", "REQUIRETLS", "MTRK", "RRVS", "SUBMITTER":
		case "BODY":
			kw = "8BITMIME"
			if strings.EqualFold(p.Value, "BINARYMIME") {
				kw = "BINARYMIME"
			}
		case "RET", "ENVID", "NOTIFY", "ORCPT":
			kw = "DSN"
		case "BY":
			kw = "DELIVERBY"
		case "HOLDFOR", "HOLDUNTIL":
			kw = "FUTURERELEASE"
		case "SOLICIT":
			kw = "NO-SOLICITING"
		default:
			if !slices.Contains(allow, kw) {
				return &Refused{p, 555, "5.5.4", "parameter not recognized"}
			}
			continue
		}
		if caps.Has(kw) {
			continue
		}
		if kw == "REQUIRETLS" { // RFC 8689 §4.1
			return &Refused{p, 550, "5.7.30", "REQUIRETLS support required"}
		}
		return &Refused{p, 555, "5.5.4", "parameter not recognized"}
	}
	return nil
}
