package builtin

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Bounds for what is read and reported.
const (
	maxLine     = 256 << 10 // octets in a line of a signature file
	maxProblems = 20        // bad lines that are reported one by one, per file
)

// stamp tells whether a file has changed.
type stamp struct {
	size  int64
	mtime time.Time
}

// file is what one signature file gave.
type file struct {
	stamp    stamp
	settled  bool // the file was old enough when it was read for any later change to show in its stamp
	hashes   []hash
	patterns []*pattern
	bad      int
	problems []string
	err      string
}

// hash is a signature of .hdb or .hsb.
type hash struct {
	sum  string // raw octets: 16 for md5, 20 for sha1, 32 for sha256
	size int64  // -1: any
	name string
}

// loadLocked reads the directory, loads what has changed and puts the result in use. With all, files whose stamps have
// not changed are read too.
func (e *Engine) loadLocked(all bool) error {
	found := map[string]stamp{}
	if e.cfg.Dir != "" {
		entries, err := os.ReadDir(e.cfg.Dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read signature directory: %w", err)
		}
		for _, d := range entries {
			if !isSignatureFile(d.Name()) {
				continue
			}
			info, err := os.Stat(filepath.Join(e.cfg.Dir, d.Name()))
			if err != nil || !info.Mode().IsRegular() {
				continue // it went away in between, or leads nowhere
			}
			found[d.Name()] = stamp{info.Size(), info.ModTime()}
		}
	}
	changed := all || e.db.Load() == nil
	files := map[string]*file{}
	for name, st := range found {
		old := e.files[name]
		if !all && old != nil && old.stamp == st && old.settled {
			files[name] = old
			continue
		}
		files[name] = e.loadFile(name, st, old)
		changed = changed || files[name] != old
	}
	if !changed && len(files) == len(e.files) {
		e.status.Error = ""
		return nil
	}
	e.files = files
	e.db.Store(newDatabase(files))
	e.report()
	return nil
}

// loadFile reads one file. If that breaks off, its former signatures stay.
func (e *Engine) loadFile(name string, st stamp, old *file) *file {
	path := filepath.Join(e.cfg.Dir, name)
	f := &file{stamp: st, settled: e.cfg.Now().Sub(st.mtime) > time.Second}
	log := e.cfg.Log.With("file", path)
	err := f.read(path)
	if err == nil {
		// A good file in place of a bad one has nothing more to say about it.
		if f.bad > 0 && (old == nil || old.bad != f.bad || old.stamp != st) {
			log.Warn("signature file has lines that cannot be used", "loaded", f.count(), "bad", f.bad, "first", f.problems[0])
		}
		return f
	}
	if old != nil && old.stamp == st && old.err == err.Error() {
		return old // still so, and tried again the next time
	}
	kept := &file{stamp: st, err: err.Error()}
	if old != nil {
		kept.hashes, kept.patterns, kept.bad, kept.problems = old.hashes, old.patterns, old.bad, old.problems
	}
	log.Warn("signature file cannot be read, its former signatures stay in use", "signatures", kept.count(), "err", err)
	return kept
}

func (f *file) count() int { return len(f.hashes) + len(f.patterns) }

func isSignatureFile(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".hdb", ".hsb", ".ndb":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// read parses the file at path. Bad lines are remembered; an error means that the file could not be read to its end.
func (f *file) read(path string) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	ndb := strings.EqualFold(filepath.Ext(path), ".ndb")
	lines := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if err == io.EOF && line == "" {
			return nil
		}
		if err != nil && err != io.EOF && !errors.Is(err, errLongLine) {
			return err
		}
		bad := err
		if text := strings.TrimSpace(line); bad == io.EOF || bad == nil {
			bad = nil
			if text != "" && !strings.HasPrefix(text, "#") {
				bad = f.add(text, ndb)
			}
		}
		if bad != nil {
			f.bad++
			if len(f.problems) < maxProblems {
				f.problems = append(f.problems, fmt.Sprintf("%s:%d: %v", filepath.Base(path), n, bad))
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

var errLongLine = fmt.Errorf("line is longer than %d octets", maxLine)

// readLine reads a line of any length and keeps no more of it than maxLine octets.
func readLine(r *bufio.Reader) (string, error) {
	var b strings.Builder
	long := false
	for {
		part, err := r.ReadSlice('\n')
		if long = long || b.Len()+len(part) > maxLine; !long {
			b.Write(part)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if long && (err == nil || err == io.EOF) {
			if err == io.EOF {
				return "long", io.EOF // the end is told again by the next call
			}
			return "", errLongLine
		}
		return b.String(), err
	}
}

func (f *file) add(text string, ndb bool) error {
	if ndb {
		p, err := parseNDB(text)
		if err != nil {
			return err
		}
		f.patterns = append(f.patterns, p)
		return nil
	}
	h, err := parseHash(text)
	if err != nil {
		return err
	}
	f.hashes = append(f.hashes, h)
	return nil
}

// parseHash reads digest:size:name[:minlevel[:maxlevel]]; the digest's length tells its kind.
func parseHash(line string) (h hash, err error) {
	f := strings.Split(line, ":")
	if len(f) < 3 || len(f) > 5 {
		return h, fmt.Errorf("%d fields instead of digest:size:name", len(f))
	}
	sum, err := hex.DecodeString(f[0])
	if err != nil {
		return h, fmt.Errorf("digest %q is not hexadecimal", f[0])
	}
	switch len(sum) {
	case 16, 20, 32:
	default:
		return h, fmt.Errorf("digest of %d octets is neither md5 nor sha1 nor sha256", len(sum))
	}
	h.sum, h.size, h.name = string(sum), -1, f[2]
	if f[1] != "*" {
		if h.size, err = strconv.ParseInt(f[1], 10, 64); err != nil || h.size < 0 {
			return h, fmt.Errorf("size %q is neither a number nor *", f[1])
		}
	}
	if h.name == "" {
		return h, errors.New("name is empty")
	}
	return h, nil
}

// report makes the status and says in the log what is loaded.
func (e *Engine) report() {
	s := Status{Loaded: e.cfg.Now()}
	for name, f := range e.files {
		s.Hashes += len(f.hashes)
		s.Patterns += len(f.patterns)
		s.Bad += f.bad
		s.Files = append(s.Files, FileStatus{Name: name, Signatures: f.count(), Bad: f.bad, Problems: f.problems, Error: f.err})
	}
	sortFiles(s.Files)
	s.Signatures = s.Hashes + s.Patterns
	e.status = s
	e.cfg.Log.Info("signatures loaded", "signatures", s.Signatures, "files", len(s.Files), "bad", s.Bad)
}
