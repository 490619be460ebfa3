package mimetree

import (
	"bytes"
	"slices"
	"strings"
)

// This file holds what programs make of header fields that are not written as the standard has it.

// allowedBoundary is how long a delimiter may be, RFC 2046 §5.1.1. Some programs look at no more of it.
const allowedBoundary = 70

// delimiters returns every delimiter that the field may mean, the most likely first, and whether it is written such
// that programs may disagree on it.
func (t mediaType) delimiters() (out []string, odd bool) {
	add := func(s string) {
		trimmed := strings.TrimRight(s, " \t") // RFC 2046 §5.1.1: no space at the end
		if trimmed == "" || len(out) >= maxReadings {
			return
		}
		odd = odd || trimmed != s
		if !slices.Contains(out, trimmed) {
			odd = odd || len(out) > 0
			out = append(out, trimmed)
		}
	}
	for _, q := range t.params {
		if q.name == "boundary" {
			add(q.value)
		}
	}
	for _, s := range continued(t.params, "boundary") {
		odd = true
		add(s)
	}
	for _, q := range t.params {
		if q.name == "boundary" {
			add(q.full)
		}
	}
	odd = odd || len(out) == 0
	for _, s := range naive(t.raw) {
		add(s)
	}
	for _, s := range slices.Clone(out) {
		if n := len(s); n > 2 && s[0] == '\'' && s[n-1] == '\'' {
			add(s[1 : n-1])
		}
		if i := strings.IndexByte(s, '"'); i >= 0 {
			add(strings.ReplaceAll(s, `"`, ""))
			add(s[:i])
		}
		if len(s) > allowedBoundary {
			add(s[:allowedBoundary])
		}
		odd = odd || strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) >= 0
	}
	return out, odd && len(out) > 0
}

// naive finds delimiters as programs do that only look for the word.
func naive(v string) (out []string) {
	low := lowerASCII(v)
	for at := 0; len(out) < maxReadings; {
		i := strings.Index(low[at:], "boundary")
		if i < 0 {
			break
		}
		at += i + len("boundary")
		rest := strings.TrimLeft(v[at:], " \t")
		if rest == "" || rest[0] != '=' && rest[0] != ':' {
			continue
		}
		rest = strings.TrimLeft(rest[1:], " \t")
		upTo := func(s, chars string) string {
			if i := strings.IndexAny(s, chars); i >= 0 {
				return s[:i]
			}
			return s
		}
		if !strings.HasPrefix(rest, `"`) {
			if rest[:min(1, len(rest))] != "(" {
				out = append(out, upTo(rest, "; \t,"), upTo(rest, "; \t"))
			}
			continue
		}
		inner, tail, closed := strings.Cut(rest[1:], `"`)
		if !closed {
			out = append(out, upTo(inner, ";"), inner, `"`+upTo(inner, ";"))
			continue
		}
		if strings.IndexByte(inner, '\\') < 0 {
			out = append(out, inner)
			if tail = upTo(tail, "; \t("); tail != "" {
				out = append(out, inner+tail, `"`+inner+`"`+tail)
			}
		}
		if cut := upTo(inner, ";"); cut != inner {
			out = append(out, cut, `"`+cut)
		}
	}
	return out
}

// repaired reads the type of a Content-Type field that is not well formed as tolerant programs do.
func repaired(typ string) string {
	typ = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '"' || r == '\'' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(typ, ""))
	return strings.Trim(typ, ":,")
}

// typeOf parses the value of a Content-Type field. Its first result is what most programs read; more are what some
// read.
func (p *parser) typeOf(part *Part, v string) (out []mediaType) {
	typ, params, ok := parseField(v, p.lim.MaxParams)
	if !ok {
		part.odd(OddMalformedType)
		if r := repaired(typ); wellFormed(r) && r != typ {
			part.odd(OddTypeSyntax)
			typ = r
		}
	} else if head, _, _ := strings.Cut(v, ";"); !sameName(strings.TrimSpace(head), typ) {
		part.odd(OddTypeSyntax)
	}
	if typ == "" {
		typ = "text/plain" // RFC 2045 §5.2
	}
	out = append(out, mediaType{typ, params, v})
	if strings.Contains(v, "=?") {
		if d := words(v); d != v {
			if typ, params, ok := parseField(d, p.lim.MaxParams); ok {
				if !wellFormed(out[0].typ) || out[0].typ == "text/plain" && typ != "text/plain" {
					part.odd(OddTypeSyntax)
				}
				out = append(out, mediaType{typ, params, d})
			}
		}
	}
	return out
}

// structural are the names of the fields that decide what an entity is.
var structural = [...]string{"content-type", "content-transfer-encoding", "content-disposition"}

// nearly returns the name of a structural field that raw is a spelling of which some programs take for it.
func nearly(raw []byte) string {
	if len(raw) < 12 || len(raw) > 64 {
		return ""
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r == '_':
			return '-'
		case r <= ' ' || r > '~':
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(raw), ""))
	for _, s := range structural {
		if sameName(s, name) {
			return name
		}
	}
	return ""
}

// within finds a structural field in a line that continues another field: programs that skip white space before a name
// see it. DKIM-Signature lists names of fields; so what follows the colon has to make sense, too.
func within(line []byte) (name, value string, ok bool) {
	line = bytes.TrimLeft(line, " \t")
	colon := bytes.IndexByte(line, ':')
	if colon < 12 || colon > 64 {
		return "", "", false
	}
	name = nearly(line[:colon])
	if name == "" {
		return "", "", false
	}
	value = strings.TrimSpace(string(line[colon+1:]))
	first := lowerASCII(value)
	if i := strings.IndexAny(first, "; \t"); i >= 0 {
		first = first[:i]
	}
	switch lowerASCII(name) {
	case structural[0]:
		ok = wellFormed(first)
	case structural[1]:
		ok = knownEncoding(first)
	default:
		ok = first == "attachment" || first == "inline"
	}
	return name, value, ok
}

// entity returns where in the text b, which is no part, a header begins that makes an entity of what follows, or -1:
// at the first line that is not blank.
func entity(b []byte) int {
	i := 0
	for i < len(b) && (b[i] == '\r' || b[i] == '\n' || b[i] == ' ' || b[i] == '\t') {
		i++
	}
	if len(b)-i < len("content-") || !sameName(string(b[i:i+len("content-")]), "content-") {
		return -1
	}
	line := b[i:]
	if n := bytes.IndexByte(line, '\n'); n >= 0 {
		line = line[:n]
	}
	if bytes.IndexByte(line, ':') < 0 {
		return -1
	}
	return i
}

// maxGuesses bounds how often text is looked through for parts that nothing announces.
const maxGuesses = 200

// guessParts returns the first line in the first 64 KiB at pos that looks like a delimiter and has a field of a part's
// header behind it.
func (p *parser) guessParts(pos, limit int64) string {
	b := p.w.at(pos, limit)
	for at, start := 0, true; at < len(b); start = false {
		i := dashes(b[at:], start)
		if i < 0 {
			return ""
		}
		at += i + 2
		line, rest, _ := bytes.Cut(b[at:], []byte{'\n'})
		line = bytes.TrimRight(line, " \t\r")
		if len(line) > 0 && len(line) <= maxBoundary && entity(rest) == 0 {
			return string(line)
		}
	}
	return ""
}

// makesSense says whether a reading that was only guessed has shown anything: a delimiter, or fields.
func (p *Part) makesSense(header bool) bool {
	if header {
		return p.Get(structural[0]) != "" || p.Get(structural[1]) != ""
	}
	return p.Kind == Multipart && !slices.Contains(p.Odd, OddBoundaryNotFound)
}

// key returns what a delimiter of the innermost multipart has behind its dashes, at most 8 octets of it.
func (w *walker) key() []byte {
	if len(w.stack) == 0 {
		return nil
	}
	f := &w.stack[len(w.stack)-1]
	return f.key[:f.keyLen]
}

// setKey prepares f for key.
func (f *frame) setKey() {
	if f.boundary == emptyBoundary {
		return
	}
	f.keyLen = copy(f.key[:], strings.TrimLeft(f.boundary, "-"))
}

// stray notes that a delimiter of the innermost multipart may stand within a line, and asks for the reading in which it
// is one (M-007).
func (w *walker) stray() {
	f := &w.stack[len(w.stack)-1]
	if f.strayed {
		return
	}
	f.strayed = true
	w.wait(reading{part: f.part, typ: f.part.Type, boundary: f.boundary, within: true, maybe: OddDelimiterIndent})
}

// anywhere returns the place of the next "--" in b.
func anywhere(b []byte) int { return bytes.Index(b, []byte("--")) }

// dashed is stray for a line that begins with more dashes than a delimiter of the innermost multipart.
func (w *walker) dashed(line []byte) {
	if w.within || len(w.stack) == 0 {
		return
	}
	key := w.key()
	rest := bytes.TrimLeft(line[:min(len(line), 2*allowedBoundary)], "-")
	more := len(line) - len(rest) - 2
	if len(line) > 2*allowedBoundary {
		more = 2*allowedBoundary - len(rest) - 2
	}
	b := w.stack[len(w.stack)-1].boundary
	if len(key) > 0 && bytes.HasPrefix(rest, key) && more > len(b)-len(strings.TrimLeft(b, "-")) {
		w.stray()
	}
}
