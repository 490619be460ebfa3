package builtin

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// matcher finds the places where one of many fixed strings of one length stands (Wu and Manber 1994): it looks at the
// last few octets of a window and, since most such blocks stand in no string, goes on by nearly the length of one.
// Its tables grow with the number of strings, not with the product of states and octets that a dense automaton has:
// that one misses the cache from some hundred strings on.
type matcher struct {
	size  int    // octets in each string
	block int    // octets looked at: 3 or 4
	mask  uint32 // what of four octets belongs to the block
	down  uint8  // the hash is the upper 32-down bits of the product
	shift []uint8

	first []uint32 // by coarser hash: range of cands
	fdown uint8
	cands []candidate
}

// candidate is a string to be looked for. Its head decides nearly always; what ref stands for is compared in full.
type candidate struct {
	head uint64 // its first octets, little endian, at most eight
	ref  int32
}

// window is a string before it is put into a matcher.
type window struct {
	octets []byte
	ref    int32
}

const (
	mulShift = 0x9E3779B1 // Fibonacci hashing: the upper bits of the product are well mixed
	mulCand  = 0x85EBCA6B
)

// newMatcher makes a matcher of windows that are all size octets long. A block is as long as it can be while windows
// of that size still give a useful shift.
func newMatcher(size int, windows []window) *matcher {
	m := &matcher{size: size, block: 4, mask: 0xFFFFFFFF}
	if size < 8 {
		m.block, m.mask = 3, 0x00FFFFFF
	}
	// A table four to eight times as large as the blocks in it keeps nine tenths of it at the full shift, yet 1,000
	// strings within the first-level cache's reach and 10,000 within the second's.
	blocks := len(windows) * (size - m.block + 1)
	log := min(max(bits.Len(uint(blocks*4)), 12), 22)
	m.down = uint8(32 - log)
	m.shift = make([]uint8, 1<<log)
	for i := range m.shift {
		m.shift[i] = uint8(size - m.block + 1)
	}
	clog := min(max(bits.Len(uint(len(windows)*2)), 4), 20)
	m.fdown = uint8(32 - clog)
	m.first = make([]uint32, 1<<clog+1)
	type placed struct {
		candidate
		at uint32
	}
	var all []placed
	for _, w := range windows {
		for end := m.block; end <= size; end++ {
			h := m.word(w.octets[end-m.block:]) * mulShift >> m.down
			m.shift[h] = min(m.shift[h], uint8(size-end))
		}
		at := m.word(w.octets[size-m.block:]) * mulCand >> m.fdown
		all = append(all, placed{candidate{head(w.octets), w.ref}, at})
	}
	slices.SortStableFunc(all, func(a, b placed) int { return int(a.at) - int(b.at) })
	for _, p := range all {
		m.cands = append(m.cands, p.candidate)
		m.first[p.at+1]++
	}
	for i := 1; i < len(m.first); i++ {
		m.first[i] += m.first[i-1]
	}
	return m
}

// word returns the block at the start of b.
func (m *matcher) word(b []byte) uint32 {
	if len(b) >= 4 {
		return binary.LittleEndian.Uint32(b) & m.mask
	}
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
}

// head returns up to eight octets of b as a number.
func head(b []byte) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b)
	}
	var v uint64
	for i, c := range b {
		v |= uint64(c) << (8 * i)
	}
	return v
}

// find calls hit for each string that begins in data at or after from. Hits come in ascending order. It returns false
// as soon as hit does.
func (m *matcher) find(data []byte, from int, hit func(at int, ref int32) bool) bool {
	if m.block == 4 && len(data)-from >= lanesFrom {
		var l lanes
		if m.findInLanes(data, from, &l) {
			return l.tell(hit)
		}
	}
	back := m.size - m.block
	shift, down, mask := m.shift, m.down&31, m.mask
	p := from + back
	for p+4 <= len(data) {
		v := binary.LittleEndian.Uint32(data[p:]) & mask
		if s := shift[v*mulShift>>down]; s != 0 {
			p += int(s)
			continue
		}
		if !m.candidates(data, p-back, v, hit) {
			return false
		}
		p++
	}
	// Blocks of three octets have one more place, at which four cannot be loaded.
	for ; p+m.block <= len(data); p++ {
		v := m.word(data[p:])
		if shift[v*mulShift>>down] == 0 && !m.candidates(data, p-back, v, hit) {
			return false
		}
	}
	return true
}

func (m *matcher) candidates(data []byte, at int, block uint32, hit func(int, int32) bool) bool {
	h := block * mulCand >> (m.fdown & 31)
	lo, hi := m.first[h], m.first[h+1]
	if lo == hi {
		return true
	}
	want := head(data[at : at+min(m.size, 8)])
	for _, c := range m.cands[lo:hi] {
		if c.head == want && !hit(at, c.ref) {
			return false
		}
	}
	return true
}

const (
	lanesFrom = 2 << 10 // shorter data is not worth it
	laneHits  = 16
)

// lanes holds what was found in the four quarters of data.
type lanes struct {
	n    [4]int
	hits [4][laneHits]struct {
		at  int
		ref int32
	}
}

// tell calls hit for everything, in order.
func (l *lanes) tell(hit func(at int, ref int32) bool) bool {
	for i, n := range l.n {
		for _, h := range l.hits[i][:n] {
			if !hit(h.at, h.ref) {
				return false
			}
		}
	}
	return true
}

// findInLanes is find with the data searched in four places at a time. A search step must wait for the table before it
// knows where the next one is; four of them wait together. It returns false where more is found than there is room for.
func (m *matcher) findInLanes(data []byte, from int, l *lanes) bool {
	const block = 4
	back, most := m.size-block, m.size-block+1
	shift, down := m.shift, m.down&31
	end := len(data) - block + 1
	quarter := (end - from - back) / 4
	p0 := from + back
	p1, p2, p3 := p0+quarter, p0+2*quarter, p0+3*quarter
	e0, e1, e2 := p1, p2, p3
	// None of the lanes reaches its end within k steps.
	for k := quarter / most; k > 0; k = min(e0-p0, e1-p1, e2-p2, end-p3) / most {
		for ; k > 0; k-- {
			v0, v1 := binary.LittleEndian.Uint32(data[p0:]), binary.LittleEndian.Uint32(data[p1:])
			v2, v3 := binary.LittleEndian.Uint32(data[p2:]), binary.LittleEndian.Uint32(data[p3:])
			s0, s1 := int(shift[v0*mulShift>>down]), int(shift[v1*mulShift>>down])
			s2, s3 := int(shift[v2*mulShift>>down]), int(shift[v3*mulShift>>down])
			if s0 == 0 || s1 == 0 || s2 == 0 || s3 == 0 {
				if s0 == 0 {
					s0 = 1
					if !m.note(l, 0, data, p0-back, v0) {
						return false
					}
				}
				if s1 == 0 {
					s1 = 1
					if !m.note(l, 1, data, p1-back, v1) {
						return false
					}
				}
				if s2 == 0 {
					s2 = 1
					if !m.note(l, 2, data, p2-back, v2) {
						return false
					}
				}
				if s3 == 0 {
					s3 = 1
					if !m.note(l, 3, data, p3-back, v3) {
						return false
					}
				}
			}
			p0, p1, p2, p3 = p0+s0, p1+s1, p2+s2, p3+s3
		}
	}
	for i, lane := range [4][2]int{{p0, e0}, {p1, e1}, {p2, e2}, {p3, end}} {
		for p := lane[0]; p < lane[1]; {
			v := binary.LittleEndian.Uint32(data[p:])
			if s := shift[v*mulShift>>down]; s != 0 {
				p += int(s)
				continue
			}
			if !m.note(l, i, data, p-back, v) {
				return false
			}
			p++
		}
	}
	return true
}

// note keeps the strings that begin at at, if there is room for all of them.
func (m *matcher) note(l *lanes, lane int, data []byte, at int, block uint32) bool {
	return m.candidates(data, at, block, func(at int, ref int32) bool {
		n := l.n[lane]
		if n == laneHits {
			return false
		}
		l.hits[lane][n].at, l.hits[lane][n].ref = at, ref
		l.n[lane] = n + 1
		return true
	})
}
