package smtpwire_test

import (
	"bufio"
	"fmt"
	"strings"

	"mailweir/proxy/smtpwire"
)

func ExampleReadLine() {
	l, err := smtpwire.ReadLine(bufio.NewReader(strings.NewReader("NOOP\rRSET\r\n")), smtpwire.MaxCommand)
	fmt.Printf("%q %v %v %v\n", l.Text, l.End, l.Clean(), err)
	// Output: "NOOP\rRSET" CRLF false <nil>
}

func ExampleEnding() {
	l, _ := smtpwire.ReadLine(bufio.NewReader(strings.NewReader("NOOP\n")), smtpwire.MaxCommand)
	fmt.Println(l.End == smtpwire.LF, l.End)
	// Output: true LF
}

func ExampleLine() {
	l, _ := smtpwire.ReadLine(bufio.NewReader(strings.NewReader("NOOP please\r\n")), 5)
	fmt.Printf("%q %v\n", l.Text, l.Overlong)
	// Output: "NOOP " true
}

func ExampleCommand() {
	c := smtpwire.ParseCommand([]byte("mail  FROM:<a@example.org>"))
	fmt.Printf("%s|%s|%s\n", c.Verb, c.Rest, c.Odd)
	// Output: MAIL| FROM:<a@example.org>|several blanks behind the verb
}

func ExampleVerb() {
	v, known := smtpwire.Lookup("BURL")
	fmt.Println(known, v.Has(smtpwire.Denied), v.Code, v.Enhanced)
	// Output: true true 502 5.5.1
}

func ExampleFlags() {
	v, _ := smtpwire.Lookup("STARTTLS")
	fmt.Println(v.Has(smtpwire.BeforeTLS|smtpwire.EndsGroup), v.Keyword)
	// Output: true STARTTLS
}

func ExampleReply() {
	r, err := smtpwire.ReadReply(bufio.NewReader(strings.NewReader("250-mx.example\r\n250 SIZE 1000\r\n")), nil)
	fmt.Println(r.Code, r.Positive(), r.Lines, err)
	// Output: 250 true [mx.example SIZE 1000] <nil>
}

func ExampleReplyError() {
	_, err := smtpwire.ReadReply(bufio.NewReader(strings.NewReader("250-a\r\n550 b\r\n")), nil)
	fmt.Println(err)
	// Output: malformed reply: code changes from 250: "550 b"
}

func ExampleFormatReply() {
	fmt.Printf("%q\n", smtpwire.FormatReply(550, "5.7.1", "message refused\r\n250 ok"))
	// Output: "550 5.7.1 message refused??250 ok\r\n"
}

func ExampleFilterEHLO() {
	r, _ := smtpwire.ReadReply(bufio.NewReader(strings.NewReader(
		"250-mx.example\r\n250-SIZE 0\r\n250-AUTH GSSAPI PLAIN\r\n250 CHUNKING\r\n")), nil)
	o := smtpwire.FilterEHLO(r, smtpwire.Policy{MaxSize: 1000})
	fmt.Print(strings.ReplaceAll(string(o.Reply), "\r", ""))
	fmt.Println(o.Removed)
	// Output:
	// 250-mx.example
	// 250-SIZE 1000
	// 250 AUTH PLAIN
	// [{AUTH GSSAPI not on the list} {CHUNKING CHUNKING BDAT is not spoken}]
}

func ExamplePolicy() {
	r, _ := smtpwire.ReadReply(bufio.NewReader(strings.NewReader("250-mx.example\r\n250 STARTTLS\r\n")), nil)
	fmt.Println(smtpwire.FilterEHLO(r, smtpwire.Policy{}).Lines, smtpwire.FilterEHLO(r, smtpwire.Policy{StartTLS: true}).Lines)
	// Output: [mx.example] [mx.example STARTTLS]
}

func ExampleOffer() {
	r, _ := smtpwire.ReadReply(bufio.NewReader(strings.NewReader("250-mx.example\r\n250 DSN\r\n")), nil)
	o := smtpwire.FilterEHLO(r, smtpwire.Policy{})
	fmt.Println(o.Caps.Has("DSN"), o.Caps.Has("CHUNKING"))
	// Output: true false
}

func ExampleCapabilities() {
	c := smtpwire.Capabilities{"AUTH": "PLAIN LOGIN"}
	fmt.Println(c.Has("AUTH"), c.Mechanism("login"), c.Mechanism("GSSAPI"))
	// Output: true true false
}

func ExampleRemoval() {
	r, _ := smtpwire.ReadReply(bufio.NewReader(strings.NewReader("250-mx.example\r\n250 XFOO bar\r\n")), nil)
	for _, x := range smtpwire.FilterEHLO(r, smtpwire.Policy{}).Removed {
		fmt.Printf("%s (%s): %s\n", x.Keyword, x.Item, x.Why)
	}
	// Output: XFOO (XFOO bar): not on the list
}

func ExamplePath() {
	p, err := smtpwire.ParseMail(`FROM:<@relay.example:"a b"@example.org> SIZE=100 BODY=8BITMIME`)
	fmt.Println(p.Address, p.Route, p.Params, err)
	_, err = smtpwire.ParseRcpt("TO:<a@x>,<b@y>")
	fmt.Println(err)
	// Output:
	// "a b"@example.org @relay.example [SIZE=100 BODY=8BITMIME] <nil>
	// syntax error: unexpected ",<b@y>" behind the address
}

func ExampleParam() {
	p, _ := smtpwire.ParseMail("FROM:<> SMTPUTF8")
	x, ok := p.Param("smtputf8")
	fmt.Println(x, x.Given, ok)
	// Output: SMTPUTF8 false true
}

func ExampleRefused() {
	p, _ := smtpwire.ParseMail("FROM:<a@x> BODY=BINARYMIME")
	r := smtpwire.CheckParams(p.Params, smtpwire.Capabilities{"8BITMIME": ""}, nil)
	fmt.Println(r.Param, r.Code, r.Enhanced, r.Text)
	// Output: BODY=BINARYMIME 555 5.5.4 parameter not recognized
}

func ExampleAuth() {
	a, err := smtpwire.ParseAuth("plain AGEAYg==")
	fmt.Println(a.Mechanism, a.Given, err)
	// Output: PLAIN true <nil>
}

func ExampleParseBDAT() {
	n, last, err := smtpwire.ParseBDAT(smtpwire.ParseCommand([]byte("BDAT 86 LAST")))
	fmt.Println(n, last, err)
	_, _, err = smtpwire.ParseBDAT(smtpwire.ParseCommand([]byte("BDAT +5")))
	fmt.Println(err)
	// Output:
	// 86 true <nil>
	// syntax error: BDAT: size "+5"
}
