package unpack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

// Magic numbers of bzip2: of a block and of the end of a stream, behind "BZh9".
const (
	bzip2Block = "1AY&SY"
	bzip2End   = "\x17\x72\x45\x38\x50\x90"
)

// maxStreams is how many joined streams are also looked at one by one.
const maxStreams = 100

// source reads a span of the archive and knows how far the decompressor got.
type source struct {
	*bufio.Reader
	under *io.SectionReader
}

func newSource(body io.ReaderAt, start, end int64) source {
	s := io.NewSectionReader(body, start, max(end-start, 0))
	return source{bufio.NewReaderSize(s, int(min(max(end-start, 16), 32<<10))), s}
}

// consumed is how many octets of the span were taken.
func (s source) consumed() int64 {
	at, _ := s.under.Seek(0, io.SeekCurrent)
	return at - int64(s.Buffered())
}

// gzip walks RFC 1952 §2.2: members joined make one file. Some programs take only the first member, and a file that
// begins in the second is recognised only by itself, so that several are also visited one by one.
func (w *walker) gzip() error {
	src := newSource(w.body, 0, w.size)
	z, err := gzip.NewReader(src)
	if err != nil {
		return fmt.Errorf("%w: gzip: %w", ErrBroken, err)
	}
	name := z.Name
	joined := &gzipMembers{w: w, src: src, z: z}
	z.Multistream(false)
	err = w.member(Member{Name: name, Size: -1, Open: once(func() (io.Reader, error) {
		return &meter{b: w.b, r: joined, consumed: src.consumed}, nil
	})})
	if err != nil || len(joined.starts) == 0 {
		return err
	}
	starts := append([]int64{0}, joined.starts...)
	for i, start := range starts {
		src := newSource(w.body, start, w.size)
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil // the joined file has told
		}
		z.Multistream(false)
		err = w.member(Member{Name: fmt.Sprintf("%s#%d", z.Name, i+1), Size: -1, Open: once(func() (io.Reader, error) {
			return &meter{b: w.b, r: z, consumed: src.consumed}, nil
		})})
		if err != nil {
			return err
		}
	}
	return nil
}

// gzipMembers reads joined members as one and notes where they begin.
type gzipMembers struct {
	w      *walker
	src    source
	z      *gzip.Reader
	starts []int64 // of the second and later ones
	done   bool
}

// Read implements io.Reader.
func (g *gzipMembers) Read(p []byte) (int, error) {
	for !g.done {
		n, err := g.z.Read(p)
		if err != io.EOF {
			return n, err
		}
		g.next()
		if n > 0 {
			return n, nil
		}
		if err := g.w.b.check(); err != nil {
			return 0, err // many empty members
		}
	}
	return 0, io.EOF
}

// next goes to the following member, if there is one.
func (g *gzipMembers) next() {
	at := g.src.consumed()
	if _, err := g.src.Peek(1); err == io.EOF {
		g.done = true
		return
	}
	if err := g.z.Reset(g.src); err != nil {
		// gzip(1) ignores it as well, with a warning.
		g.w.b.odd("trailing-data", "%d octets after the gzip data", g.w.size-at)
		g.done = true
		return
	}
	g.z.Multistream(false)
	if len(g.starts) < maxStreams {
		g.starts = append(g.starts, at)
	}
}

// bzip2 walks a bzip2 file; joined streams make one file, and are visited one by one as well.
func (w *walker) bzip2() error {
	starts, err := w.bzip2Streams()
	if err != nil {
		return err
	}
	visit := func(name string, start int64) error {
		return w.member(Member{Name: name, Size: -1, Open: once(func() (io.Reader, error) {
			src := newSource(w.body, start, w.size)
			return &meter{b: w.b, r: bzip2Reader{w, bzip2.NewReader(src)}, consumed: src.consumed}, nil
		})})
	}
	if err := visit("", 0); err != nil {
		return err
	}
	for i, start := range starts {
		if start == 0 {
			continue // the first stream alone is the beginning of the joined file
		}
		if err := visit(fmt.Sprintf("#%d", i+1), start); err != nil {
			return err
		}
	}
	return nil
}

// bzip2Reader takes other data after the last stream for the end, as bzip2(1) does.
type bzip2Reader struct {
	w *walker
	r io.Reader
}

// Read implements io.Reader.
func (z bzip2Reader) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	if err == bzip2.StructuralError("bad magic value in continuation file") {
		z.w.b.odd("trailing-data", "after the bzip2 data")
		err = io.EOF
	}
	return n, err
}

// bzip2Streams finds where streams begin; they do so at a whole octet.
func (w *walker) bzip2Streams() (starts []int64, err error) {
	for pos := int64(0); pos < w.size && len(starts) < maxStreams; {
		at, err := w.find(pos, w.size, []byte("BZh"))
		if err != nil {
			return nil, err
		}
		if at < 0 {
			break
		}
		var head [10]byte
		if n, _ := w.body.ReadAt(head[:], at); n == len(head) {
			if f, ok := Detect(head[:], ""); ok && f == Bzip2 {
				starts = append(starts, at)
			}
		}
		pos = at + 3
	}
	return starts, nil
}

// find returns the first place of what in the octets [pos, end), -1 for none.
func (w *walker) find(pos, end int64, what []byte) (int64, error) {
	buf := w.b.Buffers.tail()
	defer w.b.Buffers.giveBack(buf)
	for pos < end {
		if err := w.b.check(); err != nil {
			return -1, err
		}
		n, err := w.body.ReadAt(buf[:min(int64(len(buf)), end-pos)], pos)
		if i := bytes.Index(buf[:n], what); i >= 0 {
			return pos + int64(i), nil
		}
		if n < len(what) || err != nil || pos+int64(n) >= end {
			return -1, nil
		}
		pos += int64(n - len(what) + 1)
	}
	return -1, nil
}

// tarHeader says whether block is the header of a tar member: its checksum fits.
func tarHeader(block []byte) bool {
	var want int64
	digits := 0
	for _, c := range block[148:156] {
		switch {
		case c >= '0' && c <= '7':
			want = want<<3 | int64(c-'0')
			digits++
		case c != ' ' && c != 0:
			return false
		}
	}
	var unsigned, signed int64
	for i, c := range block {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return digits > 0 && (want == unsigned || want == signed) && block[0] != 0
}

// tar walks a tar file. Some programs stop at the end mark, some go on behind it (tar -i): so do we.
func (w *walker) tar() error {
	for start := int64(0); ; {
		r := io.NewSectionReader(w.body, start, w.size-start)
		if err := w.tarMembers(r); err != nil {
			return err
		}
		at, _ := r.Seek(0, io.SeekCurrent)
		next, err := w.tarAgain(start + (at+511)&^511)
		if err != nil || next < 0 {
			return err
		}
		w.b.odd("members-after-end", "at octet %d of the tar file", next)
		start = next
	}
}

// tarMembers visits the members up to the end mark.
func (w *walker) tarMembers(r *io.SectionReader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fmt.Errorf("%w: tar: %w", ErrBroken, err)
		}
		if h.Size == 0 {
			continue // a directory, a link
		}
		err = w.member(Member{Name: h.Name, Size: h.Size, Open: once(func() (io.Reader, error) {
			out := int64(0)
			return &meter{b: w.b, r: io.TeeReader(t, counter{&out}), consumed: func() int64 { return out }}, nil
		})})
		if err != nil {
			return err
		}
	}
}

// tarAgain looks for a member behind the end mark, -1 for none.
func (w *walker) tarAgain(pos int64) (int64, error) {
	lent := w.b.Buffers.tail()
	defer w.b.Buffers.giveBack(lent)
	buf := lent[:64<<10]
	for pos < w.size {
		if err := w.b.check(); err != nil {
			return -1, err
		}
		n, _ := w.body.ReadAt(buf[:min(int64(len(buf)), w.size-pos)], pos)
		n &^= 511
		if n == 0 {
			return -1, nil
		}
		for i := 0; i < n; i += 512 {
			if tarHeader(buf[i : i+512]) {
				return pos + int64(i), nil
			}
		}
		pos += int64(n)
	}
	return -1, nil
}

// counter counts what is written to it.
type counter struct{ n *int64 }

// Write implements io.Writer.
func (c counter) Write(p []byte) (int, error) {
	*c.n += int64(len(p))
	return len(p), nil
}
