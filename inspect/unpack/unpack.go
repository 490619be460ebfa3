// Package unpack shows what is in archives: zip, tar, gzip and bzip2, recognised by content.
//
// [Detect] and [Formats] tell the format, [Walk] calls a function for each member, which may read it as a stream and,
// having put it somewhere, call Detect and Walk again. Where an archive can be read in several ways (a zip by its
// directory or by the headers before each file; joined gzip files as one or as several), every way is walked, and what
// differs is reported to [Budget.Odd]. Names are data: nothing is ever written to a path.
//
// Bounds: everything draws on one [Budget] for each message: levels of nesting, number of objects, octets extracted,
// compression ratio, and a function that is asked often whether to go on. Memory is one decompressor for each level
// and 100 octets for each entry of a zip's directory, up to the number of objects.
package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Errors to be compared with errors.Is. None of them means that a member is clean.
var (
	ErrLimit       = errors.New("limit reached")     // see LimitError
	ErrEncrypted   = errors.New("encrypted")         // from Open, for one member
	ErrBroken      = errors.New("broken archive")    // from Walk or a member's reader, after what could be read
	ErrUnsupported = errors.New("unknown method")    // from Open: we cannot read this member
	errFormat      = errors.New("unknown format")    // a broken caller
	errNotHere     = errors.New("no archive at all") // internal
)

// LimitError says which limit was reached. It matches ErrLimit.
type LimitError struct{ Limit string }

// Error implements error.
func (e *LimitError) Error() string { return "limit reached: " + e.Limit }

// Is makes a LimitError match ErrLimit.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// Kind groups formats for the limits of nesting.
type Kind uint8

// The kinds, as in the settings ArchiveMaxLevel, PackerMaxLevel, ContainerMaxLevel and MailMaxLevel.
const (
	Archive Kind = iota
	Packer
	Container
	Mail
	kinds
)

var levelNames = [kinds]string{"ArchiveMaxLevel", "PackerMaxLevel", "ContainerMaxLevel", "MailMaxLevel"}

// KindOf returns the kind of a format that Walk knows: all of today's are archives.
func KindOf(string) Kind { return Archive }

// Limits bounds what is extracted from one message.
type Limits struct {
	Levels  [kinds]int // by Kind; 0: such things are not looked into
	Ratio   int        // a member may grow by this factor; judged from ratioGrace octets on; 0: 500
	Total   int64      // octets of all members together; 0: no limit
	Objects int        // members of all archives together; 0: 10,000
}

// DefaultLimits are those of the settings' defaults.
func DefaultLimits() Limits {
	return Limits{Levels: [kinds]int{8, 8, 8, 8}, Ratio: 500, Objects: 10_000}
}

const (
	ratioGrace = 1 << 20
	checkEvery = 64 << 10
)

// Buffers lends the memory in which archives are looked for, so that a program that looks at many objects does not
// allocate it for each. The zero value is ready for use, by several goroutines; nil allocates. What is borrowed is given
// back before the function that needed it returns.
type Buffers struct{ tails sync.Pool } // of *[tailSize]byte

// tailSize is where the end record of a zip can be: the record and its comment.
const tailSize = endSize + 1<<16

func (b *Buffers) tail() *[tailSize]byte {
	if b != nil {
		if t, ok := b.tails.Get().(*[tailSize]byte); ok {
			return t
		}
	}
	return new([tailSize]byte)
}

func (b *Buffers) giveBack(t *[tailSize]byte) {
	if b != nil {
		b.tails.Put(t)
	}
}

// Budget is what may still be spent on one message. It is for one goroutine.
type Budget struct {
	Buffers *Buffers                  // may be nil
	Check   func() error              // asked at every member and every 64 KiB; its error ends the walk; may be nil
	Odd     func(name, detail string) // told about oddities; may be nil
	lim     Limits
	level   [kinds]int
	total   int64
	objects int
}

// NewBudget returns a fresh budget.
func NewBudget(l Limits, check func() error, odd func(name, detail string)) *Budget {
	if l.Ratio <= 0 {
		l.Ratio = 500
	}
	if l.Objects <= 0 {
		l.Objects = 10_000
	}
	return &Budget{Check: check, Odd: odd, lim: l}
}

// Enter goes one level of nesting down, or says that the limit is reached. Walk does it by itself; callers do it for
// kinds that they open themselves, such as messages. After nil, Leave must be called.
func (b *Budget) Enter(k Kind) error {
	if b.level[k] >= b.lim.Levels[k] {
		return &LimitError{levelNames[k]}
	}
	b.level[k]++
	return nil
}

// Leave goes up again.
func (b *Budget) Leave(k Kind) { b.level[k]-- }

// Level returns how deep things of kind k are nested at the moment.
func (b *Budget) Level(k Kind) int { return b.level[k] }

// Object counts one more object.
func (b *Budget) Object() error {
	if b.objects >= b.lim.Objects {
		return &LimitError{"number of objects"}
	}
	b.objects++
	return b.check()
}

// Extracted returns the octets and objects spent so far.
func (b *Budget) Extracted() (octets int64, objects int) { return b.total, b.objects }

// Take spends n octets, for callers that extract by other means.
func (b *Budget) Take(n int64) error {
	b.total += n
	if b.lim.Total > 0 && b.total > b.lim.Total {
		return &LimitError{"MaxSizeToExtract"}
	}
	return nil
}

func (b *Budget) check() error {
	if b.Check == nil {
		return nil
	}
	return b.Check()
}

func (b *Budget) odd(name, format string, args ...any) {
	if b.Odd != nil {
		b.Odd(name, fmt.Sprintf(format, args...))
	}
}

// meter is a member's reader: it draws on the budget.
type meter struct {
	b         *Budget
	r         io.Reader
	consumed  func() int64 // compressed octets read
	out       int64
	unchecked int64
	err       error
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if len(p) > checkEvery {
		p = p[:checkEvery]
	}
	n, err := m.r.Read(p)
	m.out += int64(n)
	if m.unchecked += int64(n); m.unchecked >= checkEvery || err != nil && err != io.EOF {
		m.unchecked = 0
		if cerr := m.b.check(); cerr != nil {
			m.err = cerr
			return n, cerr
		}
	}
	if terr := m.b.Take(int64(n)); terr != nil {
		m.err = terr
		return n, terr
	}
	if m.out > ratioGrace && m.out/int64(m.b.lim.Ratio) > m.consumed() {
		m.err = &LimitError{"MaxCompressionRatio"}
		return n, m.err
	}
	if err != nil && err != io.EOF && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrBroken) {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	m.err = err
	return n, err
}

// Member is something in an archive. Its fields are claims of the archive.
type Member struct {
	Name      string
	Size      int64 // -1 when the archive does not say
	Encrypted bool

	// Open returns the content, as a stream, once. It may be used only until the visiting function returns. The stream
	// may end with an error after content that is worth looking at.
	Open func() (io.Reader, error)
}

// Formats that Walk knows.
const (
	Zip   = "zip"
	Tar   = "tar"
	Gzip  = "gzip"
	Bzip2 = "bzip2"
)

// HeadSize is how much of an object Detect wants to see.
const HeadSize = 512

// Detect tells the format from the first HeadSize octets. The name is only asked where the content leaves it open:
// an old tar file has no magic but a checksum, which is verified. It also knows formats that Walk cannot open and then
// returns ErrUnsupported for.
func Detect(head []byte, name string) (format string, ok bool) {
	switch {
	case hasAny(head, "PK\x03\x04", "PK\x05\x06", "PK\x07\x08PK", "PK00PK\x03\x04"):
		return Zip, true
	case hasAny(head, "\x1f\x8b"):
		return Gzip, true
	case len(head) >= 10 && hasAny(head, "BZh") && head[3] >= '1' && head[3] <= '9' && (string(head[4:10]) == bzip2Block || string(head[4:10]) == bzip2End):
		return Bzip2, true
	case len(head) >= 512 && tarHeader(head[:512]):
		return Tar, true
	}
	return detectClosed(head)
}

// Formats is Detect with the whole object at hand: it also finds a zip whose beginning is something else, such as a
// program that unpacks itself or a picture. It returns all formats that the object can be read as.
func Formats(body io.ReaderAt, size int64, name string) []string {
	return (*Buffers)(nil).Formats(body, size, name)
}

// Formats is the function Formats in borrowed memory.
func (b *Buffers) Formats(body io.ReaderAt, size int64, name string) (formats []string) {
	tail := b.tail()
	defer b.giveBack(tail)
	head := tail[:max(min(size, HeadSize), 0)]
	n, _ := body.ReadAt(head, 0)
	if f, ok := Detect(head[:n], name); ok {
		formats = append(formats, f)
		if f == Zip {
			return formats
		}
	}
	if _, err := findEnd(body, size, tail); err == nil {
		formats = append(formats, Zip)
	}
	return formats
}

func hasAny(b []byte, prefixes ...string) bool {
	for _, p := range prefixes {
		if bytes.HasPrefix(b, []byte(p)) {
			return true
		}
	}
	return false
}

// Walk calls visit for each member of body. It goes on past members that cannot be read; an error of visit ends it and
// is returned. Without one, the error matches ErrLimit, ErrBroken or the budget's Check; members may have been visited
// all the same.
func Walk(format string, body io.ReaderAt, size int64, b *Budget, visit func(Member) error) error {
	walk := map[string]func(*walker) error{Zip: (*walker).zip, Tar: (*walker).tar, Gzip: (*walker).gzip, Bzip2: (*walker).bzip2}[format]
	if walk == nil && isClosed(format) {
		return fmt.Errorf("%w: %s archives are not opened", ErrUnsupported, format)
	}
	if walk == nil {
		return fmt.Errorf("walk %q: %w", format, errFormat)
	}
	if err := b.Enter(KindOf(format)); err != nil {
		return err
	}
	defer b.Leave(KindOf(format))
	return walk(&walker{body: body, size: size, b: b, visit: visit})
}

// walker is one archive being walked.
type walker struct {
	body  io.ReaderAt
	size  int64
	b     *Budget
	visit func(Member) error
}

// member counts and visits.
func (w *walker) member(m Member) error {
	if err := w.b.Object(); err != nil {
		return err
	}
	return w.visit(m)
}

// once makes a function for Member.Open that can be called once.
func once(open func() (io.Reader, error)) func() (io.Reader, error) {
	return func() (io.Reader, error) {
		if open == nil {
			return nil, errors.New("the member was opened already")
		}
		f := open
		open = nil
		return f()
	}
}

// InnerName guesses what a compressed file that has no name inside was called: "a.tgz" holds "a.tar".
func InnerName(name string) string {
	for _, s := range [][2]string{{".tgz", ".tar"}, {".tbz2", ".tar"}, {".tbz", ".tar"}, {".gz", ""}, {".bz2", ""}, {".z", ""}} {
		if n := len(name) - len(s[0]); n > 0 && strings.EqualFold(name[n:], s[0]) {
			return name[:n] + s[1]
		}
	}
	return name
}
