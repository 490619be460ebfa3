package pop3

import (
	"bytes"
	"fmt"
	"strings"

	"mailweir/inspect"
	"mailweir/proxy/smtpwire"
)

// maxNoticeHeader is how much of an original's header a notice is made of.
const maxNoticeHeader = 64 << 10

// noticed makes the message that stands for one that cannot be repacked. It says as much of the original as is needed
// to know it again, and begins as the original begins as far as that may have been trickled.
func (s *session) noticed(m *inspect.Message, l *letter, v *inspect.Verdict) (*outcome, error) {
	var b bytes.Buffer
	have, subject := noticeHeader(&b, l.file)
	if !have["date"] {
		b.WriteString("Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n") // RFC 5322 §3.6; the same octets every time (P-042)
	}
	if !have["from"] {
		b.WriteString("From: mail gateway <postmaster@localhost>\r\n")
	}
	if subject == "" {
		b.WriteString("Subject: [blocked]\r\n")
	} else {
		b.WriteString("Subject: [blocked] " + subject + "\r\n")
	}
	b.WriteString("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n")
	b.WriteString("The mail gateway has held this message back: " + noticeReason(v) + ".\r\n\r\n" +
		"The original is kept in the quarantine of the gateway. Its administrator\r\ncan release it, and asks for this name:\r\n\r\n")
	fmt.Fprintf(&b, "    %s\r\n", printable(v.Quarantine, 200))
	return s.stored(&b)
}

// noticeReason says in words for everybody why a message is held back. Names of threats are strangers' octets.
func noticeReason(v *inspect.Verdict) string {
	switch {
	case v.Reason == "spam":
		return "it was found to be spam"
	case strings.HasPrefix(v.Reason, "unchecked"):
		return "it cannot be inspected"
	}
	return "it contains a threat"
}

// noticeHeader copies what of an original's header a notice keeps: the lines that may have been trickled, in their
// order, and of the others those by which mail programs sort. It returns which fields there are, and the subject.
func noticeHeader(b *bytes.Buffer, body inspect.Body) (have map[string]bool, subject string) {
	have = map[string]bool{}
	br := s64(body)
	keep, trickled, left := false, true, maxNoticeHeader
	for left > 0 {
		l, err := smtpwire.ReadLine(br, maxTrickleLine+2)
		left -= l.Size
		if err != nil || len(l.Text) == 0 || !l.Clean() {
			break
		}
		line := l.Text
		if trickled = trickled && b.Len() <= maxTrickle && mayTrickle(line, b.Len() == 0); trickled {
			name, _, _ := strings.Cut(string(line), ":")
			if line[0] != ' ' && line[0] != '\t' {
				have[strings.ToLower(name)] = true
			}
			b.Write(append(line, '\r', '\n'))
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if keep && mayTrickle(line, false) {
				b.Write(append(line, '\r', '\n'))
			}
			continue
		}
		name, value, _ := strings.Cut(string(line), ":")
		name = strings.ToLower(name)
		if name == "subject" && subject == "" {
			subject = printable(strings.TrimSpace(value), 200)
			if strings.ContainsFunc(subject, func(r rune) bool { return r > '~' }) {
				subject = ""
			}
		}
		keep = noticeField(name) && !have[name] && mayTrickle(line, false)
		if keep {
			have[name] = true
			b.Write(append(line, '\r', '\n'))
		}
	}
	return have, subject
}

// noticeField reports whether a notice keeps a field of the original's.
func noticeField(name string) bool {
	switch name {
	case "from", "to", "cc", "date", "message-id", "in-reply-to", "references", "reply-to":
		return true
	}
	return false
}
