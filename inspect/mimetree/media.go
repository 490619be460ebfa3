package mimetree

import (
	"io"
	"mime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"
)

// param is one parameter as written.
type param struct {
	name  string // lower case, with the asterisks of RFC 2231
	value string // a token ends at white space or a comment
	full  string // up to the semicolon, or what is between the quotes, untouched
	quote bool
}

// classify fills in what part's header says and decides what it is.
func (p *parser) classify(part *Part, depth int) {
	var first []param
	types := p.types(part)
	if len(types) > 0 {
		part.Type, first = types[0].typ, types[0].params
	} else {
		part.Type = "text/plain" // RFC 2045 §5.2
		if part.Parent != nil && part.Parent.Type == "multipart/digest" {
			part.Type = "message/rfc822" // RFC 2046 §5.1.5
		}
	}
	part.Params = joinParams(first)
	p.encodings(part)
	p.names(part, types)
	p.boundaries(part, types)
	for i, t := range types {
		if i > 0 && t.typ != part.Type && (t.typ == "message/rfc822" || strings.HasPrefix(part.Type, "multipart/") && part.maybeEncoded()) {
			p.wait(reading{part: part, typ: t.typ})
		}
	}
	p.kind(part, depth)
	alone := part.Parent == nil || part.Parent.Kind == Message
	if part.Kind == Leaf && (len(types) == 0 && alone || len(types) > 0 && !wellFormed(types[0].typ)) {
		if p.guesses++; p.guesses > maxGuesses {
			part.odd(OddTooManyReadings)
		} else if b := p.guessParts(part.BodyStart, p.w.size); b != "" {
			p.wait(reading{part: part, typ: "multipart/mixed", boundary: b, maybe: OddPartsInText})
		}
	}
}

// boundaries sets the delimiter of a multipart, and asks for readings with every other one that its fields may mean.
func (p *parser) boundaries(part *Part, types []mediaType) {
	for i, t := range types {
		list, odd := t.delimiters()
		if !strings.HasPrefix(t.typ, "multipart/") {
			for _, b := range list {
				p.wait(reading{part: part, typ: "multipart/mixed", boundary: b, maybe: OddTypeSyntax})
			}
			continue
		}
		if odd {
			part.odd(OddDuplicateBoundary)
		}
		for _, b := range list {
			if i == 0 && part.Boundary == "" {
				part.Boundary = b
			} else if b != part.Boundary || t.typ != part.Type {
				p.wait(reading{part: part, typ: t.typ, boundary: b})
			}
		}
	}
}

// kind decides by type, boundary and depth.
func (p *parser) kind(part *Part, depth int) {
	switch {
	case strings.HasPrefix(part.Type, "multipart/"):
		if part.Boundary == "" {
			part.odd(OddNoBoundary)
			part.Boundary = p.guess(part.BodyStart, p.w.size)
		}
		if len(part.Boundary) > allowedBoundary {
			part.odd(OddBoundaryLong)
		}
		if part.Boundary == "" {
			p.wait(reading{part: part, typ: part.Type, boundary: emptyBoundary})
			return
		}
		if part.maybeEncoded() {
			part.odd(OddEncodedMultipart) // RFC 2045 §6.4 forbids it
		}
		part.Kind = Multipart
	case part.Type == "message/rfc822" || part.Type == "message/global" || part.Type == "message/news":
		if part.maybeEncoded() {
			part.odd(OddEncodedMessage)
			p.wait(reading{part: part, typ: part.Type, raw: true})
			return
		}
		part.Kind = Message
	}
	if part.Kind != Leaf && depth >= p.lim.MaxDepth {
		part.Kind = Leaf
		part.odd(OddTooDeep)
	}
}

// mediaType is what one Content-Type field says.
type mediaType struct {
	typ    string
	params []param
	raw    string // the field's value
}

// types returns what the Content-Type fields say, doubtful fields last.
func (p *parser) types(part *Part) (out []mediaType) {
	fields := 0
	for _, doubtful := range []bool{false, true} {
		for i := range part.Header {
			f := &part.Header[i]
			if f.Doubtful != doubtful || !sameName(f.Name, "content-type") {
				continue
			}
			if len(out) >= maxReadings { // programs take the first or the last
				part.odd(OddTooManyReadings)
				out = slices.Delete(out, maxReadings/2, maxReadings/2+1)
			}
			fields++
			out = append(out, p.typeOf(part, f.Value)...)
		}
	}
	if fields > 1 {
		part.odd(OddDuplicateType)
	}
	return out
}

// parseField takes "type/subtype; name=value; …" apart, tolerating what is seen in the wild: comments, missing and
// stray semicolons, missing quotes. ok says that the beginning was well formed. It serves Content-Disposition as well.
func parseField(v string, maxParams int) (typ string, params []param, ok bool) {
	rest := v
	head, rest := cut(rest)
	typ = strings.ToLower(strings.Join(strings.Fields(comments(head)), ""))
	typ = strings.Trim(typ, "\"'")
	ok = wellFormed(typ)
	if !ok {
		if i := strings.IndexByte(typ, '='); i > 0 { // the type was forgotten
			rest, typ = v, "text/plain"
		}
	}
	for rest != "" && len(params) < maxParams {
		var q param
		rest = skip(rest)
		eq := strings.IndexAny(rest, "=;")
		if eq < 0 {
			break
		}
		if rest[eq] == ';' {
			rest = rest[eq+1:]
			continue
		}
		q.name = strings.ToLower(strings.TrimSpace(comments(rest[:eq])))
		if i := strings.LastIndexAny(q.name, " \t"); i >= 0 {
			q.name = q.name[i+1:] // "junk boundary=x"
		}
		q.quote = strings.HasPrefix(skipSpaceAndComments(rest[eq+1:]), `"`)
		q.value, q.full, rest = paramValue(rest[eq+1:])
		params = append(params, q)
	}
	return typ, params, ok
}

func wellFormed(typ string) bool {
	slash := strings.IndexByte(typ, '/')
	return slash > 0 && slash < len(typ)-1 && strings.Count(typ, "/") == 1 && strings.IndexFunc(typ, func(r rune) bool { return r <= ' ' || r > '~' || r == '=' }) < 0
}

// cut splits s at the first semicolon outside of a comment.
func cut(s string) (head, rest string) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && depth > 0:
			i++
		case s[i] == '(':
			depth++
		case s[i] == ')' && depth > 0:
			depth--
		case s[i] == ';' && depth == 0:
			return s[:i], s[i+1:]
		}
	}
	if depth > 0 { // the comment does not end: no comment
		if head, rest, ok := strings.Cut(s, ";"); ok {
			return head, rest
		}
	}
	return s, ""
}

// comments removes (comments), RFC 5322 §3.2.2.
func comments(s string) string {
	if strings.IndexByte(s, '(') < 0 {
		return s
	}
	var b strings.Builder
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && depth > 0:
			i++
		case s[i] == '(':
			depth++
		case s[i] == ')' && depth > 0:
			depth--
		case depth == 0:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// skip drops white space, semicolons and comments from the front.
func skip(s string) string {
	for {
		s = strings.TrimLeft(s, " \t\r\n;")
		if s == "" || s[0] != '(' {
			return s
		}
		depth, i := 0, 0
		for ; i < len(s); i++ {
			if s[i] == '(' {
				depth++
			} else if s[i] == ')' {
				if depth--; depth == 0 {
					break
				}
			} else if s[i] == '\\' {
				i++
			}
		}
		if i >= len(s) {
			return s[1:]
		}
		s = s[i+1:]
	}
}

// paramValue reads what follows the equals sign.
func paramValue(s string) (value, full, rest string) {
	s = skipSpaceAndComments(s)
	if s == "" {
		return "", "", ""
	}
	if s[0] == '"' {
		var b strings.Builder
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '\\':
				if i++; i < len(s) {
					b.WriteByte(s[i])
				}
				continue
			case '"':
				raw := s[1:i]
				return b.String(), raw, s[i+1:] // raw: for those who leave backslashes alone
			}
			b.WriteByte(s[i])
		}
		s = s[1:] // the end quote is missing
		value, rest, _ = strings.Cut(s, ";")
		return strings.TrimSpace(value), s, rest
	}
	full, rest, _ = strings.Cut(s, ";")
	full = strings.TrimSpace(full)
	value = full
	if i := strings.IndexAny(value, " \t\r\n("); i > 0 {
		value = value[:i]
	}
	return value, full, rest
}

func skipSpaceAndComments(s string) string {
	s = strings.TrimLeft(s, " \t\r\n")
	if s != "" && s[0] == '(' {
		return skip(s)
	}
	return s
}

// continued joins the RFC 2231 forms of a parameter: name*, name*0, name*0*, … The first result is by number, up to
// the first gap; the second, if it differs, takes everything there is in the order of the numbers.
func continued(params []param, name string) (out []string) {
	type piece struct {
		n        int
		value    string
		extended bool
	}
	var pieces []piece
	for _, q := range params {
		rest, ok := strings.CutPrefix(q.name, name+"*")
		if !ok {
			continue
		}
		if rest == "" {
			out = append(out, extended(q.value))
			continue
		}
		num, ext := strings.CutSuffix(rest, "*")
		if n, err := strconv.Atoi(num); err == nil && n >= 0 && n < 10_000 {
			pieces = append(pieces, piece{n, q.value, ext})
		}
	}
	if len(pieces) == 0 {
		return out
	}
	sort.SliceStable(pieces, func(i, j int) bool { return pieces[i].n < pieces[j].n })
	join := func(gaps bool) string {
		var b strings.Builder
		charset := ""
		for i, x := range pieces {
			if !gaps && x.n != i {
				break
			}
			v := x.value
			if x.extended {
				if i == 0 {
					if cs, _, rest, ok := extension(v); ok {
						charset, v = cs, rest
					}
				}
				v = unpercent(v)
			}
			b.WriteString(v)
		}
		return decodeCharset(charset, b.String())
	}
	for _, s := range []string{join(false), join(true)} {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// extension splits charset'language'value.
func extension(v string) (charset, language, rest string, ok bool) {
	f := strings.SplitN(v, "'", 3)
	if len(f) != 3 {
		return "", "", v, false
	}
	return f[0], f[1], f[2], true
}

// extended decodes an extended value, RFC 2231 §4.
func extended(v string) string {
	charset, _, rest, _ := extension(v)
	return decodeCharset(charset, unpercent(rest))
}

func unpercent(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if hi, lo := unhex[s[i+1]], unhex[s[i+2]]; hi|lo < 16 {
				b = append(b, hi<<4|lo)
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// decodeCharset makes UTF-8 of s if it can.
func decodeCharset(charset, s string) string {
	if charset == "" || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "us-ascii") {
		return s
	}
	e, err := htmlindex.Get(charset)
	if err != nil {
		return s
	}
	out, err := e.NewDecoder().String(s)
	if err != nil {
		return s
	}
	return out
}

// joinParams makes a map: the first of each name, RFC 2231 forms joined where there is no plain one.
func joinParams(params []param) map[string]string {
	if len(params) == 0 {
		return nil
	}
	m := make(map[string]string, len(params))
	for _, q := range params {
		base, _, star := strings.Cut(q.name, "*")
		if _, ok := m[base]; ok || base == "" {
			continue
		}
		if !star {
			m[base] = q.value
		} else if s := continued(params, base); len(s) > 0 {
			m[base] = s[0]
		}
	}
	return m
}

// names collects the file names that Content-Disposition and Content-Type give.
func (p *parser) names(part *Part, types []mediaType) {
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" && len(s) <= maxField && !slices.Contains(part.Names, s) && len(part.Names) < 32 {
			part.Names = append(part.Names, s)
		}
	}
	var meant string // what one parameter says
	mean := func(s string) {
		if s != "" && meant != "" && s != meant {
			part.odd(OddNames)
		}
		meant = s
		add(s)
	}
	collect := func(params []param, key string) {
		for _, s := range continued(params, key) {
			mean(words(s))
		}
		for _, q := range params {
			if q.name != key {
				continue
			}
			if q.quote {
				mean(words(q.value))
			} else {
				mean(words(q.full)) // file name=my file.exe
			}
			add(q.value)
			add(q.full)
		}
	}
	for i := range part.Header {
		f := &part.Header[i]
		if !sameName(f.Name, "content-disposition") {
			continue
		}
		typ, params, _ := parseField(f.Value, p.lim.MaxParams)
		if part.Disposition == "" {
			part.Disposition = typ
		}
		collect(params, "filename")
		collect(params, "name")
	}
	for _, t := range types {
		collect(t.params, "name")
		collect(t.params, "filename")
	}
	if len(part.Names) > 0 {
		part.Name = part.Names[0]
	}
}

// words decodes RFC 2047 words wherever they stand, parameters included, where they are not allowed but common.
func words(s string) string {
	if !strings.Contains(s, "=?") {
		if !utf8.ValidString(s) {
			return decodeCharset("windows-1252", s)
		}
		return s
	}
	d := mime.WordDecoder{CharsetReader: func(charset string, in io.Reader) (io.Reader, error) {
		e, err := htmlindex.Get(charset)
		if err != nil {
			return nil, err
		}
		return e.NewDecoder().Reader(in), nil
	}}
	if out, err := d.DecodeHeader(s); err == nil {
		return out
	}
	return s
}

// Words decodes the RFC 2047 words of a header field's value, as far as they can be decoded.
func Words(s string) string { return words(s) }

// encodings reads Content-Transfer-Encoding.
func (p *parser) encodings(part *Part) {
	fields := 0
	for i := range part.Header {
		f := &part.Header[i]
		if !sameName(f.Name, "content-transfer-encoding") {
			continue
		}
		if fields++; fields > 1 {
			part.odd(OddDuplicateEncoding)
		}
		v := f.Value
		if strings.Contains(v, "=?") {
			part.odd(OddBadEncoding)
			v = words(v)
		}
		v = strings.ToLower(strings.TrimSpace(comments(v)))
		tokens := strings.FieldsFunc(v, func(r rune) bool {
			return r == ',' || r == ';' || r == ' ' || r == '\t' || r == '"' || r == '\'' || r == '\r'
		})
		if len(tokens) != 1 || tokens[0] != v {
			part.odd(OddBadEncoding)
			tokens = append(tokens, strings.Join(tokens, "")) // "base 64"
		}
		for _, t := range tokens {
			if len(part.Encodings) < maxReadings && !slices.Contains(part.Encodings, t) && (knownEncoding(t) || len(tokens) == 1) {
				part.Encodings = append(part.Encodings, t)
			}
			if len(tokens) == 1 && !knownEncoding(t) {
				part.odd(OddUnknownEncoding)
			}
		}
	}
	if len(part.Encodings) == 0 {
		part.Encodings = []string{"7bit"} // RFC 2045 §6.1
	}
	part.Encoding = part.Encodings[0]
}

func knownEncoding(enc string) bool {
	return enc == "7bit" || enc == "8bit" || enc == "binary" || isEncoded(enc)
}

func isEncoded(enc string) bool {
	switch enc {
	case "base64", "quoted-printable", "uuencode", "x-uuencode", "x-uue", "uue":
		return true
	}
	return false
}
