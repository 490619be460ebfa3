package maild

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"sync"

	"mailweir/inspect"
	"mailweir/inspect/spool"
)

// memorySize is how large an object may be to be kept in memory; longer ones lie in the spool. Objects are looked at
// one at a time, so that there is one at each level of nesting.
const memorySize = 128 << 10

const copySize = 32 << 10

// pools lends buffers.
type pools struct {
	memory, copies, hashes sync.Pool
}

func (p *pools) init() {
	p.memory.New = func() any { return new([memorySize]byte) }
	p.copies.New = func() any { return new([copySize]byte) }
	p.hashes.New = func() any { return sha256.New() }
}

// stored is an object at rest.
type stored struct {
	body  inspect.Body
	sum   [32]byte
	close func()
}

// store takes an object out of r, which is read once: it is hashed on the way. After an error stored is what came before
// it, and must be closed all the same.
func (j *judge) store(r io.Reader) (*stored, error) {
	s := &sink{j: j, hash: j.d.pools.hashes.Get().(hash.Hash), memory: j.d.pools.memory.Get().(*[memorySize]byte)}
	s.hash.Reset()
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
	s.hash.Sum(st.sum[:0])
	j.d.pools.hashes.Put(s.hash)
	if s.file != nil {
		st.body = s.file
	} else {
		st.body = inspect.Bytes(s.memory[:s.n])
	}
	return st, err
}

// sink is where an object comes to rest.
type sink struct {
	j      *judge
	hash   hash.Hash
	memory *[memorySize]byte
	n      int
	file   *spool.File
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) {
	if err := s.j.ctx.Err(); err != nil {
		return 0, err
	}
	if s.file == nil && s.n+len(b) <= memorySize {
		s.hash.Write(b)
		s.n += copy(s.memory[s.n:], b)
		return len(b), nil
	}
	if s.file == nil {
		s.file = s.j.d.cfg.Spool.Create()
		if _, err := s.file.Write(s.memory[:s.n]); err != nil {
			return 0, err
		}
	}
	n, err := s.file.Write(b)
	s.hash.Write(b[:n])
	return n, err
}

func (s *sink) close() {
	if s.file != nil {
		s.file.Close()
	}
	if s.memory != nil {
		s.j.d.pools.memory.Put(s.memory)
		s.memory = nil
	}
}

// section is a part of a body that needs no decoding: it is looked at where it lies.
func (j *judge) section(body inspect.Body, start, end int64) *stored {
	st := &stored{close: func() {}}
	if mem, ok := body.(inspect.Bytes); ok {
		b := mem[start:end]
		st.body, st.sum = b, sha256.Sum256(b)
		return st
	}
	r := part{io.NewSectionReader(body, start, end-start)}
	st.body = r
	h := j.d.pools.hashes.Get().(hash.Hash)
	h.Reset()
	buf := j.d.pools.copies.Get().(*[copySize]byte)
	// An error here is met again by the engines, who report it; a sum that is wrong is only never seen again.
	_, _ = copyAll(h, until{j.ctx, io.NewSectionReader(r, 0, r.Size())}, buf[:])
	h.Sum(st.sum[:0])
	j.d.pools.copies.Put(buf)
	j.d.pools.hashes.Put(h)
	return st
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
