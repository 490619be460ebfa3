// Package mimetree finds the parts of a message: a tree of octet offsets over an io.ReaderAt.
//
// [Parse] never fails and never returns nil; in the worst case the tree is one opaque leaf. It copies nothing but header
// fields. What is odd about an entity stands in [Part.Odd] under stable names, and where the oddity lets an entity be
// read in a second way that shows other parts, that reading is a tree of its own in [Part.Others]. Nothing is hidden
// from the caller: text before the first delimiter, between and after the delimiters are parts as well (see [Kind]).
// Transfer encodings are undone by [Part.Decoded], as a stream and as tolerantly as mail programs do it.
//
// Bounds: one buffer of 64 KiB whatever the size of the message; no recursion by depth of the input; time linear in
// size (other readings together walk at most eight times the message); everything else is in [Limits].
package mimetree

import (
	"io"
	"iter"
	"slices"
	"strconv"
)

// Limits bounds what Parse keeps. Zero fields mean the defaults.
type Limits struct {
	MaxDepth       int // nesting of multiparts and messages: 100
	MaxParts       int // parts of all readings together: 10,000
	MaxHeaderBytes int // header octets kept, all parts together: 8 MiB; Content-* fields are kept beyond it
	MaxFields      int // header fields of one part: 10,000
	MaxParams      int // parameters of one field: 100
}

func (l Limits) withDefaults() Limits {
	or := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	or(&l.MaxDepth, 100)
	or(&l.MaxParts, 10_000)
	or(&l.MaxHeaderBytes, 8<<20)
	or(&l.MaxFields, 10_000)
	or(&l.MaxParams, 100)
	return l
}

// Kind says what a Part is.
type Kind uint8

// The kinds. Preamble, Epilogue and Rest are not parts of the message as the standard has it, but octets that lie
// between them, where things can be hidden; they have no header.
const (
	Leaf      Kind = iota
	Multipart      // Children are its parts
	Message        // message/rfc822 and the like; Children[0] is the entity within
	Preamble       // text of a multipart before its first delimiter
	Epilogue       // text after a closing delimiter
	Rest           // what was not looked into because of MaxParts
)

// String returns a word for people.
func (k Kind) String() string {
	return [...]string{"leaf", "multipart", "message", "preamble", "epilogue", "rest"}[min(k, Rest)]
}

// Field is one header field. Start and End delimit its octets with the final line end.
type Field struct {
	Start, End int64
	Name       string // as written
	Value      string // unfolded, without white space at the ends, at most 64 KiB of it
	Doubtful   bool   // only some readers see a field here (it follows a bare CR)
}

// Part is an entity: the message itself, or something in it.
type Part struct {
	// Path is the part number as in IMAP ("2.1"); the message itself is "" when it is a multipart and "1" when not.
	// The multipart directly inside of message 2 is "2.TEXT". Text around parts has a name ("2.preamble") and a second
	// reading a tilde ("2~1").
	Path string
	Kind Kind

	// Octets: [Start, HeaderEnd) is the header, then follows the blank line, [BodyStart, End) is the body.
	Start, HeaderEnd, BodyStart, End int64

	// Close is where the (first) closing delimiter of a multipart begins, with the line end before it; 0 for none.
	Close int64

	Header      []Field
	Type        string            // media type in lower case; never empty
	Params      map[string]string // of Content-Type, names in lower case, RFC 2231 joined and decoded
	Disposition string            // lower case, "" when there is none
	Name        string            // the file name most programs would show, decoded; may be empty
	Names       []string          // every file name that some program may show
	Encoding    string            // content transfer encoding in lower case: "base64", "quoted-printable", "7bit", …
	Encodings   []string          // every encoding that some program may undo, Encoding first
	Boundary    string            // the delimiter that was looked for, without the leading dashes

	Parent   *Part
	Children []*Part
	Others   []*Part  // the same octets in other readings
	Odd      []string // see the Odd constants

	loose  bool // read with delimiters that have something behind them
	around bool // stands for what a Rest lies in: its other readings were made when it was read itself
}

// Names in Part.Odd.
const (
	OddHeaderJunk        = "header-junk"              // a line in the header that is no field
	OddNoSeparator       = "no-header-body-separator" // the body begins without a blank line
	OddBlankLooking      = "blank-looking-line"       // a header line of white space only: for some the end of the header
	OddLeadingBlank      = "leading-blank-line"       // a blank line before the header
	OddMboxFrom          = "mbox-from"                // a "From " line before the header
	OddByteOrderMark     = "byte-order-mark"
	OddNulInHeader       = "nul-in-header"
	OddBareCR            = "bare-cr" // in the header
	OddSpaceBeforeColon  = "space-before-colon"
	OddLongLine          = "long-header-line" // over 64 KiB
	OddDuplicateType     = "duplicate-content-type"
	OddDuplicateEncoding = "duplicate-content-transfer-encoding"
	OddMalformedType     = "malformed-content-type"
	OddTypeSyntax        = "content-type-syntax"    // comments, blanks, quotes, control characters in the type
	OddFieldSyntax       = "header-field-syntax"    // a name that only some programs take for Content-Type and the like
	OddFoldedField       = "folded-header-field"    // such a field where another one is continued
	OddMixedHeaderEnd    = "mixed-header-line-ends" // some lines end in CRLF, some in LF
	OddPartsInText       = "parts-in-text"          // what should be no multipart looks like one
	OddPartsInPreamble   = "parts-before-first"     // delimiters or an entity before the first delimiter
	OddEntityAfterEnd    = "entity-after-close"     // a header and a body behind the closing delimiter
	OddDelimiterIndent   = "delimiter-within-line"  // not at the beginning of the line
	OddUnknownEncoding   = "unknown-content-transfer-encoding"
	OddBadEncoding       = "malformed-content-transfer-encoding" // "base64," and the like
	OddNames             = "conflicting-names"
	OddDuplicateBoundary = "duplicate-boundary" // several boundary parameters, or several ways to read one
	OddNoBoundary        = "boundary-missing"   // the parameter
	OddBoundaryNotFound  = "boundary-not-found" // no delimiter line
	OddNoEnd             = "boundary-missing-end"
	OddSameBoundary      = "nested-same-boundary"
	OddBoundaryLong      = "boundary-too-long"
	OddDelimiterJunk     = "delimiter-with-junk"
	OddDelimiterCR       = "bare-cr-before-delimiter"
	OddPartsAfterEnd     = "parts-after-close"
	OddEncodedMultipart  = "encoded-multipart"
	OddEncodedMessage    = "encoded-message"
	OddBadBase64         = "bad-base64"           // from Decoder.Odd
	OddBadQP             = "bad-quoted-printable" // from Decoder.Odd
	OddBadUU             = "bad-uuencode"         // from Decoder.Odd
	OddTooDeep           = "too-deep"
	OddTooManyParts      = "too-many-parts"
	OddTooManyFields     = "too-many-header-fields"
	OddHeaderTooLong     = "header-too-long"
	OddTooManyReadings   = "too-many-readings"
)

// IsLimit says whether the oddity means that something was not looked into.
func IsLimit(odd string) bool {
	switch odd {
	case OddTooDeep, OddTooManyParts, OddTooManyFields, OddHeaderTooLong, OddTooManyReadings:
		return true
	}
	return false
}

// IsAmbiguous says whether the oddity means that programs may disagree on which parts there are or what they hold.
func IsAmbiguous(odd string) bool {
	switch odd {
	case OddNoEnd, OddMboxFrom, OddEncodedMessage, OddNames, OddUnknownEncoding, OddMalformedType, OddPartsInText, OddBadQP, OddBadUU:
		return false
	}
	return true
}

// Parse reads the structure of the message in the first size octets of body. An error of body's ReadAt is taken for
// the end of the message; the caller, who has to read the whole of it anyway, meets it again.
func Parse(body io.ReaderAt, size int64, lim Limits) *Part {
	return (*Buffers)(nil).Parse(body, size, lim)
}

// Parse is the function Parse in borrowed memory.
func (b *Buffers) Parse(body io.ReaderAt, size int64, lim Limits) *Part {
	p := newParser(body, size, lim)
	b.lend(&p.w)
	defer b.end(&p.w)
	root := &Part{End: size}
	p.parts++
	p.walk(root, size, false)
	p.readings(root)
	return root
}

// ParseDecoded reads the structure of decoded, which is what part.Decoded gave: the content of an encoded message or
// multipart. The result is a tree over decoded, not over the message that part is from.
func ParseDecoded(part *Part, decoded io.ReaderAt, size int64, lim Limits) *Part {
	return (*Buffers)(nil).ParseDecoded(part, decoded, size, lim)
}

// ParseDecoded is the function ParseDecoded in borrowed memory.
func (b *Buffers) ParseDecoded(part *Part, decoded io.ReaderAt, size int64, lim Limits) *Part {
	p := newParser(decoded, size, lim)
	b.lend(&p.w)
	defer b.end(&p.w)
	top := &Part{End: size, Path: part.Path}
	p.parts++
	if part.Kind != Multipart {
		top.Parent = &Part{Kind: Message, Path: part.Path}
		p.walk(top, size, false)
		top.Parent = nil
	} else {
		top.Path += "~decoded"
		top.Kind, top.Type, top.Params, top.Boundary = Multipart, part.Type, part.Params, part.Boundary
		top.Encoding, top.Encodings = "binary", []string{"binary"}
		p.walk(top, size, true)
	}
	p.readings(top)
	return top
}

// ParseRest goes on where Parse has stopped because of MaxParts: rest is a part of the kind Rest in a tree over body. The
// result is a tree of its own, whose top stands for what rest lies in; it may end in a Rest again.
func ParseRest(rest *Part, body io.ReaderAt, size int64, lim Limits) *Part {
	p := newParser(body, size, lim)
	w := &walker{parser: p, byKey: map[string]int{}, limit: rest.End}
	var around []*Part
	for a := rest.Parent; a != nil; a = a.Parent {
		around = append(around, a)
	}
	slices.Reverse(around)
	var top, last *Part
	for _, a := range around {
		p.loose = p.loose || a.loose
		x := &Part{loose: a.loose, around: true, Kind: a.Kind, Path: a.Path + "~rest", Parent: last, Type: a.Type, Params: a.Params, Boundary: a.Boundary,
			Encoding: "binary", Encodings: []string{"binary"}, Start: rest.Start, HeaderEnd: rest.Start, BodyStart: rest.Start, End: rest.End}
		if last == nil {
			top = x
		} else {
			last.Children = append(last.Children, x)
		}
		f := frame{part: x, text: -1, started: true}
		if x.Kind == Multipart {
			f.boundary = x.Boundary
		}
		w.push(f)
		last = x
	}
	if top == nil { // a broken caller
		return &Part{Kind: Rest, Start: rest.Start, End: rest.End}
	}
	w.run(w.newPart(last, rest.Start), 1, false)
	p.loose = false
	p.readings(top)
	return top
}

// All yields p and everything below it, in order, other readings after the part they are readings of.
func (p *Part) All() iter.Seq[*Part] {
	return func(yield func(*Part) bool) {
		todo := []*Part{p}
		for len(todo) > 0 {
			x := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if !yield(x) {
				return
			}
			for i := len(x.Others) - 1; i >= 0; i-- {
				todo = append(todo, x.Others[i])
			}
			for i := len(x.Children) - 1; i >= 0; i-- {
				todo = append(todo, x.Children[i])
			}
		}
	}
}

// Get returns the value of the first field of that name, in any case of letters, or "".
func (p *Part) Get(name string) string {
	for i := range p.Header {
		if sameName(p.Header[i].Name, name) {
			return p.Header[i].Value
		}
	}
	return ""
}

// Encoded says whether Decoded gives other octets than the body's own.
func (p *Part) Encoded() bool { return isEncoded(p.Encoding) }

// maybeEncoded says whether some program may undo an encoding.
func (p *Part) maybeEncoded() bool { return slices.ContainsFunc(p.Encodings, isEncoded) }

// odd notes an oddity once.
func (p *Part) odd(name string) {
	for _, o := range p.Odd {
		if o == name {
			return
		}
	}
	p.Odd = append(p.Odd, name)
}

// child makes the next part inside of p.
func (p *Part) child(start int64) *Part {
	c := &Part{Parent: p, Start: start, HeaderEnd: start, BodyStart: start, End: start}
	p.Children = append(p.Children, c)
	return c
}

// text adds a pseudo part to p unless it would be empty.
func (p *Part) text(kind Kind, start, end int64) {
	if end <= start {
		return
	}
	p.Children = append(p.Children, &Part{Parent: p, Kind: kind, Path: join(p.Path, kind.String()),
		Start: start, HeaderEnd: start, BodyStart: start, End: end,
		Type: "text/plain", Encoding: "7bit", Encodings: []string{"7bit"}})
}

// number gives p its path, once its kind is known; n is its place among its siblings, from 1.
func (p *Part) number(n int) {
	switch {
	case p.Parent == nil && p.Path != "" || p.Parent == nil && p.Kind == Multipart:
	case p.Parent == nil:
		p.Path = "1"
	case p.Parent.Kind == Message && p.Kind == Multipart:
		p.Path = p.Parent.Path + ".TEXT"
	case p.Parent.Kind == Message:
		p.Path = p.Parent.Path + ".1"
	default:
		p.Path = join(trimText(p.Parent.Path), strconv.Itoa(n))
	}
}

func join(path, last string) string {
	if path == "" {
		return last
	}
	return path + "." + last
}

// trimText turns "2.TEXT" into "2": the parts of the multipart directly in message 2 are 2.1, 2.2 …
func trimText(path string) string {
	const text = ".TEXT"
	if n := len(path) - len(text); n > 0 && path[n:] == text {
		return path[:n]
	}
	return path
}
