package pop3

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"mailweir/inspect"
)

const (
	maxTrickleLine = 998     // RFC 5322 §2.1.1
	maxTrickle     = 8 << 10 // of one message, before its verdict
)

// trickle gives the client a sign of life while a message is read or judged: first the positive reply, then lines of
// the message's own header, which a replacement has too (P-081). Nothing else ever leaves before the verdict (P-082).
func (s *session) trickle(r *retrieval) error {
	r.due = time.Now().Add(s.h.set.TrickleInterval)
	var more []byte
	if r.saidOK {
		var stuck bool
		if more, stuck = nextHeaderLine(r); len(more) == 0 {
			r.stuck = stuck
			return nil
		}
		r.said = append(r.said, more...)
	} else {
		r.saidOK = true
		more = []byte("+OK message follows\r\n")
	}
	if _, err := s.client.Write(more); err != nil {
		return errors.Join(errClientGone, err)
	}
	return nil
}

// nextHeaderLine returns the line of the header that may follow what was said. There may be none yet; stuck says that
// there will be none.
func nextHeaderLine(r *retrieval) (line []byte, stuck bool) {
	at := int64(len(r.said))
	if r.source == nil || r.source.Size() <= at {
		return nil, false
	}
	if same, err := begin(r.source, inspect.Bytes(r.said), at); err != nil || !same || at > maxTrickle {
		return nil, true
	}
	buf := make([]byte, min(maxTrickleLine+2, r.source.Size()-at))
	n, _ := r.source.ReadAt(buf, at)
	line, _, whole := bytes.Cut(buf[:n], []byte("\r\n"))
	if !whole {
		return nil, n >= maxTrickleLine+2
	}
	if !mayTrickle(line, at == 0) {
		return nil, true
	}
	return buf[:len(line)+2], false
}

// mayTrickle reports whether a line is one of a header that no replacement changes: it is followed by nothing but more
// of them, since the first other one ends it all.
func mayTrickle(line []byte, first bool) bool {
	if bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return false
	}
	if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return !first && len(bytes.TrimSpace(line)) > 0 // a field goes on
	}
	name, _, ok := strings.Cut(string(line), ":")
	if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return false
	}
	name = strings.ToLower(name)
	return name != "subject" && name != "mime-version" && !strings.HasPrefix(name, "content-")
}
