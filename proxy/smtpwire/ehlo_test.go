package smtpwire

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
)

// filter filters an EHLO reply whose lines, without codes, are separated by |.
func filter(t *testing.T, texts string, p Policy) *Offer {
	t.Helper()
	raw := FormatLines(250, strings.Split(texts, "|"))
	r, err := ReadReply(bufio.NewReader(strings.NewReader(string(raw))), nil)
	if err != nil {
		t.Fatal(err)
	}
	o := FilterEHLO(r, p)
	checkOffer(t, r, p)
	return o
}

func TestFilterEHLO(t *testing.T) {
	tls := Policy{TLS: true, UpstreamVerified: true, StartTLS: true}
	for _, c := range []struct {
		name, in string
		p        Policy
		want     string
	}{
		{"S-007 the last line goes", "host|PIPELINING|CHUNKING", Policy{}, "host|PIPELINING"},
		{"S-007 all lines go", "host|CHUNKING|XFOO", Policy{}, "host"},
		{"S-007 nothing but a greeting", "host at your service", Policy{}, "host at your service"},
		{"S-007 order stays", "h|SIZE 1|XFOO|DSN|8BITMIME", Policy{}, "h|SIZE 1|DSN|8BITMIME"},
		{"S-008 AUTH=", "h|auth=GSSAPI LOGIN", Policy{}, "h|auth=LOGIN"},
		{"S-008 case", "h|pipelining|Chunking|xFoo|dsn", Policy{}, "h|pipelining|dsn"},
		{"S-008 both forms", "h|AUTH LOGIN GSSAPI|AUTH=LOGIN GSSAPI", Policy{}, "h|AUTH LOGIN|AUTH=LOGIN"},
		{"S-008 blanks and tabs", "h| CHUNKING|\tXFOO|SIZE\t5|  DSN|CHUNKING\tx|AUTH  GSSAPI  PLAIN ", Policy{}, "h|SIZE\t5|  DSN|AUTH  PLAIN"},
		{"S-008 duplicates", "h|SIZE 1|SIZE 2|CHUNKING|CHUNKING", Policy{}, "h|SIZE 1|SIZE 2"},
		{"S-008 an AUTH= with blanks", "h|AUTH = GSSAPI PLAIN", Policy{}, "h|AUTH = PLAIN"},
		{"S-020 PIPELINING", "h|PIPELINING", Policy{}, "h|PIPELINING"},
		{"S-021 SIZE untouched", "h|SIZE 52428800", Policy{}, "h|SIZE 52428800"},
		{"S-021 SIZE 0 with a limit", "h|SIZE 0", Policy{MaxSize: 104857600}, "h|SIZE 104857600"},
		{"S-021 SIZE alone with a limit", "h|SIZE", Policy{MaxSize: 5}, "h|SIZE 5"},
		{"S-021 SIZE below the limit", "h|SIZE 4", Policy{MaxSize: 5}, "h|SIZE 4"},
		{"S-021 SIZE above the limit", "h|size 99999999999999999999999", Policy{MaxSize: 5}, "h|size 5"},
		{"S-022 8BITMIME", "h|8BITMIME", Policy{}, "h|8BITMIME"},
		{"S-023 CHUNKING not spoken", "h|CHUNKING|DSN", Policy{}, "h|DSN"},
		{"S-023 CHUNKING spoken", "h|CHUNKING|DSN", Policy{Chunking: true}, "h|CHUNKING|DSN"},
		{"S-024 BINARYMIME goes with CHUNKING", "h|BINARYMIME|CHUNKING", Policy{}, "h"},
		{"S-024 BINARYMIME stays with CHUNKING", "h|BINARYMIME|CHUNKING", Policy{Chunking: true}, "h|BINARYMIME|CHUNKING"},
		{"S-024 BINARYMIME without CHUNKING", "h|BINARYMIME", Policy{Chunking: true}, "h"},
		{"S-025 S-026 S-027", "h|DSN|ENHANCEDSTATUSCODES|SMTPUTF8", Policy{}, "h|DSN|ENHANCEDSTATUSCODES|SMTPUTF8"},
		{"S-028 STARTTLS unwrapped", "h|STARTTLS", Policy{StartTLS: true}, "h|STARTTLS"},
		{"S-028 STARTTLS not unwrapped", "h|STARTTLS", Policy{}, "h"},
		{"S-071 STARTTLS within TLS", "h|STARTTLS|DSN", tls, "h|DSN"},
		{"S-030 S-031 S-032", "h|DELIVERBY 240|MT-PRIORITY MIXER|FUTURERELEASE 3600 2030-01-01", Policy{}, "h|DELIVERBY 240|MT-PRIORITY MIXER|FUTURERELEASE 3600 2030-01-01"},
		{"S-033 REQUIRETLS over verified TLS", "h|REQUIRETLS", tls, "h|REQUIRETLS"},
		{"S-033 REQUIRETLS over unverified TLS", "h|REQUIRETLS", Policy{TLS: true}, "h"},
		{"S-033 REQUIRETLS without TLS", "h|REQUIRETLS", Policy{UpstreamVerified: true}, "h"},
		{"S-034 LIMITS", "h|LIMITS MAILMAX=1 RCPTMAX=5", Policy{}, "h|LIMITS MAILMAX=1 RCPTMAX=5"},
		{"S-035 S-036 S-037 S-040", "h|BURL imap|CHECKPOINT|ATRN|TURN|SEND|SOML|SAML", Policy{}, "h"},
		{"S-038 S-039", "h|ETRN|VRFY|EXPN|HELP", Policy{}, "h|ETRN|VRFY|EXPN|HELP"},
		{"S-041", "h|NO-SOLICITING|MTRK|RRVS|SUBMITTER", Policy{}, "h|NO-SOLICITING|MTRK|RRVS|SUBMITTER"},
		{"S-042 S-043", "h|CONPERM|CONNEG|UTF8SMTP", Policy{}, "h"},
		{"S-044 S-045 untrusted", "h|XCLIENT NAME ADDR|XFORWARD NAME", Policy{}, "h"},
		{"S-044 S-045 trusted", "h|XCLIENT NAME ADDR|XFORWARD NAME", Policy{TrustedClient: true}, "h|XCLIENT NAME ADDR|XFORWARD NAME"},
		{"S-046 S-047", "h|XEXCH50|X-ANONYMOUSTLS|X-EXPS GSSAPI|XPROXY|XSESSIONPARAMS|XSHADOW|XLINK2STATE|XRDST|XOORG|XMESSAGECONTEXT", Policy{}, "h"},
		{"S-048 S-049 S-050", "h|PRDR|XPRDR|PIPECONNECT|X_PIPE_CONNECT|VERP|XVERP|XADR|XSTA|XCIR|XGEN|XUSR|VERB|ONEX|XDEBUG|XREMOTEQUEUE", Policy{}, "h"},
		{"S-051 any other", "h|FROBNICATE 1|CHUNKING2|SIZE=5|=|", Policy{}, "h"},
		{"allowed by the administrator", "h|XFOO a b|XBAR", Policy{Allow: []string{"XFOO"}}, "h|XFOO a b"},
		{"S-083 S-084 S-089 mechanisms with layers of their own", "h|AUTH DIGEST-MD5 GSSAPI KERBEROS_V4 GS2-KRB5 GSS-SPNEGO SRP SECURID EXTERNAL PLAIN", tls, "h|AUTH PLAIN"},
		{"S-081 S-082 S-088 S-090 mechanisms that pass", "h|AUTH PLAIN LOGIN CRAM-MD5 NTLM XOAUTH2 OAUTHBEARER ANONYMOUS", tls, "h|AUTH PLAIN LOGIN CRAM-MD5 NTLM XOAUTH2 OAUTHBEARER ANONYMOUS"},
		{"S-090 ANONYMOUS by policy", "h|AUTH PLAIN ANONYMOUS", Policy{NoAnonymous: true}, "h|AUTH PLAIN"},
		{"S-085 SCRAM without PLUS", "h|AUTH SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512 PLAIN", tls, "h|AUTH SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512 PLAIN"},
		{"S-086 PLUS and its siblings", "h|AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN", tls, "h|AUTH PLAIN"},
		{"S-086 siblings on another line", "h|AUTH SCRAM-SHA-256-PLUS PLAIN|AUTH=SCRAM-SHA-1 LOGIN", tls, "h|AUTH PLAIN|AUTH=LOGIN"},
		{"S-086 only SCRAM", "h|AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1-PLUS", tls, "h|AUTH SCRAM-SHA-256"},
		{"S-086 lower case", "h|auth scram-sha-256-plus scram-sha-256 xoauth2", tls, "h|auth xoauth2"},
		{"S-087 keep-scram", "h|AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN", Policy{TLS: true, KeepScram: true}, "h|AUTH SCRAM-SHA-256 PLAIN"},
		{"S-086 on an open leg the siblings stay", "h|AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN", Policy{}, "h|AUTH SCRAM-SHA-256 PLAIN"},
		{"S-094 no mechanism is left", "h|AUTH GSSAPI|DSN", tls, "h|DSN"},
		{"S-094 an empty list", "h|AUTH|AUTH=|DSN", tls, "h|DSN"},
		{"S-092 AUTH on an open leg, by policy", "h|AUTH PLAIN", Policy{AuthNeedsTLS: true}, "h"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := filter(t, c.in, c.p)
			if got := strings.Join(o.Lines, "|"); got != c.want {
				t.Errorf("%q became %q, want %q", c.in, got, c.want)
			}
			if string(o.Reply) != string(FormatLines(250, strings.Split(c.want, "|"))) {
				t.Errorf("reply %q", o.Reply)
			}
			// What is not shown is on record, or is a mechanism of a line that stays.
			if len(o.Lines)+len(o.Removed) < len(strings.Split(c.in, "|")) {
				t.Errorf("%d lines, %d shown, removed %v", len(strings.Split(c.in, "|")), len(o.Lines), o.Removed)
			}
		})
	}
}

func TestFilterEHLOFacts(t *testing.T) {
	o := filter(t, "h|SIZE 0|AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256|STARTTLS|AUTH=GSSAPI", Policy{TLS: true, MaxSize: 7})
	if !o.ScramDowngrade || o.NoMechanism || o.Caps["SIZE"] != "7" || o.Server["SIZE"] != "0" || !o.Caps.Mechanism("scram-sha-256") || o.Caps.Mechanism("GSSAPI") ||
		o.Caps.Has("STARTTLS") || !o.Server.Has("STARTTLS") || !o.Server.Mechanism("GSSAPI") {
		t.Errorf("%+v", o)
	}
	if want := "[{AUTH SCRAM-SHA-256-PLUS bound to the server's channel} {STARTTLS STARTTLS in use already} {AUTH GSSAPI not on the list} {AUTH AUTH=GSSAPI no mechanism is left}]"; fmt.Sprint(o.Removed) != want {
		t.Errorf("removed %v, want %v", o.Removed, want)
	}
	if o = filter(t, "h|AUTH GSSAPI", Policy{}); !o.NoMechanism || o.Caps.Has("AUTH") {
		t.Errorf("%+v", o)
	}
	t.Run("S-009 a refusal leaves nothing to use", func(t *testing.T) {
		r, err := ReadReply(bufio.NewReader(strings.NewReader("502-CHUNKING\r\n502 no\r\n")), nil)
		if err != nil {
			t.Fatal(err)
		}
		if o := FilterEHLO(r, Policy{Chunking: true}); len(o.Caps) != 0 || string(o.Reply) != "502-CHUNKING\r\n502 no\r\n" {
			t.Errorf("%+v", o)
		}
	})
	var none Capabilities
	if none.Has("SIZE") || none.Mechanism("PLAIN") {
		t.Error("nil Capabilities have something")
	}
}
