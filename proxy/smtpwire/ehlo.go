package smtpwire

import (
	"slices"
	"strconv"
	"strings"
)

// Policy says which capabilities a client may be shown.
type Policy struct {
	TLS              bool     // both legs are encrypted
	UpstreamVerified bool     // the server's certificate was verified
	StartTLS         bool     // the gateway can stand between the two ends of STARTTLS
	Chunking         bool     // BDAT and BINARYMIME are spoken
	KeepScram        bool     // keep SCRAM even where the server binds it to its channel (S-087)
	AuthNeedsTLS     bool     // hide AUTH on an open leg
	NoAnonymous      bool     // hide the mechanism ANONYMOUS
	TrustedClient    bool     // XCLIENT and XFORWARD pass
	MaxSize          int64    // what the spool takes; SIZE shows no more than that. 0: SIZE is not touched
	Allow            []string // further keywords, in capitals, that the administrator lets pass untouched
}

// Capabilities are the keywords a client was shown, in capitals, with their parameters as shown. Nil has none, which
// is right after HELO.
type Capabilities map[string]string

// Has reports whether the keyword, in capitals, was shown.
func (c Capabilities) Has(keyword string) bool {
	_, ok := c[keyword]
	return ok
}

// Mechanism reports whether the SASL mechanism was shown.
func (c Capabilities) Mechanism(name string) bool {
	return slices.ContainsFunc(strings.Fields(c["AUTH"]), func(m string) bool { return strings.EqualFold(m, name) })
}

// Removal is something that a client was not shown.
type Removal struct {
	Keyword string // in capitals; "AUTH" for a mechanism
	Item    string // the line or mechanism as the server wrote it
	Why     string
}

// Offer is the outcome of FilterEHLO.
type Offer struct {
	Reply   []byte       // what the client is shown
	Lines   []string     // the same, without codes
	Caps    Capabilities // what the client may use
	Server  Capabilities // what the server offers, unfiltered
	Removed []Removal
	// ScramDowngrade: plain SCRAM is shown though the server binds channels; clients that can bind too will be
	// refused by the server (RFC 5802 §6).
	ScramDowngrade bool
	// NoMechanism: there was an AUTH line, and none of its mechanisms could be kept.
	NoMechanism bool
}

// FilterEHLO filters a positive reply to EHLO (or LHLO) by an allowlist: the greeting and the lines that stay keep
// their octets and their order, unknown keywords go. For another reply the Offer repeats it and holds no capability.
func FilterEHLO(r *Reply, p Policy) *Offer {
	o := &Offer{Caps: Capabilities{}, Server: Capabilities{}}
	if !r.Positive() {
		o.Lines, o.Reply = r.Lines, r.Raw
		return o
	}
	for _, l := range r.Lines[1:] {
		kw, _, args := splitKeyword(l)
		if old, ok := o.Server[kw]; ok && kw == "AUTH" {
			args = old + " " + args
		} else if ok {
			continue
		}
		o.Server[kw] = args
	}
	o.Lines = append(o.Lines, r.Lines[0])
	for _, l := range r.Lines[1:] {
		o.line(l, p)
	}
	o.Reply = FormatLines(r.Code, o.Lines)
	return o
}

// line decides about one line.
func (o *Offer) line(l string, p Policy) {
	kw, prefix, args := splitKeyword(l)
	why := ""
	switch kw {
	case "PIPELINING", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES", "SMTPUTF8", "DELIVERBY", "MT-PRIORITY",
		"FUTURERELEASE", "LIMITS", "ETRN", "VRFY", "EXPN", "HELP", "NO-SOLICITING", "MTRK", "RRVS", "SUBMITTER":
	case "SIZE":
		l, args = limitSize(l, prefix, args, p.MaxSize)
	case "CHUNKING":
		why = unless(p.Chunking, "BDAT is not spoken")
	case "BINARYMIME": // RFC 3030 §3: useless, and dangerous, without BDAT
		why = unless(p.Chunking && o.Server.Has("CHUNKING"), "BDAT is not spoken")
	case "STARTTLS":
		if why = unless(!p.TLS, "in use already"); why == "" {
			why = unless(p.StartTLS, "TLS is not unwrapped")
		}
	case "REQUIRETLS": // RFC 8689: a promise about the other leg
		why = unless(p.TLS && p.UpstreamVerified, "the server's certificate is not verified")
	case "AUTH":
		l, args, why = o.mechanisms(prefix, args, p)
	case "XCLIENT", "XFORWARD":
		why = unless(p.TrustedClient, "client is not trusted")
	default:
		why = unless(slices.Contains(p.Allow, kw), "not on the list")
	}
	if why != "" {
		o.Removed = append(o.Removed, Removal{kw, l, why})
		return
	}
	o.Lines = append(o.Lines, l)
	if old, ok := o.Caps[kw]; !ok {
		o.Caps[kw] = args
	} else if kw == "AUTH" {
		o.Caps[kw] = old + " " + args
	}
}

func unless(ok bool, why string) string {
	if ok {
		return ""
	}
	return why
}

// splitKeyword splits a line of an EHLO reply. Leniency of clients decides here: blanks before the keyword, tabs and
// the old form AUTH=LOGIN are what some of them accept, so a line must not escape the filter by them.
func splitKeyword(l string) (keyword, prefix, args string) {
	start := len(l) - len(strings.TrimLeft(l, " \t"))
	end := start
	for end < len(l) && l[end] != ' ' && l[end] != '\t' {
		if l[end] == '=' && strings.EqualFold(l[start:end], "AUTH") {
			break
		}
		end++
	}
	at := end
	for at < len(l) && (l[at] == ' ' || l[at] == '\t' || l[at] == '=' && strings.EqualFold(l[start:end], "AUTH")) {
		at++
	}
	return strings.ToUpper(l[start:end]), l[:at], strings.TrimRight(l[at:], " \t")
}

// limitSize shows at most limit as SIZE. RFC 1870 §3: no parameter, or 0, is no limit.
func limitSize(l, prefix, args string, limit int64) (line, value string) {
	if limit <= 0 {
		return l, args
	}
	n, err := strconv.ParseUint(args, 10, 64)
	if err == nil && n > 0 && n <= uint64(limit) {
		return l, args
	}
	v := strconv.FormatInt(limit, 10)
	return strings.TrimRight(prefix, " \t") + " " + v, v
}

// mechanisms filters the list of an AUTH line.
func (o *Offer) mechanisms(prefix, args string, p Policy) (line, kept, why string) {
	if p.AuthNeedsTLS && !p.TLS {
		return prefix + args, "", "not without TLS"
	}
	all := strings.Fields(o.Server["AUTH"])
	plus := slices.ContainsFunc(all, func(m string) bool { return isScram(m) && hasPlus(m) })
	other := slices.ContainsFunc(all, isPassword)
	var keep []string
	for _, m := range strings.Fields(args) {
		up := strings.ToUpper(m)
		why := ""
		switch {
		case isScram(up) && hasPlus(up):
			why = "bound to the server's channel"
		case isScram(up):
			// RFC 5802 §6: a client that can bind says so, and a server that can, too, takes the missing
			// -PLUS for an attack.
			if plus && p.TLS && other && !p.KeepScram {
				why = "the server binds its channel"
			} else if plus {
				o.ScramDowngrade = true
			}
		case isPassword(up), up == "CRAM-MD5", up == "NTLM":
		case up == "ANONYMOUS":
			why = unless(!p.NoAnonymous, "not allowed")
		default: // DIGEST-MD5, GSSAPI … may put a layer of their own over the connection
			why = "not on the list"
		}
		if why != "" {
			o.Removed = append(o.Removed, Removal{"AUTH", m, why})
			continue
		}
		keep = append(keep, m)
	}
	kept = strings.Join(keep, " ")
	if len(keep) == 0 {
		o.NoMechanism = o.NoMechanism || !o.Caps.Has("AUTH")
		return prefix + args, "", "no mechanism is left"
	}
	o.NoMechanism = false
	if len(keep) == len(strings.Fields(args)) {
		return prefix + args, kept, ""
	}
	return prefix + kept, kept, ""
}

// isScram reports whether m is one of the SCRAM family (RFC 5802, RFC 7677).
func isScram(m string) bool {
	m = strings.TrimSuffix(strings.ToUpper(m), "-PLUS")
	return m == "SCRAM-SHA-1" || m == "SCRAM-SHA-224" || m == "SCRAM-SHA-256" || m == "SCRAM-SHA-384" ||
		m == "SCRAM-SHA-512" || m == "SCRAM-SHA3-512"
}

func hasPlus(m string) bool { return strings.HasSuffix(strings.ToUpper(m), "-PLUS") }

// isPassword reports whether m sends a secret that does not depend on the channel.
func isPassword(m string) bool {
	switch strings.ToUpper(m) {
	case "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER":
		return true
	}
	return false
}
