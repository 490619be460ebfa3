// Package spool keeps message bodies at rest while a verdict is made: the only copy in, the only copy out.
//
// A [File] is written once, front to back, and read at any offset, by several readers at once. It lives in memory up
// to SpoolMemory octets, in small pooled chunks so that growing never copies, and beyond that in an unlinked temporary
// file, which the kernel removes with the last descriptor: a process that dies leaves nothing behind.
//
// Limits: all files of a [Pool] together hold at most SpoolQuota octets, one holds at most SpoolMaxMessage. Reaching a
// limit, or a full or read-only disk, is an error of Write that matches [ErrQuota] or [ErrTooLarge] and stays; what was
// written before it remains readable. Nothing is synced to disk: what must survive a crash belongs in the quarantine.
package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Errors of Write, to be compared with errors.Is.
var (
	ErrQuota    = errors.New("spool is full")
	ErrTooLarge = errors.New("message exceeds SpoolMaxMessage")
)

// Settings is what an administrator writes. Zero numbers mean the defaults.
type Settings struct {
	SpoolMemory     int64 `key:"SpoolMemory" type:"size" default:"256kb" doc:"A message is kept in memory up to this size; a longer one goes to a temporary file in SpoolDir."`
	SpoolQuota      int64 `key:"SpoolQuota" type:"size" default:"2gb" doc:"All messages being inspected at one time may take this much together, in memory and on disk. Beyond it new messages get a temporary refusal."`
	SpoolMaxMessage int64 `key:"SpoolMaxMessage" type:"size" default:"None" none:"yes" doc:"The longest message that is accepted for inspection. None leaves the limit to SpoolQuota and to the mail server."`
}

const (
	defaultMemory = 256 << 10
	defaultQuota  = 2 << 30
	chunkSize     = 32 << 10

	// leftover begins the names that exist for an instant on file systems without O_TMPFILE.
	leftover = ".mailweir-spool-"
)

// Config is what the gateway wires in.
type Config struct {
	Settings
	Dir string       // where temporary files go; made when it does not exist
	Log *slog.Logger // nil: silent
}

// Pool makes Files and counts what they hold. It is safe for concurrent use.
type Pool struct {
	settings Settings
	dir      string
	files    atomic.Int64
	used     atomic.Int64
	chunks   sync.Pool // of *[chunkSize]byte
	noTmp    atomic.Bool
}

// New returns a Pool over cfg.Dir, which it makes (0700) if it is missing and tests by writing to it. It removes what a
// predecessor that died between two system calls may have left there.
func New(cfg Config) (*Pool, error) {
	if cfg.Dir == "" {
		return nil, errors.New("open spool: the directory is not set")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	p := &Pool{settings: cfg.Settings, dir: cfg.Dir}
	if p.settings.SpoolMemory <= 0 {
		p.settings.SpoolMemory = defaultMemory
	}
	if p.settings.SpoolQuota <= 0 {
		p.settings.SpoolQuota = defaultQuota
	}
	p.chunks.New = func() any { return new([chunkSize]byte) }
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if n := p.sweep(); n > 0 {
		log.Info("removed left-over spool files", "dir", cfg.Dir, "files", n)
	}
	f, err := p.temporary()
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	defer f.Close()
	if _, err := f.Write([]byte{0}); err != nil {
		return nil, fmt.Errorf("open spool: write to %s: %w", cfg.Dir, err)
	}
	return p, nil
}

// sweep removes named files. Those of a live process are not at risk: it unlinks them itself at once.
func (p *Pool) sweep() (removed int) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return 0 // the directory may be writable without being readable
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), leftover) && e.Type().IsRegular() && os.Remove(filepath.Join(p.dir, e.Name())) == nil {
			removed++
		}
	}
	return removed
}

// temporary opens a file that has no name.
func (p *Pool) temporary() (*os.File, error) {
	if !p.noTmp.Load() {
		fd, err := unix.Open(p.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), p.dir), nil
		case unix.EOPNOTSUPP, unix.EISDIR, unix.ENOENT, unix.EINVAL: // open(2): no O_TMPFILE here
		default:
			return nil, &os.PathError{Op: "open temporary file in", Path: p.dir, Err: err}
		}
	}
	f, err := os.CreateTemp(p.dir, leftover)
	if err != nil {
		return nil, err
	}
	p.noTmp.Store(true)
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Usage returns the number of Files that hold something and the octets in them.
func (p *Pool) Usage() (files int, bytes int64) { return int(p.files.Load()), p.used.Load() }

// take reserves n octets of the quota.
func (p *Pool) take(n int64) bool {
	if p.used.Add(n) > p.settings.SpoolQuota {
		p.used.Add(-n)
		return false
	}
	return true
}

// Create returns an empty File. It takes nothing before the first Write.
func (p *Pool) Create() *File { return &File{pool: p} }

// File is one message, or a part of one, at rest. It is an inspect.Body, an io.Writer and an io.Closer. ReadAt and Size
// may be called concurrently with each other and with Write; Write is for one goroutine.
type File struct {
	pool *Pool

	mu     sync.RWMutex
	tail   []*[chunkSize]byte // octets [onDisk, size)
	disk   *os.File           // octets [0, onDisk); nil as long as everything is in memory
	onDisk int64
	copied int64 // the octets before it are on disk too, whatever onDisk says
	size   int64
	err    error // of Write; stays
	closed bool
}

// Write appends b, all of it or nothing. After an error every further Write returns the same error.
func (f *File) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	if f.err != nil {
		return 0, f.err
	}
	if len(b) == 0 {
		return 0, nil
	}
	n := int64(len(b))
	if limit := f.pool.settings.SpoolMaxMessage; limit > 0 && n > limit-f.size {
		f.err = fmt.Errorf("spool message: %w (%d octets)", ErrTooLarge, limit)
		return 0, f.err
	}
	if !f.pool.take(n) {
		f.err = fmt.Errorf("spool message: %w: SpoolQuota is %d octets", ErrQuota, f.pool.settings.SpoolQuota)
		return 0, f.err
	}
	if err := f.store(b); err != nil {
		f.pool.used.Add(-n)
		f.err = fmt.Errorf("spool message: %w", full(err))
		return 0, f.err
	}
	if f.size == 0 {
		f.pool.files.Add(1)
	}
	f.size += n
	return len(b), nil
}

// store puts b behind what is there; the caller counts it in f.size if that succeeds.
func (f *File) store(b []byte) error {
	at := f.size // end of what is stored, ahead of f.size until b is complete
	for len(b) > 0 {
		held := at - f.onDisk
		room := int64(len(f.tail))*chunkSize - held
		if room == 0 {
			if held > 0 && (f.disk != nil || held+int64(len(b)) > f.pool.settings.SpoolMemory) {
				if err := f.flush(); err != nil {
					return err
				}
				continue
			}
			if f.disk != nil && len(b) >= chunkSize {
				n := len(b) - len(b)%chunkSize
				if _, err := f.disk.WriteAt(b[:n], f.onDisk); err != nil {
					return err
				}
				f.onDisk += int64(n)
				at += int64(n)
				b = b[n:]
				continue
			}
			f.tail = append(f.tail, f.pool.chunks.Get().(*[chunkSize]byte))
			room = chunkSize
		}
		n := copy(f.tail[len(f.tail)-1][chunkSize-room:], b)
		at += int64(n)
		b = b[n:]
	}
	return nil
}

// flush moves the tail, whose chunks are all full, to disk.
func (f *File) flush() error {
	if f.disk == nil {
		disk, err := f.pool.temporary()
		if err != nil {
			return err
		}
		f.disk = disk
	}
	for i, c := range f.tail {
		if _, err := f.disk.WriteAt(c[:], f.onDisk+int64(i)*chunkSize); err != nil {
			return err
		}
	}
	f.onDisk += int64(len(f.tail)) * chunkSize
	f.release()
	return nil
}

// release gives the tail's chunks back.
func (f *File) release() {
	for i, c := range f.tail {
		f.pool.chunks.Put(c)
		f.tail[i] = nil
	}
	f.tail = f.tail[:0]
}

// full makes the system's ways to say that there is no room match ErrQuota.
func full(err error) error {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrQuota, err)
		}
	}
	return err
}

// Size returns the number of octets written.
func (f *File) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(b []byte, off int64) (n int, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case f.closed:
		return 0, os.ErrClosed
	case off < 0:
		return 0, errors.New("read spooled message: negative offset")
	case off >= f.size:
		return 0, io.EOF
	}
	if int64(len(b)) > f.size-off {
		b, err = b[:f.size-off], io.EOF
	}
	if off < f.onDisk {
		want := b[:min(int64(len(b)), f.onDisk-off)]
		got, rerr := f.disk.ReadAt(want, off)
		if n += got; got < len(want) {
			return n, fmt.Errorf("read spooled message: %w", rerr)
		}
	}
	for n < len(b) {
		at := off + int64(n) - f.onDisk
		n += copy(b[n:], f.tail[at/chunkSize][at%chunkSize:])
	}
	return n, err
}

// OSFile returns the temporary file if the body lies in it as a whole, and nil if it is in memory: who can pass a
// descriptor on need not read. The octets that are still in memory of a body that is on disk otherwise go there first.
//
// The file stays f's own: it is not to be written to, moved or closed. Close of f closes it, also while somebody is
// using it: os.File holds the descriptor open until a call that is under way has returned, so that it is never another
// file's; a call that comes later fails. Whoever wants to keep it longer opens or duplicates it (by way of
// SyscallConn: the number that Fd returns means nothing any more after Close).
func (f *File) OSFile() *os.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.disk == nil {
		return nil
	}
	if held := f.size - f.onDisk; f.copied < f.size {
		// A copy: the chunks stay what they are, for Write to go on in the last of them and for reads.
		for i := int64(0); i*chunkSize < held; i++ {
			b := f.tail[i][:min(chunkSize, held-i*chunkSize)]
			if _, err := f.disk.WriteAt(b, f.onDisk+i*chunkSize); err != nil {
				return nil // the body is still readable here
			}
		}
		f.copied = f.size
	}
	return f.disk
}

// Close gives back memory, disk and quota. It may be called several times, and while reads are going on: those that
// come later fail.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.release()
	f.tail = nil
	if f.size > 0 {
		f.pool.files.Add(-1)
		f.pool.used.Add(-f.size)
	}
	if f.disk == nil {
		return nil
	}
	return f.disk.Close()
}
