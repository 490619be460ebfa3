package mimetree

import (
	"bytes"
	"io"
	"slices"
	"strconv"
)

// maxBoundary is the longest delimiter that is looked for. RFC 2046 §5.1.1 allows 70.
const maxBoundary = 16 << 10

// emptyBoundary stands for a boundary that is there and empty: the delimiter is "--" alone.
const emptyBoundary = "\x00"

// maxReadings is how many ways an entity may be read besides the first.
const maxReadings = 8

type parser struct {
	w           window
	lim         Limits
	parts       int
	headerBytes int
	full        bool // MaxParts was reached
	value       []byte
	waiting     []reading
	loose       bool // of the reading that is being made
	within      bool // the same
	guesses     int  // calls of guessParts
	indented    bool // a delimiter within a line was met
}

// maxAllReadings is how many other readings all entities together may have.
const maxAllReadings = 1000

// reading is a way to read the octets of a part that differs from the one that stands in the tree.
type reading struct {
	part     *Part
	typ      string // with boundary: what to take it for
	boundary string
	raw      bool   // as if it were not encoded
	maybe    string // not empty: only if it finds parts or fields, which is this oddity
	within   bool   // a delimiter may begin within a line
	loose    bool   // a delimiter may have anything behind it
	header   bool   // instead: begin again, with the header ending at end, or beginning at start
	start    int64  // when header
	end      int64  // when header and not 0
}

func newParser(body io.ReaderAt, size int64, lim Limits) *parser {
	return &parser{w: window{body: body, size: max(size, 0)}, lim: lim.withDefaults()}
}

// frame is an entity that is open: its end is not known yet.
type frame struct {
	part     *Part
	boundary string // "" for a message
	shadowed int    // the frame with the same boundary that this one hides, -1 for none
	text     int64  // where the preamble or epilogue begins, -1 while a child is open
	started  bool   // a delimiter was seen
	closed   bool   // the closing delimiter was seen
	children int
	key      [8]byte // see walker.key
	keyLen   int
	strayed  bool // a delimiter was seen within a line
}

// walker holds the way from the top to where the parser is.
type walker struct {
	*parser
	stack []frame
	byKey map[string]int // boundary to the innermost frame that has it
	limit int64
	base  int   // entities around the top
	leaf  *Part // the open leaf, nil in text between parts
}

// walk reads top, whose octets end at limit. With known, its header has been read already.
func (p *parser) walk(top *Part, limit int64, known bool) {
	w := &walker{parser: p, byKey: map[string]int{}, limit: limit, base: top.depth()}
	w.run(top, 1, known)
}

// run reads cur, the n-th of its siblings, and everything behind it.
func (w *walker) run(cur *Part, n int, known bool) {
	p := w.parser
	for ; cur != nil; known = false {
		if !known {
			w.header(cur)
			p.classify(cur, w.base+len(w.stack))
			cur.number(n)
		}
		n = 1
		switch cur.Kind {
		case Message:
			w.push(frame{part: cur, text: -1})
			if cur = w.newPart(cur, cur.BodyStart); cur == nil {
				w.closeTo(0, w.limit)
			}
			continue
		case Multipart:
			w.push(frame{part: cur, boundary: cur.Boundary, text: cur.BodyStart})
			w.leaf = nil
		default:
			w.leaf = cur
		}
		cur, n = w.next(cur.BodyStart)
	}
}

// push opens an entity.
func (w *walker) push(f frame) {
	f.shadowed = -1
	f.setKey()
	if f.boundary != "" {
		if i, ok := w.byKey[f.boundary]; ok {
			f.shadowed = i
			f.part.odd(OddSameBoundary)
		}
		w.byKey[f.boundary] = len(w.stack)
	}
	w.stack = append(w.stack, f)
}

// newPart makes a child, or the rest of everything when there are too many.
func (w *walker) newPart(parent *Part, start int64) *Part {
	if w.parts >= w.lim.MaxParts {
		if !w.full {
			w.full = true
			parent.odd(OddTooManyParts)
		}
		parent.text(Rest, start, w.limit)
		return nil
	}
	w.parts++
	return parent.child(start)
}

// next goes from pos, the beginning of a line, to the next part and returns it with its number among its siblings.
// It returns nil at the end, with everything closed.
func (w *walker) next(pos int64) (*Part, int) {
	for {
		d, ok := w.delimiter(pos)
		if !ok {
			w.closeTo(0, w.limit)
			return nil, 0
		}
		w.closeTo(d.frame+1, d.before)
		f := &w.stack[d.frame]
		if f.text >= 0 {
			kind := Preamble
			if f.started {
				kind = Epilogue
			}
			f.part.text(kind, f.text, d.before)
			if kind == Preamble {
				w.suggestIn(f.part, f.text, d.before)
				w.around(f.part, OddPartsInPreamble)
			} else if f.text < d.before {
				w.around(f.part, OddEntityAfterEnd)
			}
			f.text = -1
		}
		f.started = true
		if d.closing {
			if !f.closed {
				f.part.Close = d.before
			}
			f.closed, f.text, w.leaf = true, d.after, nil
			pos = d.after
			continue
		}
		if f.closed {
			f.part.odd(OddPartsAfterEnd)
		}
		f.children++
		child := w.newPart(f.part, d.after)
		if child == nil {
			w.leaf = nil
			f.closed = true // there is no telling
			w.closeTo(0, w.limit)
		}
		return child, f.children
	}
}

// closeTo ends the open leaf and every frame from index on at offset end.
func (w *walker) closeTo(index int, end int64) {
	if w.leaf != nil {
		w.leaf.End = max(end, w.leaf.BodyStart)
		w.leaf = nil
	}
	for i := len(w.stack) - 1; i >= index; i-- {
		f := &w.stack[i]
		f.part.End = max(end, f.part.BodyStart)
		if f.boundary == "" {
			continue
		}
		if f.text >= 0 {
			kind := Preamble
			if f.started {
				kind = Epilogue
			}
			f.part.text(kind, f.text, max(end, f.text))
			if kind == Epilogue && f.text < end {
				w.around(f.part, OddEntityAfterEnd)
			}
		}
		switch {
		case !f.started:
			f.part.odd(OddBoundaryNotFound)
			w.suggest(f.part, f.boundary)
		case !f.closed:
			f.part.odd(OddNoEnd)
		}
		if f.shadowed >= 0 {
			w.byKey[f.boundary] = f.shadowed
		} else {
			delete(w.byKey, f.boundary)
		}
	}
	w.stack = w.stack[:min(index, len(w.stack))]
}

// suggest asks for another reading of a multipart whose boundary is nowhere, with the delimiter that its text uses.
func (w *walker) suggest(part *Part, not string) {
	if b := w.guess(part.BodyStart, part.End); b != "" && b != not {
		w.wait(reading{part: part, typ: part.Type, boundary: b})
	}
}

// suggestIn asks for another reading of a multipart that has something like a delimiter before its first one (M-010).
func (w *walker) suggestIn(part *Part, start, end int64) {
	if b := w.guess(start, end); b != "" && b != part.Boundary {
		odd := ""
		if w.guessParts(start, end) != "" {
			odd = OddPartsInPreamble
		}
		w.wait(reading{part: part, typ: part.Type, boundary: b, maybe: odd})
	}
}

// around looks at text before the first delimiter or behind the last one, in the last child of part: an entity there is
// shown by some programs.
func (w *walker) around(part *Part, odd string) {
	if len(part.Children) == 0 {
		return
	}
	text := part.Children[len(part.Children)-1]
	if i := entity(w.w.at(text.Start, text.End)); i >= 0 && text.Kind != Leaf {
		w.wait(reading{part: text, header: true, start: text.Start + int64(i), maybe: odd})
	}
}

// guess returns the first line at pos or later, in the first 64 KiB, that looks like a delimiter.
func (p *parser) guess(pos, limit int64) string {
	b := p.w.at(pos, limit)
	for at, start := 0, true; at < len(b); start = false {
		i := dashes(b[at:], start)
		if i < 0 {
			return ""
		}
		line := b[at+i+2:]
		if n := bytes.IndexByte(line, '\n'); n >= 0 {
			line = line[:n]
		}
		line = bytes.TrimRight(line, " \t\r")
		if len(line) > 0 && len(line) <= maxBoundary && len(bytes.Trim(line, "-")) > 0 && line[0] != ' ' {
			return string(line)
		}
		at += i + 1
	}
	return ""
}

// delimiter is a line that begins or ends a part.
type delimiter struct {
	frame   int
	closing bool
	before  int64 // end of what is before the line, without the line end that belongs to the delimiter
	after   int64 // beginning of the next line
}

// delimiter finds the next delimiter line of an open multipart at pos, which begins a line, or later.
func (w *walker) delimiter(pos int64) (delimiter, bool) {
	if len(w.byKey) == 0 {
		return delimiter{}, false
	}
	for start := true; pos < w.limit; {
		b := w.w.at(pos, w.limit)
		if len(b) == 0 {
			break
		}
		i, stray := -1, false
		if w.within {
			i = anywhere(b)
		} else if i, stray = dashesOr(b, start, w.key()); stray {
			w.stray()
		}
		if i < 0 {
			if pos+int64(len(b)) >= min(w.limit, w.w.size) {
				break
			}
			pos += int64(len(b)) - 16 // the beginning of a delimiter may be the last we see
			start = false
			continue
		}
		cr := i > 0 && b[i-1] == '\r'
		before := int64(i)
		if i > 0 && (cr || b[i-1] == '\n') { // RFC 2046 §5.1.1: the line end before the delimiter belongs to it
			before--
			if before > 0 && b[before] == '\n' && b[before-1] == '\r' {
				before--
			}
		}
		before += pos
		pos += int64(i)
		d, ok := w.match(pos)
		switch {
		case ok && cr:
			w.stack[d.frame].part.odd(OddDelimiterCR)
		case ok:
			d.before = before
			if i == 0 {
				n := w.eolBefore(pos)
				d.before = pos - n
				w.indented = w.indented || w.within && n == 0
			}
			w.indented = w.indented || i > 0 && b[i-1] != '\n'
			return d, true
		}
		w.dashed(b[i:])
		pos += 2
		if w.within {
			pos--
		}
		start = false
	}
	return delimiter{}, false
}

// eolBefore returns the length of the line end just before pos. It is needed where a window or a part begins there.
func (w *walker) eolBefore(pos int64) int64 {
	var two [2]byte
	if pos < 2 {
		return 0
	}
	if n, _ := w.w.body.ReadAt(two[:], pos-2); n < 2 || two[1] != '\n' {
		return 0
	}
	if two[0] == '\r' {
		return 2
	}
	return 1
}

// match compares the line at pos, which begins with two dashes, with the open boundaries: the longest one that fits,
// of equal ones the innermost.
func (w *walker) match(pos int64) (d delimiter, ok bool) {
	b := w.w.at(pos, w.limit)
	if len(b) < 2 {
		return delimiter{}, false // the dashes could be read before, and now they cannot
	}
	n := bytes.IndexByte(b, '\n')
	d.after = pos + int64(n) + 1
	if n < 0 {
		n, d.after = len(b), pos+int64(len(b))
		if d.after < min(w.limit, w.w.size) { // padding without end
			b, d.after, _ = w.w.line(pos, w.limit)
			b = bytes.Clone(b)
			n = len(b)
		}
	}
	line := bytes.TrimRight(b[2:n], " \t\r") // RFC 2046 §5.1.1: transport padding
	if len(line) <= maxBoundary+2 {
		if d.frame, ok = w.byKey[string(line)]; ok {
			return d, true
		}
		if bytes.HasSuffix(line, []byte("--")) {
			if d.frame, ok = w.byKey[string(line[:len(line)-2])]; ok {
				d.closing = true
				return d, true
			}
		}
	}
	if d.frame, ok = w.byKey[emptyBoundary]; ok && (len(line) == 0 || string(line) == "--") {
		d.closing = len(line) > 0
		return d, true
	}
	return w.junk(d, line)
}

// junk looks for a boundary with something behind it, which for some programs is a delimiter nonetheless (M-007): of
// the innermost multiparts, the longest that fits.
func (w *walker) junk(d delimiter, line []byte) (delimiter, bool) {
	found := false
	for i, near := len(w.stack)-1, 8; i >= 0 && near > 0; i-- {
		f := &w.stack[i]
		if f.boundary == "" {
			continue
		}
		near--
		rest, ok := bytes.CutPrefix(line, []byte(f.boundary))
		if !ok || len(rest) == 0 {
			continue
		}
		known := slices.Contains(f.part.Odd, OddDelimiterJunk)
		f.part.odd(OddDelimiterJunk)
		if !w.loose && !known {
			w.wait(reading{part: f.part, typ: f.part.Type, boundary: f.boundary, loose: true})
		} else if w.loose && !found || w.loose && len(f.boundary) > len(w.stack[d.frame].boundary) {
			d.frame, d.closing, found = i, bytes.HasPrefix(rest, []byte("--")), true
		}
	}
	return d, found
}

// wait remembers another reading of a part until the part's end is known.
func (p *parser) wait(r reading) {
	if r.part.around {
		r.part.odd(OddTooManyReadings)
		return
	}
	n := 0
	for i := range p.waiting {
		if p.waiting[i].part != r.part {
			continue
		}
		if n++; p.waiting[i] == r {
			return
		}
		if n >= maxReadings {
			r.part.odd(OddTooManyReadings)
			return
		}
	}
	if len(p.waiting) >= maxAllReadings {
		r.part.odd(OddTooManyReadings)
		return
	}
	p.waiting = append(p.waiting, r)
}

// readings makes the trees of the other readings, and of theirs, as far as the budget goes.
func (p *parser) readings(root *Part) {
	budget := p.w.walked + 8*p.w.size + 1<<20
	p.lim.MaxParts += p.parts // they have as many of their own
	p.full = false
	for made := 0; len(p.waiting) > 0; made++ {
		r := p.waiting[0]
		p.waiting = p.waiting[1:]
		if made >= maxAllReadings || p.w.walked+(r.part.End-r.part.Start) > budget || p.parts >= p.lim.MaxParts {
			root.odd(OddTooManyReadings)
			return
		}
		p.parts++
		p.other(r)
	}
}

// other reads a part in another way.
func (p *parser) other(r reading) {
	old := r.part
	x := &Part{Parent: old.Parent, Start: old.Start, End: old.End}
	if r.header {
		x.Start = r.start
		w := &walker{parser: p, limit: old.End}
		if r.end > 0 {
			w.limit = r.end
		}
		w.header(x)
		if r.end > 0 {
			x.HeaderEnd, x.BodyStart = r.end, r.end
		}
		p.classify(x, old.depth())
	} else {
		x.Header, x.HeaderEnd, x.BodyStart = old.Header, old.HeaderEnd, old.BodyStart
		x.Disposition, x.Name, x.Names = old.Disposition, old.Name, old.Names
		x.Encoding, x.Encodings = old.Encoding, old.Encodings
		x.Type, x.Boundary, x.Params = r.typ, r.boundary, old.Params
		if r.raw {
			x.Encoding, x.Encodings = "binary", []string{"binary"}
		}
		p.kind(x, old.depth())
	}
	x.loose = r.loose
	x.Path = old.Path + "~" + strconv.Itoa(len(old.Others)+1)
	p.loose, p.within, p.indented = r.loose, r.within, false
	p.walk(x, old.End, true)
	p.loose, p.within = false, false
	if r.maybe != "" {
		if !x.makesSense(r.header) || r.within && !p.indented {
			return
		}
		old.odd(r.maybe)
	}
	old.Others = append(old.Others, x)
}

// depth returns the number of entities around p.
func (p *Part) depth() (n int) {
	for p = p.Parent; p != nil; p = p.Parent {
		n++
	}
	return n
}
