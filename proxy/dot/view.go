package dot

import (
	"io"
	"sort"
)

// View is another reading of content at rest: the same octets with single dots put in or left out, or without NULs. It
// is for scanning, never for sending. Reads may run concurrently.
type View struct {
	body io.ReaderAt
	size int64
	// marks are places of the view; from each on, until the next, the view's octet v is the body's v + shift.
	marks []mark
	// drop is an octet of the body that the view leaves out, or -1. Then marks are only where to begin to count.
	drop int
}

type mark struct {
	at   int64 // in the view
	from int64 // in the body
	dot  bool  // the view holds a dot at this place, and goes on with the body's octet from
}

// Size returns the length of the view in octets.
func (v *View) Size() int64 { return v.size }

// DotsKept is the reading of a receiver that removes a dot only where it was stuffed: single dots at the begin of a
// line stay (S-136). It returns nil when it is no other reading, or when the offsets are not all known.
func (i *Info) DotsKept(body io.ReaderAt) *View {
	if len(i.Missing) == 0 || i.MissingOverflow {
		return nil
	}
	v := &View{body: body, size: i.Octets + int64(len(i.Missing)), drop: -1}
	v.marks = append(v.marks, mark{})
	for k, off := range i.Missing {
		v.marks = append(v.marks, mark{at: off + int64(k), from: off, dot: true})
	}
	return v
}

// LooseDotsRemoved is the reading of a receiver for which bare CRs and LFs end lines, too: the dots that begin such
// lines are removed as stuffing (S-137). It returns nil when it is no other reading, or when the offsets are not all
// known.
func (i *Info) LooseDotsRemoved(body io.ReaderAt) *View {
	if len(i.Loose) == 0 || i.LooseOverflow {
		return nil
	}
	v := &View{body: body, size: i.Octets - int64(len(i.Loose)), drop: -1}
	v.marks = append(v.marks, mark{})
	for k, off := range i.Loose {
		v.marks = append(v.marks, mark{at: off - int64(k), from: off + 1})
	}
	return v
}

// NULsRemoved is the reading of a receiver that drops NULs (S-139). It reads the body once. It returns nil, without
// reading, when there are none.
func (i *Info) NULsRemoved(body io.ReaderAt) (*View, error) {
	if i.NUL == 0 {
		return nil, nil
	}
	v := &View{body: body, size: i.Octets - i.NUL, drop: 0}
	buf := make([]byte, viewBlock)
	seen := int64(0) // octets of the view so far
	for off := int64(0); off < i.Octets; {
		n, err := body.ReadAt(buf[:min(viewBlock, i.Octets-off)], off)
		if n == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		v.marks = append(v.marks, mark{at: seen, from: off})
		for _, c := range buf[:n] {
			if c != 0 {
				seen++
			}
		}
		off += int64(n)
	}
	return v, nil
}

// viewBlock is what one mark of NULsRemoved covers: a gigabyte needs 1.5 MB of marks.
const viewBlock = 16 << 10

// ReadAt implements io.ReaderAt.
func (v *View) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if off >= v.size {
		return 0, io.EOF
	}
	short := false
	if rest := v.size - off; int64(len(p)) > rest {
		p, short = p[:rest], true
	}
	k := sort.Search(len(v.marks), func(k int) bool { return v.marks[k].at > off }) - 1
	for ; n < len(p); k++ {
		end := v.size
		if k+1 < len(v.marks) {
			end = v.marks[k+1].at
		}
		if end <= off {
			continue // nothing of the body between two marks
		}
		m := v.marks[k]
		q := p[n:]
		if int64(len(q)) > end-off {
			q = q[:end-off]
		}
		var got int
		if v.drop >= 0 {
			got, err = v.dropping(q, m, off-m.at)
		} else {
			got, err = v.plain(q, m, off-m.at)
		}
		n += got
		off += int64(got)
		if err != nil {
			return n, err
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// plain reads from skip octets behind m.
func (v *View) plain(q []byte, m mark, skip int64) (n int, err error) {
	if m.dot {
		if skip == 0 {
			q[0] = '.'
			n = 1
		} else {
			skip--
		}
	}
	if n == len(q) {
		return n, nil
	}
	k, err := v.body.ReadAt(q[n:], m.from+skip)
	return n + k, full(k, len(q)-n, err)
}

// dropping reads from skip octets behind m, of those that are not dropped.
func (v *View) dropping(q []byte, m mark, skip int64) (n int, err error) {
	buf := make([]byte, 4<<10)
	for at := m.from; n < len(q); {
		k, err := v.body.ReadAt(buf, at)
		for _, c := range buf[:k] {
			switch {
			case int(c) == v.drop:
			case skip > 0:
				skip--
			case n < len(q):
				q[n] = c
				n++
			}
		}
		at += int64(k)
		if n < len(q) && (k == 0 || err != nil) {
			return n, full(0, 1, err)
		}
	}
	return n, nil
}

// full makes what a ReaderAt says of itself an error only when octets are missing.
func full(got, want int, err error) error {
	switch {
	case got == want:
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}
