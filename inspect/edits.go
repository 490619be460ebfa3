package inspect

import (
	"errors"
	"io"
)

// Edit replaces the octets [Start, End) of a Body by New. Start == End inserts; a nil New deletes.
type Edit struct {
	Start, End int64
	New        Body
}

// Edits is a list of replacements against a message as it was received: what is outside of them is never
// re-serialised. They are in ascending order and do not overlap.
type Edits struct{ List []Edit }

// ErrEdits is returned by Apply when the edits do not fit the body.
var ErrEdits = errors.New("edits overlap, are out of order or lie outside of the body")

// Apply returns body with the edits made, as a stream and its size in octets.
func (e *Edits) Apply(body Body) (r io.Reader, size int64, err error) {
	if e == nil {
		return Reader(body), body.Size(), nil
	}
	var parts []io.Reader
	var at int64
	for _, x := range e.List {
		if x.Start < at || x.End < x.Start || x.End > body.Size() {
			return nil, 0, ErrEdits
		}
		parts = append(parts, io.NewSectionReader(body, at, x.Start-at))
		size += x.Start - at
		if x.New != nil {
			parts = append(parts, Reader(x.New))
			size += x.New.Size()
		}
		at = x.End
	}
	parts = append(parts, io.NewSectionReader(body, at, body.Size()-at))
	return io.MultiReader(parts...), size + body.Size() - at, nil
}
