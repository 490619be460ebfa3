package builtin

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	gohash "hash"
	"io"
	"slices"
	"strconv"
	"strings"

	"mailweir/inspect"
)

// database is what is loaded, ready for use. It never changes.
type database struct {
	patterns []*pattern // the test patterns come first
	segments []place    // what ref of a window stands for
	plain    []*matcher
	folded   []*matcher
	hashes   map[string][]hash
	sizes    map[int64]kinds // which digests are worth computing for an object of that size
	always   kinds           // and for any object
}

// place is a segment of a pattern.
type place struct{ pattern, segment int32 }

// kinds is a set of digests.
type kinds uint8

const (
	kindMD5 kinds = 1 << iota
	kindSHA1
	kindSHA256
)

// The first patterns of every database.
const (
	eicar = iota
	gtube
	ownPatterns
)

// eicarString returns the 68 octets of the EICAR test file. It is put together here so that no scanner takes this
// program for it.
func eicarString() string {
	return strings.Join([]string{`X5O!P%@AP[4\PZX54(P^)7CC)7}$`, "EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!", "$H+H*"}, "")
}

// gtubeString returns the generic test for unsolicited bulk email.
func gtubeString() string {
	return strings.Join([]string{"XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-", "TEST-EMAIL*C.34X"}, "")
}

func ownPattern(name, text string) *pattern {
	p := &pattern{name: name, anywhere: true}
	var run []octet
	for _, c := range []byte(text) {
		run = append(run, octet{c, 0xFF})
	}
	p.segments = []segment{{elems: []element{{alts: [][]octet{run}}}}}
	p.segments[0].choose()
	return p
}

func newDatabase(files map[string]*file) *database {
	db := &database{hashes: map[string][]hash{}, sizes: map[int64]kinds{}}
	db.patterns = append(db.patterns, ownPattern("EICAR-Test-File", eicarString()), ownPattern("GTUBE", gtubeString()))
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		db.patterns = append(db.patterns, files[name].patterns...)
		for _, h := range files[name].hashes {
			db.hashes[h.sum] = append(db.hashes[h.sum], h)
			kind := map[int]kinds{md5.Size: kindMD5, sha1.Size: kindSHA1, sha256.Size: kindSHA256}[len(h.sum)]
			if h.size < 0 {
				db.always |= kind
			} else {
				db.sizes[h.size] |= kind
			}
		}
	}
	plain, folded := map[int][]window{}, map[int][]window{}
	for pi, p := range db.patterns {
		for si, g := range p.segments {
			w := window{g.window, int32(len(db.segments))}
			db.segments = append(db.segments, place{int32(pi), int32(si)})
			if p.fold {
				folded[len(g.window)] = append(folded[len(g.window)], w)
			} else {
				plain[len(g.window)] = append(plain[len(g.window)], w)
			}
		}
	}
	for _, size := range windowSizes() {
		if w := plain[size]; w != nil {
			db.plain = append(db.plain, newMatcher(size, w))
		}
		if w := folded[size]; w != nil {
			db.folded = append(db.folded, newMatcher(size, w))
		}
	}
	return db
}

// blockSize is what is hashed and searched at a time: it stays in the second-level cache between the two.
const blockSize = 64 << 10

// buffers are borrowed by a scan.
type buffers struct {
	block  [blockSize + maxWindow]byte
	folded [blockSize + maxWindow]byte
	page   [pageSize]byte
	head   [1024]byte
}

// scan is one object being looked at.
type scan struct {
	db   *database
	obj  *inspect.Object
	buf  *buffers
	size int64

	v        view
	found    []inspect.Finding
	seen     map[int32]bool
	progress map[int32][]int64 // of patterns with several segments: the earliest end of each so far, or -1
	hits     []partHit
	head     []byte
}

// partHit is a segment found of a pattern with several.
type partHit struct {
	place
	start, end int64
}

// The work allowed for an object: comparisons per octet, and some for a small one.
const (
	workPerOctet = 32
	workAtLeast  = 4 << 20
)

func (s *scan) run(ctx context.Context) ([]inspect.Finding, error) {
	mem, inMemory := s.obj.Body.(inspect.Bytes)
	s.v = view{body: s.obj.Body, size: s.size, raw: &s.buf.page, work: workAtLeast + workPerOctet*min(s.size, 1<<32)}
	sums := s.digests()
	carry := 0
	for off := int64(0); off < s.size; {
		if err := ctx.Err(); err != nil {
			return s.found, &inspect.Failure{Category: inspect.Timeout, Err: err}
		}
		n := int(min(blockSize, s.size-off))
		var block []byte
		if inMemory {
			block = mem[off-int64(carry) : off+int64(n)]
		} else {
			block = s.buf.block[:carry+n]
			if got, err := s.obj.Body.ReadAt(block[carry:], off); got < n {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return s.found, &inspect.Failure{Category: inspect.Unavailable, Err: err}
			}
		}
		if off == 0 {
			s.head = append(s.buf.head[:0], block[:min(len(block), 1024)]...)
		}
		for _, h := range sums {
			h.Write(block[carry:])
		}
		if err := s.block(block, off-int64(carry), carry); err != nil {
			return s.found, err
		}
		off += int64(n)
		next := min(maxWindow-1, len(block))
		if !inMemory {
			copy(s.buf.block[:next], block[len(block)-next:])
		}
		carry = next
	}
	for _, h := range sums {
		s.digest(string(h.Sum(nil)))
	}
	if s.db.wants(s.size)&kindSHA256 != 0 && s.obj.Sum != [32]byte{} {
		s.digest(string(s.obj.Sum[:]))
	}
	return s.found, nil
}

func (db *database) wants(size int64) kinds { return db.always | db.sizes[size] }

// digests returns what has to be computed over this object.
func (s *scan) digests() []gohash.Hash {
	var sums []gohash.Hash
	k := s.db.wants(s.size)
	if k&kindMD5 != 0 {
		sums = append(sums, md5.New())
	}
	if k&kindSHA1 != 0 {
		sums = append(sums, sha1.New())
	}
	if k&kindSHA256 != 0 && s.obj.Sum == [32]byte{} {
		sums = append(sums, sha256.New())
	}
	return sums
}

func (s *scan) digest(sum string) {
	for _, h := range s.db.hashes[sum] {
		if h.size < 0 || h.size == s.size {
			s.threat(h.name, "")
		}
	}
}

// block searches one block, of which the first carry octets have been searched before.
func (s *scan) block(block []byte, base int64, carry int) error {
	s.v.block, s.v.base = block, base
	err := s.match(s.db.plain, block, carry)
	if err == nil && len(s.db.folded) > 0 {
		low := s.buf.folded[:len(block)]
		for i, c := range block {
			low[i] = lower(c)
		}
		err = s.match(s.db.folded, low, carry)
	}
	if err == nil {
		s.join()
	}
	return err
}

func (s *scan) match(matchers []*matcher, block []byte, carry int) error {
	hit := s.hit
	for _, m := range matchers {
		m.find(block, max(0, carry-m.size+1), hit)
		if s.v.err != nil {
			return &inspect.Failure{Category: inspect.Unavailable, Err: s.v.err}
		}
		if s.v.work <= 0 {
			return &inspect.Failure{Category: inspect.Limits, Err: errWork}
		}
	}
	return nil
}

// hit compares the rest of the segment whose window was found.
func (s *scan) hit(at int, ref int32) bool {
	pl := s.db.segments[ref]
	p := s.db.patterns[pl.pattern]
	if s.seen[pl.pattern] || !s.target(p.target) {
		s.v.work--
		return s.v.work > 0
	}
	s.v.fold = p.fold
	g := &p.segments[pl.segment]
	starts, ends := s.v.segment(g, s.v.base+int64(at))
	if len(starts) == 0 || len(ends) == 0 {
		return s.v.work > 0 && s.v.err == nil
	}
	if pl.segment == 0 && !p.anywhere {
		starts = slices.DeleteFunc(starts, func(x span) bool { return !s.some(p, x) })
		if len(starts) == 0 {
			return true
		}
	}
	if len(p.segments) == 1 {
		s.pattern(pl.pattern, starts[0].lo)
		return true
	}
	s.hits = append(s.hits, partHit{pl, starts[len(starts)-1].hi, ends[0].lo})
	s.v.work--
	return s.v.work > 0
}

// some tells whether p may begin at one of the positions of x.
func (s *scan) some(p *pattern, x span) bool {
	from := p.from
	if p.fromEnd {
		from = s.size - p.from
	}
	return x.lo <= from+p.slack && x.hi >= from
}

// join puts segments together. They are taken by their ends: a segment that comes before another one ends before that
// one does, and was found in the same block or an earlier one.
func (s *scan) join() {
	if len(s.hits) == 0 {
		return
	}
	slices.SortFunc(s.hits, func(a, b partHit) int {
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.segment, b.segment))
	})
	for _, h := range s.hits {
		p := s.db.patterns[h.pattern]
		ends := s.progress[h.pattern]
		if ends == nil {
			ends = slices.Repeat([]int64{-1}, len(p.segments))
			if s.progress == nil {
				s.progress = map[int32][]int64{}
			}
			s.progress[h.pattern] = ends
		}
		if k := h.segment; k > 0 && (ends[k-1] < 0 || h.start < ends[k-1]+p.segments[k].gap) {
			continue
		}
		if ends[h.segment] < 0 || h.end < ends[h.segment] {
			ends[h.segment] = h.end
		}
		if int(h.segment) == len(p.segments)-1 {
			s.pattern(h.pattern, h.start)
		}
	}
	s.hits = s.hits[:0]
}

// target tells whether signatures for that type of file apply to this object. Types that are told by their first
// octets are checked; text, mail and pictures have no such mark, and their signatures apply to everything.
func (s *scan) target(t int) bool {
	has := func(magics ...string) bool {
		for _, m := range magics {
			if strings.HasPrefix(string(s.head), m) {
				return true
			}
		}
		return false
	}
	switch t {
	case 1: // Windows programs
		return has("MZ")
	case 2: // OLE2
		return has("\xD0\xCF\x11\xE0")
	case 6:
		return has("\x7FELF")
	case 9: // Mach-O, in both orders, and archives of several
		return has("\xFE\xED\xFA\xCE", "\xFE\xED\xFA\xCF", "\xCE\xFA\xED\xFE", "\xCF\xFA\xED\xFE", "\xCA\xFE\xBA\xBE")
	case 10: // readers look for it in the first kilobyte
		return strings.Contains(string(s.head), "%PDF-")
	case 11:
		return has("FWS", "CWS", "ZWS")
	case 12:
		return has("\xCA\xFE\xBA\xBE")
	}
	return true
}

// pattern records that a pattern was found.
func (s *scan) pattern(i int32, at int64) {
	if s.seen[i] {
		return
	}
	if s.seen == nil {
		s.seen = map[int32]bool{}
	}
	s.seen[i] = true
	switch i {
	case eicar:
		detail := "test file, harmless; embedded at octet " + strconv.FormatInt(at, 10)
		if at == 0 && s.onlyPadding(int64(len(eicarString()))) {
			detail = "test file, harmless"
		}
		s.threat(s.db.patterns[i].name, detail)
	case gtube:
		s.found = append(s.found, inspect.Finding{Kind: inspect.Spam, Name: s.db.patterns[i].name, Path: s.obj.Path,
			Engine: "builtin", Detail: "test for filters of unsolicited mail"})
	default:
		s.threat(s.db.patterns[i].name, "")
	}
}

// onlyPadding tells whether nothing but white space and ctrl-Z follows from off to the end, and the whole is at most
// 128 octets long: the definition of the EICAR test file.
func (s *scan) onlyPadding(off int64) bool {
	if s.size > 128 {
		return false
	}
	return strings.Trim(string(s.v.at(off, int(s.size-off))), " \t\r\n\x1A") == ""
}

func (s *scan) threat(name, detail string) {
	s.found = append(s.found, inspect.Finding{Kind: inspect.Threat, Name: name, Category: inspect.CategoryOf(name),
		Path: s.obj.Path, Engine: "builtin", Detail: detail})
}

func sortFiles(f []FileStatus) {
	slices.SortFunc(f, func(a, b FileStatus) int { return strings.Compare(a.Name, b.Name) })
}
