package pop3

import (
	"strconv"
	"strings"

	"mailweir/proxy/smtpwire"
)

const (
	maxCommand   = 255     // RFC 2449 §4, the line end included
	maxReplyLine = 8 << 10 // RFC 2449 §4 has 512; servers differ
	maxNumber    = 1<<31 - 1
)

// reading says how the reply to a command is to be read. A reply -ERR is one line always.
type reading uint8

const (
	single  reading = iota
	many            // lines up to a final dot
	content         // a message
	apart           // a conversation of its own
)

// form says what arguments a command has, and how its reply is read.
type form struct {
	args   string // "": none; "n": a message; "[n]": perhaps; "n k"; "*": anything; "[*]": anything or nothing
	reply  reading
	before bool // sends a password
}

// formOf returns the form of a verb in capitals, and whether the verb may pass. RFC 1939 §5 to §7, RFC 2449, RFC 6856;
// what is not here may upload mail (XTND XMIT), change how replies are framed, or be nothing at all.
func formOf(verb string, bare bool) (form, bool) {
	switch verb {
	case "NOOP", "STAT", "RSET", "QUIT", "STLS", "LAST":
		return form{}, true
	case "CAPA":
		return form{reply: many}, true
	case "USER", "APOP", "PASS":
		return form{args: "*", before: true}, true
	case "AUTH":
		return form{args: "[*]", reply: apart, before: true}, true
	case "DELE":
		return form{args: "n"}, true
	case "LIST", "UIDL":
		if bare {
			return form{args: "[n]", reply: many}, true
		}
		return form{args: "[n]"}, true
	case "LANG":
		if bare {
			return form{args: "[*]", reply: many}, true
		}
		return form{args: "[*]"}, true
	case "UTF8":
		return form{args: "[*]"}, true
	case "RETR":
		return form{args: "n", reply: content}, true
	case "TOP":
		return form{args: "n k", reply: content}, true
	}
	return form{}, false
}

// command is a command of the client's.
type command struct {
	line string // as sent, without its end
	verb string // in capitals
	rest string // behind the first blank
	bare bool   // there is no blank
	n, k int    // numbers, where the verb has them
}

// parseCommand reads a command line. ok is false when its arguments cannot be read in exactly one way: a server could
// take "RETR 1x" for message 1, and "RETR 01" for none (P-021).
func parseCommand(line string) (c command, f form, known, ok bool) {
	c.line = line
	verb, rest, blank := strings.Cut(line, " ")
	c.verb, c.rest, c.bare = strings.ToUpper(verb), rest, !blank
	if f, known = formOf(c.verb, c.bare); !known {
		return c, f, false, false
	}
	switch f.args {
	case "":
		ok = c.bare
	case "*":
		ok = !c.bare && rest != ""
	case "[*]":
		ok = c.bare || strings.Trim(rest, " \t") != ""
	case "n":
		c.n, ok = number(rest, 1)
	case "[n]":
		if ok = c.bare; !ok {
			c.n, ok = number(rest, 1)
		}
	case "n k":
		n, k, _ := strings.Cut(rest, " ")
		c.n, ok = number(n, 1)
		if ok {
			c.k, ok = number(k, 0)
		}
	}
	return c, f, true, ok
}

// number reads digits, without sign and without leading zeros, of at least least.
func number(s string, least int) (int, bool) {
	if s == "" || len(s) > 10 || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= least && n <= maxNumber
}

// statusOf reads the first line of a reply: +OK or -ERR, alone or before a blank.
func statusOf(l smtpwire.Line) (positive, ok bool) {
	if !l.Clean() {
		return false, false
	}
	word, _, _ := strings.Cut(string(l.Text), " ")
	return word == "+OK", word == "+OK" || word == "-ERR"
}

// sizeLine reads "n size" with nothing else, as in LIST.
func sizeLine(text string) (n int, size int64, ok bool) {
	a, b, _ := strings.Cut(text, " ")
	if n, ok = number(a, 1); !ok || b == "" || len(b) > 18 || strings.Trim(b, "0123456789") != "" {
		return 0, 0, false
	}
	size, err := strconv.ParseInt(b, 10, 64)
	return n, size, err == nil
}
