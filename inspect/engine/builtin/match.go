package builtin

import (
	"errors"
	"io"
	"slices"
)

// errWork is returned when comparing signatures with one object costs more than the object is worth.
var errWork = errors.New("comparing signatures took more work than is allowed for an object of this size")

// view reads octets of the object being scanned, from the block at hand or else from the body.
type view struct {
	body  io.ReaderAt
	size  int64
	block []byte // octets [base, base+len(block))
	base  int64
	page  []byte // a piece read from the body: octets [pageAt, pageAt+len(page))
	paged int64
	raw   *[pageSize]byte
	fold  bool
	work  int64 // what is left
	err   error
}

const (
	pageSize    = 32 << 10
	workPerPage = 512 // reading a page counts as so many comparisons
)

// at returns n octets at off, or nil when they are not all inside the object.
func (v *view) at(off int64, n int) []byte {
	if off < 0 || off > v.size-int64(n) || v.err != nil {
		return nil
	}
	if i := off - v.base; i >= 0 && i+int64(n) <= int64(len(v.block)) {
		return v.block[i : i+int64(n)]
	}
	if i := off - v.paged; i >= 0 && i+int64(n) <= int64(len(v.page)) {
		return v.page[i : i+int64(n)]
	}
	// Half of the page before off: comparing goes in both directions.
	from := max(off-pageSize/2, 0)
	p := v.raw[:min(pageSize, v.size-from)]
	if n > pageSize/2 {
		from, p = off, make([]byte, n)
	}
	v.work -= workPerPage
	got, err := v.body.ReadAt(p, from)
	if got < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		v.err = err
		return nil
	}
	v.page, v.paged = p, from
	i := off - from
	return p[i : i+int64(n)]
}

// equal tells whether o stands at off.
func (v *view) equal(o []octet, off int64) bool {
	v.work--
	b := v.at(off, len(o))
	if b == nil {
		return false
	}
	if v.fold {
		for i, x := range o {
			if c := b[i]; c&x.mask != x.val && lower(c)&x.mask != x.val {
				return false
			}
		}
		return true
	}
	for i, x := range o {
		if b[i]&x.mask != x.val {
			return false
		}
	}
	return true
}

// span is a set of neighbouring positions, both ends included.
type span struct{ lo, hi int64 }

// forward returns where e can end when it begins at one of from; backward, with back, where it can begin when it ends
// there. Positions are kept as sets, so that gaps cost their width and not the product of their widths.
func (v *view) step(e *element, from []span, back bool) []span {
	var to []span
	if e.alts == nil {
		for _, s := range from {
			if back {
				s = span{max(s.lo-e.max, 0), s.hi - e.min}
			} else {
				s = span{s.lo + e.min, min(s.hi+e.max, v.size)}
			}
			if s.lo <= s.hi {
				to = append(to, s)
			}
		}
		return merge(to)
	}
	for _, s := range from {
		for at := s.lo; at <= s.hi && v.work > 0; at++ {
			to = v.alternatives(e, at, back, to)
		}
	}
	return merge(to)
}

// alternatives appends to to where e can end (or begin) from at.
func (v *view) alternatives(e *element, at int64, back bool, to []span) []span {
	some := false
	for _, a := range e.alts {
		n := int64(len(a))
		start, end := at, at+n
		if back {
			start, end = at-n, at-n
		}
		if e.not && v.at(start, len(a)) == nil {
			return to
		}
		if v.equal(a, start) {
			if some = true; !e.not {
				to = append(to, span{end, end})
			}
		}
	}
	if e.not && !some {
		n := int64(len(e.alts[0]))
		if back {
			n = -n
		}
		to = append(to, span{at + n, at + n})
	}
	return to
}

// merge sorts the spans and joins those that touch.
func merge(s []span) []span {
	if len(s) < 2 {
		return s
	}
	slices.SortFunc(s, func(a, b span) int {
		if a.lo < b.lo {
			return -1
		} else if a.lo > b.lo {
			return 1
		}
		return 0
	})
	out := s[:1]
	for _, x := range s[1:] {
		if last := &out[len(out)-1]; x.lo <= last.hi+1 {
			last.hi = max(last.hi, x.hi)
		} else {
			out = append(out, x)
		}
	}
	return out
}

// segment compares g where its window stands at at. It returns where g can begin and where it can end.
func (v *view) segment(g *segment, at int64) (starts, ends []span) {
	whole := g.elems[g.anchor].alts[0]
	start := at - int64(g.offset)
	if !v.equal(whole, start) {
		return nil, nil
	}
	ends = []span{{start + int64(len(whole)), start + int64(len(whole))}}
	for i := g.anchor + 1; i < len(g.elems) && len(ends) > 0; i++ {
		ends = v.step(&g.elems[i], ends, false)
	}
	if len(ends) == 0 {
		return nil, nil
	}
	starts = []span{{start, start}}
	for i := g.anchor - 1; i >= 0 && len(starts) > 0; i-- {
		starts = v.step(&g.elems[i], starts, true)
	}
	return starts, ends
}
