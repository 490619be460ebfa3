// Package sasl follows a SASL exchange from outside: it learns who logs in, and never what the secret is.
//
// It is pure: no sockets, no log. The exchange itself is passed on by a door, octet for octet; which mechanisms may pass
// is decided where capabilities are filtered (package proxy/smtpwire). Nothing but a name is kept of what is shown to
// an [Exchange], and a name is only taken from lines short enough to hold one.
package sasl

import (
	"encoding/base64"
	"strings"
)

// maxLine is the longest line in which a name is looked for. Tokens of Kerberos and the like are longer.
const maxLine = 4 << 10

// Exchange is what is known of one exchange. The zero value knows nothing; set Mechanism, in capitals, to begin.
type Exchange struct {
	Mechanism string
	User      string // as far as the mechanism tells it
	// CouldBind: the client has said that it could bind the channel and thinks that the server could not (RFC 5802 §6).
	CouldBind bool

	step int
}

// Client takes one line of the client's: an initial response or an answer to a challenge, in base64.
func (x *Exchange) Client(line string) {
	x.step++
	if x.step != 1 || len(line) > maxLine { // every mechanism that tells a name tells it at once
		return
	}
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		return // "*", "=" or nonsense: the server will say so
	}
	text := string(raw)
	switch {
	case x.Mechanism == "PLAIN": // RFC 4616 §2: authzid NUL authcid NUL password
		if f := strings.Split(text, "\x00"); len(f) == 3 {
			x.User = f[1]
		}
	case x.Mechanism == "LOGIN":
		x.User = text
	case x.Mechanism == "CRAM-MD5": // RFC 2195 §2: user, blank, digest
		if i := strings.LastIndexByte(text, ' '); i >= 0 {
			x.User = text[:i]
		}
	case x.Mechanism == "XOAUTH2":
		if rest, ok := strings.CutPrefix(text, "user="); ok {
			x.User, _, _ = strings.Cut(rest, "\x01")
		}
	case x.Mechanism == "OAUTHBEARER": // RFC 7628 §3.1: the GS2 header "n,a=user,"
		if f := strings.SplitN(text, ",", 3); len(f) == 3 {
			x.User = strings.TrimPrefix(f[1], "a=")
		}
	case strings.HasPrefix(x.Mechanism, "SCRAM-"): // RFC 5802 §7: "y,,n=user,r=nonce"
		x.CouldBind = strings.HasPrefix(text, "y,")
		for _, f := range strings.Split(text, ",") {
			if u, ok := strings.CutPrefix(f, "n="); ok {
				x.User = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(u)
			}
		}
	}
}
