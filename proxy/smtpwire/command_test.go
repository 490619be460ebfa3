package smtpwire

import (
	"errors"
	"strings"
	"testing"
)

func TestParseCommand(t *testing.T) {
	for _, c := range []struct{ in, verb, rest, odd string }{
		{"NOOP", "NOOP", "", ""},
		{"noop", "NOOP", "", ""},
		{"Mail From:<a>", "MAIL", "From:<a>", ""},
		{"DATA ", "DATA", "", ""},
		{"DATA  ", "DATA", " ", ""},
		{" NOOP", "NOOP", "", "blank before the verb"},
		{"\tNOOP", "NOOP", "", "blank before the verb"},
		{"MAIL\tFROM:<a>", "MAIL", "FROM:<a>", "tab behind the verb"},
		{"MAIL  FROM:<a>", "MAIL", " FROM:<a>", "several blanks behind the verb"},
		{"MAIL\x0bFROM:<a>", "MAIL\x0bFROM:<A>", "", "control character"},
		{"MAILFROM:<a>", "MAILFROM:<A>", "", ""},
		{"", "", "", ""},
		{"AUTH PLAIN AGEAYg==", "AUTH", "PLAIN AGEAYg==", ""},
	} {
		got := ParseCommand([]byte(c.in))
		if got.Raw != c.in || got.Verb != c.verb || got.Rest != c.rest || got.Odd != c.odd {
			t.Errorf("%q: %+v", c.in, got)
		}
	}
}

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		name, verb string
		known      bool
		has, hasnt Flags
		code       int
	}{
		{"EHLO", "EHLO", true, BeforeTLS | Hello | EndsGroup | BeforeHello, Denied | Content, 502},
		{"S-221 LHLO is refused unless LMTP is spoken", "LHLO", true, Denied, Content, 500},
		{"MAIL", "MAIL", true, Transaction | NeedsArgument, BeforeTLS | BeforeHello | Denied, 502},
		{"DATA", "DATA", true, Content | EndsGroup | NoArgument, BeforeTLS | Denied, 502},
		{"BDAT", "BDAT", true, Content | NeedsArgument, EndsGroup | Denied, 502},
		{"AUTH", "AUTH", true, Secret | EndsGroup, BeforeTLS | Denied, 502},
		{"STARTTLS", "STARTTLS", true, BeforeTLS | EndsGroup | NoArgument, Denied, 502},
		{"VRFY", "VRFY", true, NeedsArgument, Denied | Content, 502},
		{"ETRN", "ETRN", true, NeedsArgument, Denied, 502},
		{"BURL", "BURL", true, Denied | Content, Foreign, 502},
		{"ATRN", "ATRN", true, Denied, Foreign, 502},
		{"TURN", "TURN", true, Denied, Foreign, 502},
		{"SOML", "SOML", true, Denied, Foreign, 502},
		{"XCLIENT", "XCLIENT", true, Trusted | Hello, Denied, 502},
		{"XFORWARD", "XFORWARD", true, Trusted, Denied | Hello, 502},
		{"XEXCH50", "XEXCH50", true, Denied, Foreign, 502},
		{"X-ANONYMOUSTLS", "X-ANONYMOUSTLS", true, Denied, Foreign, 502},
		{"VERB", "VERB", true, Denied, Foreign, 502},
		{"GET", "GET", true, Denied | Foreign, 0, 500},
		{"PROXY", "PROXY", true, Denied | Foreign, 0, 500},
		{"SSH", "SSH-2.0-X", false, Denied | Foreign, 0, 500},
		{"unknown", "FROBNICATE", false, Denied, Foreign, 500},
		{"lower case is not known: ParseCommand gives capitals", "noop", false, Denied, 0, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, known := Lookup(c.verb)
			if known != c.known || !v.Has(c.has) || v.Flags&c.hasnt != 0 || v.Code != c.code || v.Limit < MaxCommand || v.Enhanced == "" {
				t.Errorf("%+v, known %v", v, known)
			}
		})
	}
}

func TestParseBDAT(t *testing.T) {
	for _, c := range []struct {
		in   string
		size int64
		last bool
	}{{"BDAT 0", 0, false}, {"BDAT 5 LAST", 5, true}, {"bdat 86 last", 86, true}, {"BDAT 9223372036854775807", 1<<63 - 1, false}} {
		if size, last, err := ParseBDAT(ParseCommand([]byte(c.in))); err != nil || size != c.size || last != c.last {
			t.Errorf("%q: %d, %v, %v", c.in, size, last, err)
		}
	}
	for _, in := range []string{"BDAT", "BDAT ", "BDAT -1", "BDAT 0x10", "BDAT 18446744073709551616", "BDAT 9223372036854775808", "BDAT 5 LASTX",
		"BDAT 5  LAST", "BDAT 5\tLAST", "BDAT +5", "BDAT\t5", "BDAT  5", "BDAT 05", "BDAT 5 ", "BDAT 5 LAST ", " BDAT 5", "BDAT 5.", "BDAT ٥", "BDAT LAST"} {
		t.Run("S-157 "+in, func(t *testing.T) {
			if size, last, err := ParseBDAT(ParseCommand([]byte(in))); !errors.Is(err, ErrSyntax) || size != 0 || last {
				t.Errorf("%d, %v, %v", size, last, err)
			}
		})
	}
}

func TestParseAuth(t *testing.T) {
	for _, c := range []struct {
		rest string
		want Auth
		bad  bool
	}{
		{"PLAIN", Auth{"PLAIN", "", false}, false},
		{"plain AGEAYg==", Auth{"PLAIN", "AGEAYg==", true}, false},
		{"EXTERNAL =", Auth{"EXTERNAL", "", true}, false},
		{"SCRAM-SHA-256-PLUS", Auth{"SCRAM-SHA-256-PLUS", "", false}, false},
		{"", Auth{}, true},
		{"PLAIN a b", Auth{}, true},
		{"PLA\"IN", Auth{}, true},
		{strings.Repeat("A", 21), Auth{}, true},
	} {
		if got, err := ParseAuth(c.rest); got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: %+v, %v", c.rest, got, err)
		}
	}
}

func TestParseAttributes(t *testing.T) {
	list, err := ParseAttributes("ADDR=1.2.3.4 NAME=[UNAVAILABLE] addr=x+3Dy")
	if err != nil || len(list) != 3 || list[0].String() != "ADDR=1.2.3.4" || !list[2].Is("ADDR") || list[2].Value != "x+3Dy" {
		t.Errorf("%v, %v", list, err)
	}
	for _, bad := range []string{"", "ADDR", "ADDR=", "=x", "A D=x", "ADDR=1 NAME"} {
		if list, err := ParseAttributes(bad); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %v, %v", bad, list, err)
		}
	}
}

// FuzzParseCommand holds that a command is made of parts of its line.
func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"NOOP", " mail  FROM:<a>", "BDAT 5 LAST", "AUTH PLAIN =", "XCLIENT A=b", "\t\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := ParseCommand([]byte(s))
		if c.Raw != s || !strings.HasSuffix(s, c.Rest) || c.Verb != strings.ToUpper(c.Verb) || strings.ContainsAny(c.Verb, " \t") {
			t.Fatalf("%q: %+v", s, c)
		}
		if c.Odd == "" && c.Verb != "" && !strings.HasPrefix(strings.ToUpper(s), c.Verb) {
			t.Fatalf("%q: %+v", s, c)
		}
		if v, known := Lookup(c.Verb); !known && !v.Has(Denied) {
			t.Fatalf("%q: unknown and not denied", s)
		}
		if n, _, err := ParseBDAT(c); err == nil && n < 0 {
			t.Fatalf("%q: %d", s, n)
		}
		ParseAuth(c.Rest)
		ParseAttributes(c.Rest)
	})
}
