package dot

import "bytes"

// The states of the automaton for [\r\n]\0*\.\0*[\r\n].
const (
	eodNone uint8 = iota
	eodLine       // after [\r\n]\0*
	eodDot        // after [\r\n]\0*\.\0*
)

// watch follows one direction of dot-terminated wire octets and takes notes. Its clean path costs one IndexByte per
// line and two Counts per block; octets are looked at one by one only in blocks that hold a bare CR, a bare LF or a
// NUL, since without these nothing EOD-like can exist.
type watch struct {
	info  *Info
	off   int64 // content octets so far
	line  int64 // octets of the current line so far, a pending CR included
	state uint8
	bol   bool // the last two octets were CRLF, or nothing was seen yet
	cr    bool // the last octet was a CR
}

// newWatch begins after the CRLF of the command line.
func newWatch(info *Info) watch { return watch{info: info, state: eodLine, bol: true} }

// dot notes a dot at the begin of a line that is on the wire and not part of the content.
func (w *watch) dot() {
	w.info.Wire++
	w.state, w.bol, w.cr = eodDot, false, false
}

// run notes the octets of b up to the first dot at the begin of a line, and returns their number. If w.bol is set,
// b must not begin with a dot.
func (w *watch) run(b []byte) int {
	n, lineAt, crlf, bareLF := len(b), 0, int64(0), int64(0)
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			break
		}
		end := at + i
		at = end + 1
		if end > 0 && b[end-1] != '\r' || end == 0 && !w.cr {
			bareLF++
			continue
		}
		crlf++
		if l := w.line + int64(end-lineAt) - 1; l > w.info.Longest {
			w.info.Longest = l
		}
		w.line, lineAt = 0, at
		if at < n && b[at] == '.' {
			n = at
			break
		}
	}
	if n == 0 {
		return 0
	}
	b = b[:n]
	bareCR := int64(bytes.Count(b, []byte{'\r'})) - crlf
	if w.cr {
		bareCR++
	}
	endsCR := b[n-1] == '\r'
	if endsCR {
		bareCR-- // not known yet
	}
	nul := int64(bytes.Count(b, []byte{0}))
	w.info.BareLF += bareLF
	w.info.BareCR += bareCR
	w.info.NUL += nul

	w.eod(b, bareLF+bareCR+nul == 0)

	w.line += int64(n - lineAt)
	w.bol = crlf > 0 && lineAt == n
	w.cr = endsCR
	w.off += int64(n)
	w.info.Octets += int64(n)
	w.info.Wire += int64(n)
	return n
}

// eod runs the automaton over b. clean says that all line ends in b are CRLF and that it holds no NUL.
func (w *watch) eod(b []byte, clean bool) {
	if clean {
		i := 0
		if w.state == eodDot { // the octet after a dot at the begin of a line decides alone
			w.step(b[0], 0)
			i = 1
		}
		// A state that stems from the end of a line can only be continued by NUL or a dot. A dot would be one at
		// the begin of a line, which is never in b, or one after a bare CR, which is not clean.
		if w.state == eodNone || i == 0 && w.state == eodLine && (w.bol || w.cr) {
			w.state = eodNone
			if c := b[len(b)-1]; c == '\n' || c == '\r' {
				w.state = eodLine
			}
			return
		}
		b = b[i:]
		for j, c := range b {
			w.step(c, i+j)
		}
		return
	}
	for j, c := range b {
		w.step(c, j)
	}
}

// step runs the automaton over one octet, the i-th of the current block.
func (w *watch) step(c byte, i int) {
	switch {
	case c == '\r' || c == '\n':
		if w.state == eodDot {
			if w.info.EODLike == 0 {
				w.info.EODAt = w.off + int64(i)
			}
			w.info.EODLike++
		}
		w.state = eodLine
	case c == '.' && w.state == eodLine:
		w.state = eodDot
		add(&w.info.Loose, &w.info.LooseOverflow, w.off+int64(i))
	case c == 0 && w.state != eodNone:
	default:
		w.state = eodNone
	}
}

// add appends to a bounded list of offsets.
func add(list *[]int64, overflow *bool, off int64) {
	if len(*list) >= MaxOffsets {
		*overflow = true
		return
	}
	*list = append(*list, off)
}
