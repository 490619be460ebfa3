package smtpwire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Reply is a whole reply of a server.
type Reply struct {
	Code   int
	Lines  []string // the text of each line, behind the code and its separator
	Raw    []byte   // the lines as received, each ended by CRLF
	BareLF bool     // at least one line ended in a bare LF
}

// Text returns the text of the last line.
func (r *Reply) Text() string {
	if len(r.Lines) == 0 {
		return ""
	}
	return r.Lines[len(r.Lines)-1]
}

// Positive reports whether the reply is a positive completion (2xx).
func (r *Reply) Positive() bool { return r.Code/100 == 2 }

// ReplyError says that what a server sent cannot be read as one reply. The connection is out of step.
type ReplyError struct {
	Reason string
	Line   string // the line, cut to a readable length
	First  bool   // nothing of a reply was seen before: the peer may not speak SMTP at all
}

// Error implements error.
func (e *ReplyError) Error() string {
	return "malformed reply: " + e.Reason + ": " + strconv.Quote(e.Line)
}

// ReadReply reads one reply of at most MaxReply lines. With onLine not nil, each line but the last is handed to it as
// soon as it has arrived, as it is to be forwarded, its CRLF included; an error of onLine ends ReadReply. A reply that
// cannot be read in exactly one way gives a *ReplyError. io.EOF means that the server closed before a reply, and
// io.ErrUnexpectedEOF that it did so inside of one.
func ReadReply(br *bufio.Reader, onLine func(line []byte) error) (*Reply, error) {
	r := &Reply{}
	for {
		l, err := ReadLine(br, MaxReplyLine)
		if err != nil {
			if err == io.EOF && len(r.Lines) > 0 {
				err = io.ErrUnexpectedEOF
			}
			if errors.Is(err, ErrEndless) {
				return nil, r.malformed("line too long", l.Text)
			}
			return nil, err
		}
		code, more, reason := replyLine(&l)
		if reason == "" && r.Code != 0 && code != r.Code {
			reason = "code changes from " + strconv.Itoa(r.Code) // RFC 5321 §4.2.1
		}
		if reason == "" && len(r.Lines) == MaxReply {
			reason = "too many lines"
		}
		if reason != "" {
			return nil, r.malformed(reason, l.Text)
		}
		r.Code = code
		at := len(r.Raw)
		r.Raw = append(append(r.Raw, l.Text...), '\r', '\n')
		r.Lines = append(r.Lines, string(l.Text[min(4, len(l.Text)):]))
		r.BareLF = r.BareLF || l.End == LF // S-014: seen of old servers; replies hold no content
		if !more {
			return r, nil
		}
		if onLine != nil {
			if err := onLine(r.Raw[at:]); err != nil {
				return nil, err
			}
		}
	}
}

func (r *Reply) malformed(reason string, line []byte) error {
	return &ReplyError{Reason: reason, Line: string(line[:min(len(line), 100)]), First: len(r.Lines) == 0}
}

// replyLine reads the code of a line and whether more lines follow, or says why it cannot.
func replyLine(l *Line) (code int, more bool, reason string) {
	t := l.Text
	switch {
	case l.Overlong:
		return 0, false, "line too long"
	case l.BareCR:
		return 0, false, "bare CR"
	case l.NUL:
		return 0, false, "NUL"
	case len(t) < 3 || t[0] < '2' || t[0] > '5' || t[1] < '0' || t[1] > '9' || t[2] < '0' || t[2] > '9':
		return 0, false, "no reply code" // RFC 5321 §4.2
	case len(t) > 3 && t[3] != ' ' && t[3] != '-':
		return 0, false, "no blank or hyphen behind the code"
	}
	return int(t[0]-'0')*100 + int(t[1]-'0')*10 + int(t[2]-'0'), len(t) > 3 && t[3] == '-', ""
}

// FormatReply makes a reply of one line and at most MaxReplyText octets, its CRLF included. Octets of text that are
// not printable ASCII become question marks. enhanced may be empty.
func FormatReply(code int, enhanced, text string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%03d ", code)
	if enhanced != "" {
		b.WriteString(enhanced)
		b.WriteByte(' ')
	}
	for i := 0; i < len(text) && b.Len() < MaxReplyText-2; i++ {
		if c := text[i]; c < ' ' || c > '~' {
			b.WriteByte('?')
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// FormatLines makes a reply of several lines with one code, as for EHLO. It changes nothing in the texts.
func FormatLines(code int, texts []string) []byte {
	var b strings.Builder
	for i, t := range texts {
		sep := byte('-')
		if i == len(texts)-1 {
			sep = ' '
		}
		b.WriteString(strconv.Itoa(code))
		b.WriteByte(sep)
		b.WriteString(t)
		b.WriteString("\r\n")
	}
	return []byte(b.String())
}
