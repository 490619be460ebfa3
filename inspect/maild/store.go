package maild

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/spool"
	"mailweir/inspect/unpack"
)

// Where objects lie while they are looked at: a small one in memory; a larger one in memory too, as long as one of the
// few large buffers is free; everything else in the spool. Objects are looked at one at a time, so that a message holds
// one at each level of nesting.
const (
	smallSize    = 64 << 10
	largeSize    = 1 << 20
	largeBuffers = 8 // in use at a time, by all messages together
	copySize     = 32 << 10
)

// pools lends buffers.
type pools struct {
	mime                         mimetree.Buffers
	unpack                       unpack.Buffers
	small, large, copies, hashes sync.Pool
	larges                       atomic.Int32 // large ones in use
}

func (p *pools) init() {
	p.small.New = func() any { return new([smallSize]byte) }
	p.large.New = func() any { return new([largeSize]byte) }
	p.copies.New = func() any { return new([copySize]byte) }
	p.hashes.New = func() any { return sha256.New() }
}

// borrowLarge returns a large buffer, or nil when too many are in use.
func (p *pools) borrowLarge() *[largeSize]byte {
	if p.larges.Add(1) > largeBuffers {
		p.larges.Add(-1)
		return nil
	}
	return p.large.Get().(*[largeSize]byte)
}

func (p *pools) giveBackLarge(b *[largeSize]byte) {
	p.large.Put(b)
	p.larges.Add(-1)
}

// stored is an object at rest.
type stored struct {
	body   inspect.Body
	hashed bool
	sum    [32]byte // once hashed
	close  func()
}

// summing says whether every object is hashed at once, on its way: an engine asks for it, or the object may well come
// again. What stands once in the message itself, and holds nothing, needs no sum, and computing it would be a quarter
// of the work.
func (j *judge) summing() bool { return j.sums || j.depth > 0 || j.again }

// identify computes the sum of what was not hashed on its way.
func (j *judge) identify(st *stored) {
	if st.hashed {
		return
	}
	st.hashed = true
	if mem, ok := st.body.(inspect.Bytes); ok {
		st.sum = sha256.Sum256(mem)
		return
	}
	h := j.d.pools.hashes.Get().(hash.Hash)
	h.Reset()
	buf := j.d.pools.copies.Get().(*[copySize]byte)
	// An error here is met again by the engines, who report it; a sum that is wrong is only never seen again.
	_, _ = copyAll(h, until{j.ctx, inspect.Reader(st.body)}, buf[:])
	h.Sum(st.sum[:0])
	j.d.pools.copies.Put(buf)
	j.d.pools.hashes.Put(h)
}

// store takes an object out of r, which is read once: it is hashed on the way, if it has to be. After an error stored
// is what came before it, and must be closed all the same.
func (j *judge) store(r io.Reader) (*stored, error) {
	s := &sink{j: j, small: j.d.pools.small.Get().(*[smallSize]byte)}
	s.memory = s.small[:0]
	if j.summing() {
		s.hash = j.d.pools.hashes.Get().(hash.Hash)
		s.hash.Reset()
	}
	whole := false
	defer func() {
		if !whole { // r panicked
			s.close()
		}
	}()
	var err error
	if w, ok := r.(io.WriterTo); ok {
		_, err = w.WriteTo(s)
	} else {
		buf := j.d.pools.copies.Get().(*[copySize]byte)
		_, err = copyAll(s, r, buf[:])
		j.d.pools.copies.Put(buf)
	}
	whole = true
	st := &stored{close: s.close}
	if s.hash != nil {
		s.hash.Sum(st.sum[:0])
		st.hashed = true
		j.d.pools.hashes.Put(s.hash)
	}
	if s.file != nil {
		st.body = s.file
	} else {
		st.body = inspect.Bytes(s.memory)
	}
	return st, err
}

// sink is where an object comes to rest.
type sink struct {
	j      *judge
	hash   hash.Hash // may be nil
	memory []byte    // of small or large
	small  *[smallSize]byte
	large  *[largeSize]byte
	file   *spool.File
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) {
	if err := s.j.ctx.Err(); err != nil {
		return 0, err
	}
	if s.file == nil && len(s.memory)+len(b) > cap(s.memory) {
		if err := s.grow(len(b)); err != nil {
			return 0, err
		}
	}
	n := len(b)
	if s.file == nil {
		s.memory = append(s.memory, b...)
	} else if _, err := s.file.Write(b); err != nil {
		return 0, err
	}
	if s.hash != nil {
		s.hash.Write(b)
	}
	return n, nil
}

// grow makes room for n octets more.
func (s *sink) grow(n int) error {
	if s.large == nil && len(s.memory)+n <= largeSize {
		if s.large = s.j.d.pools.borrowLarge(); s.large != nil {
			s.memory = s.large[:copy(s.large[:], s.memory)]
			return nil
		}
	}
	s.file = s.j.d.cfg.Spool.Create()
	_, err := s.file.Write(s.memory)
	s.free()
	return err
}

// free gives the memory back.
func (s *sink) free() {
	s.memory = nil
	if s.large != nil {
		s.j.d.pools.giveBackLarge(s.large)
		s.large = nil
	}
	if s.small != nil {
		s.j.d.pools.small.Put(s.small)
		s.small = nil
	}
}

func (s *sink) close() {
	s.free()
	if s.file != nil {
		s.file.Close()
	}
}

// section is a part of a body that needs no decoding: it is looked at where it lies.
func (j *judge) section(body inspect.Body, start, end int64) *stored {
	st := &stored{close: func() {}}
	if mem, ok := body.(inspect.Bytes); ok {
		st.body = mem[start:end]
	} else {
		st.body = part{io.NewSectionReader(body, start, end-start)}
	}
	if j.summing() {
		j.identify(st)
	}
	return st
}

// head returns the first octets of body, at most n, in buf or where they lie.
func head(body inspect.Body, buf []byte) []byte {
	size := min(body.Size(), int64(len(buf)))
	if mem, ok := body.(inspect.Bytes); ok {
		return mem[:size]
	}
	n, _ := body.ReadAt(buf[:size], 0)
	return buf[:n]
}

// part makes a section a Body.
type part struct{ *io.SectionReader }

// until reads from r while there is time.
type until struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (u until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// copyAll copies r to w by way of buf.
func copyAll(w io.Writer, r io.Reader, buf []byte) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
}
