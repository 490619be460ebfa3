package mimetree

import (
	"bytes"
	"strings"
)

const maxField = 64 << 10

// header reads the header of part, which begins at part.Start, and finds where its body begins. It ends at a blank
// line, at a delimiter of an open multipart, or where no more fields follow.
func (w *walker) header(part *Part) {
	pos := part.Start
	if part.Parent == nil || part.Parent.Kind == Message {
		pos = w.prologue(part, pos)
	}
	h := headerReader{walker: w, part: part}
	defer h.finish()
	end := int64(0) // length of the line end of the last line
	for pos < w.limit {
		line, next, cut := w.w.line(pos, w.limit)
		if cut {
			part.odd(OddLongLine)
		}
		if len(line) == 0 {
			part.HeaderEnd, part.BodyStart = pos, next
			if end > 0 && next-pos != end {
				part.odd(OddMixedHeaderEnd)
			}
			return
		}
		if last := end; !cut {
			if end = next - pos - int64(len(line)); last > 0 && last != end {
				part.odd(OddMixedHeaderEnd)
			}
		}
		if h.line(pos, next, line) {
			pos = next
			continue
		}
		part.HeaderEnd, part.BodyStart = pos, pos
		return
	}
	part.HeaderEnd, part.BodyStart = w.limit, w.limit
}

// prologue skips what some programs skip at the beginning of a message.
func (w *walker) prologue(part *Part, pos int64) int64 {
	b := w.w.at(pos, w.limit)
	if bytes.HasPrefix(b, []byte("\xef\xbb\xbf")) {
		part.odd(OddByteOrderMark)
		pos += 3
		b = b[3:]
	}
	for _, from := range []string{"From ", ">From "} {
		if bytes.HasPrefix(b, []byte(from)) {
			part.odd(OddMboxFrom)
			_, pos, _ = w.w.line(pos, w.limit)
			return pos
		}
	}
	if len(b) > 0 && (b[0] == '\n' || b[0] == '\r' && len(b) > 1 && b[1] == '\n') {
		// The standard has an empty header here; many programs look further.
		part.odd(OddLeadingBlank)
		at := pos
		for at < w.limit {
			line, next, _ := w.w.line(at, w.limit)
			if len(bytes.TrimSpace(line)) > 0 {
				break
			}
			at = next
		}
		if at < w.limit {
			w.wait(reading{part: part, header: true, start: at})
		}
	}
	return pos
}

// headerReader gathers the fields of one header.
type headerReader struct {
	*walker
	part  *Part
	open  bool    // value belongs to a field that may be continued
	field Field   // without its value
	junk  int64   // up to here lines without a colon are known to be followed by a field
	blank int64   // where the body begins for those who skip junk up to a blank line
	tried bool    // another reading for junk was asked for
	inner []Field // fields that some programs see within the open one
}

// line takes one line that is not empty. It says whether the header goes on.
func (h *headerReader) line(pos, next int64, line []byte) bool {
	if bytes.HasPrefix(line, []byte("--")) && (h.isOpen(line) || bytes.IndexByte(line, ':') < 0) {
		if !h.isOpen(line) { // M-011: a delimiter ends the header
			h.part.odd(OddNoSeparator)
		}
		return false
	}
	if line[0] == ' ' || line[0] == '\t' {
		if len(bytes.TrimLeft(line, " \t")) == 0 {
			h.part.odd(OddBlankLooking)
			if h.open {
				h.otherEnd(next)
			}
		}
		if h.open { // RFC 5322 §2.2.3: folding
			if name, value, ok := within(line); ok {
				h.part.odd(OddFoldedField)
				h.inner = append(h.inner, Field{Start: pos, End: next, Name: name, Value: value, Doubtful: true})
			}
			h.add(line, true)
			h.field.End = next
			return true
		}
	}
	if name, value, ok := h.split(line); ok {
		h.finish()
		h.field = Field{Start: pos, End: next, Name: name}
		h.open = true
		h.add(value, false)
		return true
	}
	h.finish()
	if name := nearly(line); name != "" && h.colonFollows(next) {
		h.part.odd(OddFieldSyntax)
		h.field = Field{Start: pos, End: next, Name: name}
		h.open = true
		return true
	}
	if pos >= h.junk && !h.fieldFollows(next) {
		if len(h.part.Header) > 0 {
			h.part.odd(OddNoSeparator)
			if h.blank > 0 {
				h.otherEnd(h.blank)
			}
		}
		return false
	}
	h.part.odd(OddHeaderJunk)
	h.otherEnd(pos)
	return true
}

// otherEnd asks for the reading in which the header ends at pos.
func (h *headerReader) otherEnd(pos int64) {
	if !h.tried && pos > h.part.Start {
		h.tried = true
		h.wait(reading{part: h.part, header: true, start: h.part.Start, end: pos})
	}
}

// isOpen says whether the line is a delimiter of an open multipart.
func (w *walker) isOpen(line []byte) bool {
	line = bytes.TrimRight(line[2:], " \t\r")
	if _, ok := w.byKey[string(line)]; ok {
		return true
	}
	_, ok := w.byKey[string(bytes.TrimSuffix(line, []byte("--")))]
	return ok
}

// fieldFollows looks for a field behind junk, before the next blank line or delimiter and not too far away.
func (h *headerReader) fieldFollows(pos int64) bool {
	for far := pos + 256<<10; pos < min(h.limit, far); {
		line, next, _ := h.w.line(pos, h.limit)
		if len(line) == 0 {
			h.blank = next
			return false
		}
		if bytes.HasPrefix(line, []byte("--")) {
			return false
		}
		if line[0] != ' ' && line[0] != '\t' {
			if _, _, ok := h.split(line); ok {
				h.junk = pos
				return true
			}
		}
		pos = next
	}
	return false
}

// split takes a line apart into field name and the rest.
func (h *headerReader) split(line []byte) (name string, value []byte, ok bool) {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return "", nil, false
	}
	raw := line[:colon]
	if bytes.IndexByte(raw, 0) >= 0 {
		raw = bytes.ReplaceAll(raw, []byte{0}, nil)
	}
	trimmed := bytes.Trim(raw, " \t")
	if len(trimmed) == 0 || len(trimmed) > 256 {
		return "", nil, false
	}
	for _, c := range trimmed {
		if c <= ' ' || c >= 0x7f { // RFC 5322 §3.6.8
			if name = nearly(trimmed); name == "" {
				return "", nil, false
			}
			h.part.odd(OddFieldSyntax)
			return name, line[colon+1:], true
		}
	}
	if bytes.IndexByte(trimmed, '_') >= 0 && nearly(trimmed) != "" {
		h.part.odd(OddFieldSyntax)
		trimmed = []byte(nearly(trimmed))
	}
	if len(raw) < colon {
		h.part.odd(OddNulInHeader)
	}
	if len(trimmed) < len(raw) {
		h.part.odd(OddSpaceBeforeColon)
	}
	value = line[colon+1:]
	if len(value) > 0 && value[0] == ':' && nearly(trimmed) != "" {
		h.part.odd(OddFieldSyntax)
		value = bytes.TrimLeft(value, ":")
	}
	return string(trimmed), value, true
}

// add appends to the value of the open field.
func (h *headerReader) add(b []byte, folded bool) {
	if bytes.IndexByte(b, 0) >= 0 {
		h.part.odd(OddNulInHeader)
		b = bytes.ReplaceAll(b, []byte{0}, nil)
	}
	b = bytes.Trim(b, " \t")
	if room := maxField - len(h.value); len(b) > room {
		h.part.odd(OddLongLine)
		b = b[:max(room, 0)]
	}
	if folded && len(h.value) > 0 && len(b) > 0 {
		h.value = append(h.value, ' ')
	}
	h.value = append(h.value, b...)
}

// finish puts the open field into the header.
func (h *headerReader) finish() {
	if !h.open {
		return
	}
	h.open = false
	value := string(h.value)
	h.value = h.value[:0]
	if len(value) > 0 && value[0] == ':' && nearly([]byte(h.field.Name)) != "" { // it was folded before its colon
		value = strings.TrimLeft(value, ": \t")
	}
	h.keep(h.field, value)
	for _, f := range h.inner {
		h.keep(f, f.Value)
	}
	h.inner = h.inner[:0]
	if strings.IndexByte(value, '\r') < 0 {
		return
	}
	// For some programs a bare CR ends the line, and what follows is a field of its own.
	h.part.odd(OddBareCR)
	for i, piece := range strings.Split(value, "\r") {
		if name, v, ok := h.split([]byte(strings.TrimLeft(piece, "\n"))); i > 0 && ok {
			h.keep(Field{Start: h.field.Start, End: h.field.End, Name: name, Doubtful: true}, strings.TrimSpace(string(v)))
		}
	}
}

// keep stores a field as far as the limits allow.
func (h *headerReader) keep(f Field, value string) {
	structural := len(f.Name) > 8 && sameName(f.Name[:8], "content-")
	switch {
	case structural && len(h.part.Header) < h.lim.MaxFields+256:
	case len(h.part.Header) >= h.lim.MaxFields:
		h.part.odd(OddTooManyFields)
		return
	case h.headerBytes+len(value) > h.lim.MaxHeaderBytes:
		h.part.odd(OddHeaderTooLong)
		return
	}
	h.headerBytes += len(f.Name) + len(value) + 64
	f.Value = value
	h.part.Header = append(h.part.Header, f)
}

// sameName compares ASCII without regard to case.
func sameName(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }

// colonFollows says whether the line at pos continues a name that was folded before its colon.
func (h *headerReader) colonFollows(pos int64) bool {
	line, _, _ := h.w.line(pos, h.limit)
	return len(line) > 1 && (line[0] == ' ' || line[0] == '\t') && bytes.HasPrefix(bytes.TrimLeft(line, " \t"), []byte{':'})
}
