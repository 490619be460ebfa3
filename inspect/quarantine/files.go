package quarantine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"mime"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"mailweir/inspect"
)

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lock takes a lock over all processes. The one called "lock" stands between making items (shared) and removing them
// (exclusive).
func (s *Store) lock(name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil // closing gives the lock back
}

// sweep removes files that no row knows. They are what a process left that died between the two, or that was about to
// delete an item. While any process makes an item nothing is swept: the next Open does it.
func (s *Store) sweep(ctx context.Context) error {
	unlock, err := s.lock("lock", syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(s.messages())
	if err != nil {
		return err
	}
	known := map[string]bool{}
	rows, err := s.db.QueryContext(ctx, "SELECT id FROM items")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		known[id] = true
	}
	if err := rows.Err(); err != nil {
		return err
	}
	n := 0
	for _, e := range entries {
		id, item := strings.CutSuffix(e.Name(), ".eml")
		if !e.Type().IsRegular() || item && known[id] || !item && !strings.HasPrefix(e.Name(), temporary) {
			continue // an item, or nothing of ours
		}
		if err := os.Remove(filepath.Join(s.messages(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n++
	}
	if n > 0 {
		s.cfg.Log.Info("unfinished items removed from the quarantine", "files", n)
	}
	return nil
}

// Bounds for the subject that is shown.
const (
	maxHeader  = 64 << 10
	maxSubject = 500
)

// subject returns the first Subject field, decoded, for people to read.
func subject(body inspect.Body) string {
	head := make([]byte, min(maxHeader, body.Size()))
	n, err := body.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return ""
	}
	lines := strings.Split(strings.ReplaceAll(string(head[:n]), "\r\n", "\n"), "\n")
	for i, line := range lines {
		if line == "" {
			return ""
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !strings.EqualFold(strings.TrimSpace(name), "Subject") {
			continue
		}
		for _, next := range lines[i+1:] {
			if next == "" || next[0] != ' ' && next[0] != '\t' {
				break
			}
			value += " " + strings.TrimSpace(next)
		}
		decoded, err := new(mime.WordDecoder).DecodeHeader(strings.TrimSpace(value))
		if err != nil {
			decoded = strings.TrimSpace(value)
		}
		return printable(decoded)
	}
	return ""
}

// printable makes s safe for a terminal and a log, and not too long.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7F && r < 0xA0 || r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > maxSubject {
		s = string(r[:maxSubject]) + "…"
	}
	return s
}
