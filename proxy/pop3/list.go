package pop3

import (
	"strconv"
	"strings"
)

// remember notes what became of a message, before the client gets it.
func (s *session) remember(n int, l *letter, o *outcome) error {
	if k := s.state.boxes[n]; k != nil && k.sum == l.sum && (o.action == replaced) == (k.size >= 0) {
		return nil
	}
	k := &seen{sum: l.sum, original: l.file.Size(), size: -1}
	s.state.boxes[n] = k
	if o.action != replaced {
		return nil
	}
	k.size = o.body.Size()
	// The server's own idea of the size is what it has put into its STAT and LIST; they are to add up (P-071).
	if text, ok, err := s.inquire("LIST", n); err != nil {
		return err
	} else if m, size, fits := sizeLine(text); ok && fits && m == n {
		k.original = size
	}
	text, ok, err := s.inquire("UIDL", n)
	if err != nil {
		return err
	}
	if m, uidl, _ := strings.Cut(text, " "); ok && m == strconv.Itoa(n) && uidl != "" {
		s.h.memory.keepSizes(s.uidlKey(uidl), sizes{k.original, k.size})
	}
	return nil
}

// inquire asks the server about a message without the client's knowing. A server that is gone is found out later:
// the message is here.
func (s *session) inquire(verb string, n int) (text string, ok bool, err error) {
	if s.down != nil {
		return "", false, nil
	}
	s.server.out = append(s.server.out, verb+" "+strconv.Itoa(n)+"\r\n"...)
	if err := s.ask(); err != nil {
		return "", false, s.ctx.Err()
	}
	text, ok, err = s.status()
	if err != nil {
		return "", false, s.ctx.Err()
	}
	return strings.TrimPrefix(text, "+OK "), ok, nil
}

// listLine puts the size of a replacement into "n size". What is written otherwise stays as it is (P-074).
func (s *session) listLine(text string) string {
	n, size, ok := sizeLine(text)
	if !ok || s.h.set.KeepSizes {
		return text
	}
	k := s.state.boxes[n]
	if k == nil || k.size < 0 || k.original != size {
		return text
	}
	return strconv.Itoa(n) + " " + strconv.FormatInt(k.size, 10)
}

// statLine puts the sizes of replacements into the sum of all (RFC 1939 §5).
func (s *session) statLine(text string) string {
	f := strings.SplitN(text, " ", 4)
	if len(f) < 3 || s.h.set.KeepSizes {
		return text
	}
	sum, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || strings.Trim(f[2], "0123456789") != "" {
		return text
	}
	for n, k := range s.state.boxes {
		if k.size >= 0 && !s.state.deleted[n] {
			sum += k.size - k.original
		}
	}
	if sum < 0 {
		return text
	}
	f[2] = strconv.FormatInt(sum, 10)
	return strings.Join(f, " ")
}

// uidlLine looks whether "n uidl" is a message that an earlier session has replaced.
func (s *session) uidlLine(text string) {
	a, uidl, _ := strings.Cut(text, " ")
	n, ok := number(a, 1)
	if !ok || s.state.boxes[n] != nil {
		return
	}
	if z, ok := s.h.memory.sizesOf(s.uidlKey(uidl)); ok {
		s.state.boxes[n] = &seen{original: z.original, size: z.size}
	}
}
