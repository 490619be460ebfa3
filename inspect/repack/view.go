package repack

import (
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sort"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

// View is a message with edits made, to be read at any offset, without writing it anew.
type View struct {
	pieces []piece
	size   int64
}

// piece shows octets of a body from an offset of the view on.
type piece struct {
	at   int64
	body inspect.Body
	from int64
	len  int64
}

// NewView returns body as edits would make it. It is valid as long as both are.
func NewView(body inspect.Body, edits *inspect.Edits) (*View, error) {
	if _, _, err := edits.Apply(body); err != nil {
		return nil, err
	}
	v := &View{}
	at := int64(0)
	for _, e := range edits.List {
		v.add(body, at, e.Start-at)
		if e.New != nil {
			v.add(e.New, 0, e.New.Size())
		}
		at = e.End
	}
	v.add(body, at, body.Size()-at)
	return v, nil
}

// joined returns bodies as one.
func joined(bodies ...inspect.Body) *View {
	v := &View{}
	for _, b := range bodies {
		v.add(b, 0, b.Size())
	}
	return v
}

func (v *View) add(b inspect.Body, from, n int64) {
	if n > 0 {
		v.pieces = append(v.pieces, piece{v.size, b, from, n})
		v.size += n
	}
}

// Size returns the length of the edited message.
func (v *View) Size() int64 { return v.size }

// ReadAt implements io.ReaderAt.
func (v *View) ReadAt(b []byte, off int64) (n int, err error) {
	i := sort.Search(len(v.pieces), func(i int) bool { return v.pieces[i].at+v.pieces[i].len > off })
	for n < len(b) {
		if i >= len(v.pieces) {
			return n, io.EOF
		}
		p := v.pieces[i]
		skip := off + int64(n) - p.at
		want := b[n:min(int64(len(b)), int64(n)+p.len-skip)]
		got, err := p.body.ReadAt(want, p.from+skip)
		if n += got; got < len(want) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
		i++
	}
	return n, nil
}

// check reads our own output: it must be read in one way, and nothing of what was removed may be left in it.
func (j *job) check(whole bool) error {
	v, err := NewView(j.m.Body, &inspect.Edits{List: j.edits})
	if err != nil {
		return fmt.Errorf("%w: %w", errCheck, err)
	}
	for p := range mimetree.Parse(v, v.Size(), mimetree.Limits{}).All() {
		if len(p.Others) > 0 || slices.ContainsFunc(p.Odd, mimetree.IsAmbiguous) {
			return fmt.Errorf("%w: part %q: %v", errCheck, p.Path, p.Odd)
		}
		if whole && p.Kind > mimetree.Multipart {
			return fmt.Errorf("%w: a %v in %q", errCheck, p.Kind, p.Path)
		}
		if p.Kind == mimetree.Multipart {
			continue
		}
		h := sha256.New()
		d := p.Decoded(v)
		if _, err := io.Copy(h, until(j.ctx, d)); err != nil {
			return err
		}
		if j.sums[[32]byte(h.Sum(nil))] {
			return fmt.Errorf("%w: part %q still holds what was removed", errCheck, p.Path)
		}
		if slices.ContainsFunc(d.Odd(), mimetree.IsAmbiguous) && whole {
			return fmt.Errorf("%w: part %q: %v", errCheck, p.Path, d.Odd())
		}
	}
	return nil
}
