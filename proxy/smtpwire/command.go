package smtpwire

import "strings"

// Command is one command line.
type Command struct {
	Raw  string // the line without its end, as received
	Verb string // in capitals
	Rest string // what follows the verb and one blank
	// Odd says in words what makes the line one that servers may read differently: blanks before the verb, a tab
	// or several blanks behind it, control characters. Empty for usual lines.
	Odd string
}

// ParseCommand splits a line. It never fails: what is no command has a Verb that Lookup does not know.
func ParseCommand(text []byte) Command {
	c := Command{Raw: string(text)}
	s := c.Raw
	if t := strings.TrimLeft(s, " \t"); len(t) != len(s) {
		c.Odd, s = "blank before the verb", t
	}
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		c.Rest = s[i+1:]
		if s[i] == '\t' {
			c.Odd = "tab behind the verb"
		} else if c.Rest != "" && (c.Rest[0] == ' ' || c.Rest[0] == '\t') && strings.Trim(c.Rest, " \t") != "" {
			c.Odd = "several blanks behind the verb"
		}
		s = s[:i]
	}
	c.Verb = strings.ToUpper(s)
	for i := 0; i < len(c.Raw); i++ {
		if b := c.Raw[i]; b < ' ' && b != '\t' || b == 0x7f {
			c.Odd = "control character"
			break
		}
	}
	return c
}

// Flags say what a door has to know about a verb.
type Flags uint16

// The flags.
const (
	// BeforeTLS: legal where TLS is demanded and not yet in use (RFC 3207 §4).
	BeforeTLS Flags = 1 << iota
	// BeforeHello: legal before EHLO or HELO (RFC 5321 §4.1.4).
	BeforeHello
	// Hello: begins the session anew when the server agrees.
	Hello
	// Content: carries a message, or is followed by one.
	Content
	// Transaction: begins, builds or ends the envelope.
	Transaction
	// EndsGroup: may only be the last of a pipelined group (RFC 2920 §3.1), since the client's next octets depend
	// on its reply or are not commands.
	EndsGroup
	// NeedsArgument: has no meaning without one.
	NeedsArgument
	// NoArgument: must not have one.
	NoArgument
	// Denied: never forwarded; the door answers with Code and Enhanced.
	Denied
	// Trusted: Denied unless the client is trusted and the server offers Keyword.
	Trusted
	// Foreign: another protocol's; whoever says it does not speak SMTP.
	Foreign
	// Secret: the rest of the line must not be logged.
	Secret
)

// Verb is a row of the table of verbs.
type Verb struct {
	Name     string
	Flags    Flags
	Keyword  string // the capability that must have been shown to the client; empty when none is needed
	Limit    int    // octets of a line, its end included
	Code     int    // of the refusal, for Denied, Trusted and Foreign verbs and those whose Keyword was not shown
	Enhanced string
}

// Has reports whether all of f are set.
func (v Verb) Has(f Flags) bool { return v.Flags&f == f }

// Lookup returns the row of a verb in capitals. An unknown one gives a row that refuses it, and false.
func Lookup(name string) (Verb, bool) {
	v := Verb{Name: name, Limit: MaxCommand, Code: 502, Enhanced: "5.5.1"}
	switch name {
	case "EHLO", "HELO":
		v.Flags = BeforeTLS | BeforeHello | Hello | EndsGroup
	case "LHLO": // RFC 2033: a reply for each recipient; only where LMTP is spoken (S-221)
		v.Flags, v.Code = BeforeTLS|BeforeHello|Hello|EndsGroup|Denied, 500
	case "MAIL":
		v.Flags, v.Limit = Transaction|NeedsArgument, MaxMailRcpt
	case "RCPT":
		v.Flags, v.Limit = Transaction|NeedsArgument, MaxMailRcpt
	case "DATA":
		v.Flags = Transaction | Content | EndsGroup | NoArgument
	case "BDAT": // RFC 3030
		v.Flags, v.Keyword = Transaction|Content|NeedsArgument, "CHUNKING"
	case "RSET":
		v.Flags = BeforeHello | Transaction | NoArgument
	case "NOOP":
		v.Flags = BeforeTLS | BeforeHello | EndsGroup
	case "QUIT":
		v.Flags = BeforeTLS | BeforeHello | EndsGroup | NoArgument
	case "HELP":
		v.Flags = BeforeHello
	case "VRFY", "EXPN":
		v.Flags = BeforeHello | EndsGroup | NeedsArgument
	case "ETRN": // RFC 1985
		v.Flags = NeedsArgument
	case "STARTTLS": // RFC 3207
		v.Flags, v.Keyword = BeforeTLS|EndsGroup|NoArgument, "STARTTLS"
	case "AUTH": // RFC 4954
		v.Flags, v.Keyword, v.Limit = EndsGroup|NeedsArgument|Secret, "AUTH", MaxAuthLine
	case "XCLIENT": // Postfix: begins the session anew (220)
		v.Flags, v.Keyword, v.Limit = Trusted|Hello|EndsGroup|NeedsArgument, "XCLIENT", MaxMailRcpt
	case "XFORWARD":
		v.Flags, v.Keyword, v.Limit = Trusted|NeedsArgument, "XFORWARD", MaxMailRcpt
	case "BURL": // RFC 4468: content that never crosses the gateway
		v.Flags = Denied | Content
	case "SEND", "SOML", "SAML", // RFC 821: other names of MAIL
		"TURN", "ATRN", // roles reversed
		"XEXCH50", "X-ANONYMOUSTLS", "X-EXPS", "XPROXY", "XPROXYFROM", "XPROXYTO", "XSESSIONPARAMS", "XSHADOW",
		"XSHADOWREQUEST", "XLINK2STATE", "XRDST", "XOORG", "XMESSAGECONTEXT", // Exchange: own framings
		"VERB", "ONEX", "XADR", "XSTA", "XCIR", "XGEN", "XUSR", "XDEBUG", "XREMOTEQUEUE", "XQUE": // own forms of reply
		v.Flags = Denied
	case "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI", "PROXY", "USER", "CAPA":
		v.Flags, v.Code, v.Enhanced = Denied|Foreign, 500, "5.5.2"
	default:
		v.Flags, v.Code, v.Enhanced = Denied, 500, "5.5.2"
		if strings.HasPrefix(name, "SSH-") || strings.Contains(name, "HTTP/") {
			v.Flags |= Foreign
		}
		return v, false
	}
	return v, true
}
