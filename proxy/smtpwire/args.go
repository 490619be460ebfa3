package smtpwire

import (
	"strconv"
	"strings"
)

// ParseBDAT parses a BDAT command (RFC 3030 §2): one blank, digits without sign or leading zeros, and " LAST" or
// nothing. After an error the number of octets that follow is not known, so nothing more can be read from the client.
func ParseBDAT(c Command) (size int64, last bool, err error) {
	if c.Odd != "" || len(c.Raw) < 5 || c.Raw[4] != ' ' {
		return 0, false, bad("BDAT")
	}
	n, word, more := strings.Cut(c.Rest, " ")
	if more && !strings.EqualFold(word, "LAST") {
		return 0, false, bad("BDAT: %q", cut(word))
	}
	if n == "" || len(n) > 1 && n[0] == '0' || strings.Trim(n, "0123456789") != "" {
		return 0, false, bad("BDAT: size %q", cut(n))
	}
	if size, err = strconv.ParseInt(n, 10, 64); err != nil {
		return 0, false, bad("BDAT: size %q", cut(n))
	}
	return size, more, nil
}

// Auth is the argument of AUTH (RFC 4954 §4).
type Auth struct {
	Mechanism string // in capitals
	Initial   string // base64, as sent; empty for "=", too
	Given     bool   // there was an initial response
}

// ParseAuth parses what follows AUTH and a blank.
func ParseAuth(rest string) (Auth, error) {
	f := strings.Fields(rest)
	if len(f) == 0 || len(f) > 2 {
		return Auth{}, bad("AUTH")
	}
	a := Auth{Mechanism: strings.ToUpper(f[0])}
	if strings.Trim(a.Mechanism, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" || len(a.Mechanism) > 20 {
		return Auth{}, bad("AUTH mechanism") // RFC 4422 §3.1
	}
	if len(f) == 2 {
		a.Given = true
		if f[1] != "=" { // RFC 4954 §4: an empty response
			a.Initial = f[1]
		}
	}
	return a, nil
}

// ParseAttributes parses what follows XCLIENT or XFORWARD and a blank: NAME=value, separated by blanks.
func ParseAttributes(rest string) ([]Param, error) {
	list, err := params(rest)
	if err == nil && len(list) == 0 {
		err = bad("attribute expected")
	}
	for _, p := range list {
		if !p.Given && err == nil {
			err = bad("attribute %q", cut(p.Name))
		}
	}
	return list, err
}
