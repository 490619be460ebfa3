// Package smtpwire turns the octets of SMTP into lines, commands, replies, capabilities and paths, and back.
//
// It has no sockets and no opinions about sessions: it says what is written, in exactly one reading, or that it cannot
// tell. Nothing is ever normalised, since the gateway forwards what it was sent: what a Command, a Path or a Reply
// holds are parts of the line as it was received. Policy enters only as data, by [Policy] of [FilterEHLO].
//
// All readers take a *bufio.Reader, so that a dialogue and the blocks within it (package proxy/dot, BDAT) share one
// buffer, and all are bounded by limits given to them or named below.
package smtpwire

import "errors"

// Limits of RFC 5321 §4.5.3.1 and of this gateway.
const (
	MaxCommand   = 512     // RFC 5321 §4.5.3.1.4, the line end included
	MaxMailRcpt  = 4 << 10 // MAIL and RCPT with the parameters of many extensions
	MaxAuthLine  = 64 << 10
	MaxSwallow   = 1 << 20 // of a line that is too long; what is longer is hopeless
	MaxReplyLine = 8 << 10
	MaxReply     = 512 // lines
	MaxReplyText = 512 // octets of a reply line that we make, RFC 5321 §4.5.3.1.5
)

var (
	// ErrEndless is returned by ReadLine for a line without an end within the octets that may be swallowed.
	ErrEndless = errors.New("line without end")

	// ErrSyntax is wrapped by every error about the syntax of a command.
	ErrSyntax = errors.New("syntax error")
)
