package smtpwire

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct{ in, address, route, params string }{
		{"FROM:<a@b.example>", "a@b.example", "", "[]"},
		{"from:<a@b>", "a@b", "", "[]"},
		{"FROM:<>", "", "", "[]"},
		{"FROM: <a@b>", "a@b", "", "[]"},
		{"FROM:a@b", "a@b", "", "[]"},
		{"FROM:a@b SIZE=5", "a@b", "", "[SIZE=5]"},
		{"FROM:<postmaster>", "postmaster", "", "[]"},
		{`FROM:<"a b"@x>`, `"a b"@x`, "", "[]"},
		{`FROM:<"a\"<>,b"@x>`, `"a\"<>,b"@x`, "", "[]"},
		{"FROM:<@r:a@x>", "a@x", "@r", "[]"},
		{"FROM:<@r,@s.example:a@x>", "a@x", "@r,@s.example", "[]"},
		{"FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]", "", "[]"},
		{"FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", "", "[]"},
		{"FROM:<jörg@dömäin.example> SMTPUTF8", "jörg@dömäin.example", "", "[SMTPUTF8]"},
		{"FROM:<a..b.@x>", "a..b.@x", "", "[]"},
		{"FROM:<a+b=c!d%e@x>", "a+b=c!d%e@x", "", "[]"},
		{"FROM:<a@b>  SIZE=1 BODY=8BITMIME size=2 ", "a@b", "", "[SIZE=1 BODY=8BITMIME size=2]"},
		{"FROM:<a@b> AUTH=<> ENVID=a=b BY=120;R MT-PRIORITY=-3", "a@b", "", "[AUTH=<> ENVID=a=b BY=120;R MT-PRIORITY=-3]"},
	} {
		p, err := ParseMail(c.in)
		if err != nil || p.Address != c.address || p.Route != c.route || fmt.Sprint(p.Params) != c.params {
			t.Errorf("%q: %+v, %v", c.in, p, err)
		}
		if _, err := ParseRcpt("TO" + c.in[4:]); err != nil {
			t.Errorf("as RCPT: %q: %v", c.in, err)
		}
	}
}

func TestParsePathCannotTell(t *testing.T) {
	for _, in := range []string{"", "TO", "TO:", "TO: ", "TO <a@x>", "TO :<a@x>", "FROM:<a@x>", "<a@x>", "TO:<a@x>,<b@y>", "TO:<a@x>, <b@y>", "TO:<a@x>b",
		"TO:<a@x", "TO:a@x>", "TO:<<a@x>>", "TO:<a b@x>", "TO:<a@x >", "TO:< a@x>", "TO:<a@x@y>", "TO:a@x@y", "TO:<a,b@x>", "TO:<@r>", "TO:<@r:>", "TO:<@r,:a@x>",
		"TO:<@:a@x>", "TO:<@x>", "TO:<a@>", `TO:<"a@x>`, `TO:<"">`, `TO:<""@x>`, `TO:<a"b"@x>`, `TO:<"a"b@x>`, "TO:<a@x>SIZE=1", "TO:<a@x> =1", "TO:<a@x> A=", "TO:<a@x> -A=1",
		"TO:<a@x>\tSIZE=1", "TO:\t<a@x>", "TO:<a\x01@x>", "TO:<a@x>\r", "TO:<\xff@x>", "TO:<a@[]>", "TO:<a@[1 2]>", "TO:<a@[1>", "TO:(c)<a@x>", "TO:<a(c)@x>", `TO:<a\b@x>`, "TO:a b@x",
		"TO:Name <a@x>", "TO:<a;b@x>", "TO:<a:b@x>", `TO:<"a\`} {
		t.Run("S-112 "+in, func(t *testing.T) {
			if p, err := ParseRcpt(in); !errors.Is(err, ErrSyntax) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

func TestCheckParams(t *testing.T) {
	all := Capabilities{"SIZE": "", "8BITMIME": "", "BINARYMIME": "", "DSN": "", "SMTPUTF8": "", "AUTH": "", "DELIVERBY": "", "MT-PRIORITY": "", "FUTURERELEASE": "",
		"REQUIRETLS": "", "NO-SOLICITING": "", "MTRK": "", "RRVS": "", "SUBMITTER": ""}
	params := []string{"SIZE=1", "BODY=8BITMIME", "BODY=7BIT", "BODY=BINARYMIME", "RET=HDRS", "ENVID=x", "NOTIFY=NEVER", "ORCPT=rfc822;a@x", "SMTPUTF8", "AUTH=<>", "BY=120;R",
		"MT-PRIORITY=3", "HOLDFOR=3600", "HOLDUNTIL=2030-01-01T00:00:00Z", "REQUIRETLS", "SOLICIT=x", "MTRK=x", "RRVS=x", "SUBMITTER=a@x"}
	for _, s := range params {
		p, err := ParseMail("FROM:<a> " + strings.ToLower(s))
		if err != nil {
			t.Fatal(err)
		}
		if r := CheckParams(p.Params, all, nil); r != nil {
			t.Errorf("%s: %+v though the capability was shown", s, r)
		}
		want := 555
		if s == "REQUIRETLS" {
			want = 550
		}
		t.Run("S-052 "+s+" not shown", func(t *testing.T) {
			if r := CheckParams(p.Params, nil, nil); r == nil || r.Code != want || r.Enhanced[0] != '5' {
				t.Errorf("%+v", r)
			}
		})
	}
	for _, c := range []struct {
		name, params string
		allow        []string
		code         int
	}{
		{"S-033 REQUIRETLS", "REQUIRETLS", nil, 550},
		{"S-036 TRANSID", "TRANSID=<x@y>", nil, 555},
		{"S-042 CONPERM", "CONPERM", nil, 555},
		{"unknown", "FROB=1", nil, 555},
		{"unknown but allowed", "FROB=1", []string{"FROB"}, 0},
		{"twice", "SIZE=1 size=2", nil, 501},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParseMail("FROM:<a> " + c.params)
			if err != nil {
				t.Fatal(err)
			}
			r := CheckParams(p.Params, Capabilities{"SIZE": ""}, c.allow)
			if (r == nil) != (c.code == 0) || r != nil && r.Code != c.code {
				t.Errorf("%+v", r)
			}
		})
	}
}

// FuzzParsePath holds that the address of a path stands in the line just so, and that the line rebuilt from the parts
// means the same.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"FROM:<a@b> SIZE=1", "FROM:<@r,@s:\"a b\"@[1.2.3.4]>", "from: a@b", "FROM:<>", "FROM:<a@x>,<b@y>", "FROM:<jörg@x> SMTPUTF8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseMail(s)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if !strings.Contains(s, p.Address) || strings.ContainsAny(p.Address, "\r\n\x00") {
			t.Fatalf("%q: address %q", s, p.Address)
		}
		again := "FROM:<" + p.Address + ">"
		if p.Route != "" {
			again = "FROM:<" + p.Route + ":" + p.Address + ">"
		}
		for _, x := range p.Params {
			again += " " + x.String()
		}
		q, err := ParseMail(again)
		if err != nil || q.Address != p.Address || q.Route != p.Route || fmt.Sprint(q.Params) != fmt.Sprint(p.Params) {
			t.Fatalf("%q: %+v; rebuilt %q: %+v, %v", s, p, again, q, err)
		}
	})
}
