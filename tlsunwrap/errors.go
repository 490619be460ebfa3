package tlsunwrap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// Events that an Error may name. A door records them as inspect.Event.Event.
const (
	EventBadHello      = "bad-hello"         // what the client sent is no ClientHello that can be understood
	EventHelloTimeout  = "hello-timeout"     // the client did not send its hello in time
	EventNoVersion     = "no-common-version" // no version of TLS that both sides speak and the floor allows
	EventNoCipher      = "no-common-cipher"  // no cipher suite that both sides speak
	EventNoALPN        = "no-common-alpn"    // the server insists on a protocol that was not offered
	EventMTLS          = "mtls-required"     // the server wants a certificate of the client
	EventUpstreamCert  = "upstream-cert"     // the server's certificate was refused
	EventUpstreamTLS   = "upstream-tls"      // the handshake with the server ended otherwise
	EventOwnCA         = "own-ca"            // the server shows a certificate that we signed
	EventDegraded      = "tls-degraded"      // a destination whose certificate was good once shows a bad one
	EventPin           = "pin-mismatch"      // the server's key is not the configured one
	EventUnknownCA     = "unknown-ca"        // the client refuses our certificate
	EventClientTLS     = "client-tls"        // the handshake with the client ended otherwise
	EventRenegotiation = "upstream-renegotiation"
	EventMint          = "mint" // no certificate could be made: our own fault
)

// Error tells why a connection was not unwrapped.
type Error struct {
	Event  string // one of the constants above
	Detail string // for people
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Event + ": " + e.Detail
	}
	return e.Event + ": " + e.Detail + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Alerts of RFC 8446 §6.2 that we send or tell apart.
const (
	alertUnexpected         = 10
	alertBadRecordMAC       = 20
	alertHandshakeFailure   = 40
	alertBadCertificate     = 42
	alertRevoked            = 44
	alertExpired            = 45
	alertCertificateUnknown = 46
	alertIllegalParameter   = 47
	alertUnknownCA          = 48
	alertDecodeError        = 50
	alertProtocolVersion    = 70
	alertInsufficient       = 71
	alertInternalError      = 80
	alertNoRenegotiation    = 100
	alertUnrecognizedName   = 112
	alertCertRequired       = 116
	alertNoALPN             = 120
)

// remoteAlert returns the alert with which the peer ended the connection.
func remoteAlert(err error) (code uint8, ok bool) { return alertOf(err, "remote error") }

// alertOf finds an alert in err. crypto/tls has an exported type for alerts, but a net.OpError holds another one; the
// texts are the same.
func alertOf(err error, op string) (uint8, bool) {
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Err == nil {
		return 0, false
	}
	for code := range 256 {
		if oe.Err.Error() == tls.AlertError(code).Error() {
			return uint8(code), true
		}
	}
	return 0, false
}

// upstreamError says what a failed handshake with the server means, and with which alert the client learns of it.
func upstreamError(err error, certAsked bool, v *verdict) (*Error, uint8) {
	if v.refusal != nil {
		return v.refusal, v.alert
	}
	code, remote := remoteAlert(err)
	switch {
	case code == alertCertRequired && remote, certAsked && remote && certificateAlert(code):
		return &Error{EventMTLS, "the server requires a certificate of the client; TlsBypass can let this destination through", err}, code
	case remote && code == alertProtocolVersion:
		return &Error{EventNoVersion, "the server refused every version offered; TlsLegacy allows older ones", err}, code
	case remote && (code == alertHandshakeFailure || code == alertInsufficient):
		return &Error{EventNoCipher, "the server accepts none of our cipher suites", err}, code
	case remote && code == alertNoALPN:
		return &Error{EventNoALPN, "the server accepts no protocol that was offered", err}, code
	case remote:
		return &Error{EventUpstreamTLS, "the server refused the handshake", err}, code
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &Error{EventUpstreamTLS, "the server did not finish the handshake in time", err}, alertInternalError
	case strings.Contains(err.Error(), "protocol version"), strings.Contains(err.Error(), "unsupported versions"):
		return &Error{EventNoVersion, "the server chose a version that is not allowed; TlsLegacy allows older ones", err}, alertProtocolVersion
	case strings.Contains(err.Error(), "certificate"):
		// Parse errors, keys of unusable kinds and lengths: crypto/tls ends the handshake before we are asked.
		return &Error{EventUpstreamCert, "the server's certificate cannot be used", err}, alertBadCertificate
	}
	var rec tls.RecordHeaderError
	if errors.As(err, &rec) {
		return &Error{EventUpstreamTLS, "the server does not speak TLS here", err}, alertHandshakeFailure
	}
	return &Error{EventUpstreamTLS, "the handshake with the server ended", err}, alertHandshakeFailure
}

// certificateAlert tells the alerts with which servers refuse a client that shows no certificate.
func certificateAlert(code uint8) bool {
	return code == alertHandshakeFailure || code == alertBadCertificate || code == alertCertificateUnknown || code == alertUnknownCA
}

// clientError says what a failed handshake with the client means, once the server's part is done.
func clientError(err error) *Error {
	code, remote := remoteAlert(err)
	switch {
	case remote && distrustAlert(code):
		return &Error{EventUnknownCA, "the client does not trust our certificate", err}
	case remote:
		return &Error{EventClientTLS, "the client refused the handshake", err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{EventClientTLS, "the client did not finish the handshake in time", err}
	case ended(err):
		return &Error{EventUnknownCA, "the client closed the connection on seeing our certificate", err}
	}
	return &Error{EventClientTLS, "the handshake with the client ended", err}
}

// distrustAlert tells the alerts of clients that pin a server or do not have our authority in their store.
func distrustAlert(code uint8) bool {
	return code == alertUnknownCA || code == alertBadCertificate || code == alertCertificateUnknown
}

func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, io.ErrClosedPipe)
}

// helloError says why no hello was read.
func helloError(err error) *Error {
	var rec tls.RecordHeaderError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{EventHelloTimeout, "the client did not begin TLS in time", err}
	case errors.As(err, &rec):
		return &Error{EventBadHello, "the client does not speak TLS", err}
	}
	return &Error{EventBadHello, "the client's hello cannot be read", err}
}

func nameDetail(sni string, names []string) string {
	if sni == "" {
		sni = "none"
	}
	if len(names) == 0 {
		return "name asked for: " + sni
	}
	return fmt.Sprintf("name asked for: %s; certificate of: %s", sni, strings.Join(names, " "))
}
