package tlsunwrap

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxHistory  = 10000                // destinations remembered
	historyLife = 180 * 24 * time.Hour // since a destination was last verified
	historyStep = 7 * 24 * time.Hour   // how often an entry is written anew
)

// history remembers which destinations had a valid certificate, so that one which has none all of a sudden is noticed
// on port 25, where invalid ones are commonplace. It is a text file, a line an entry, "DAY DESTINATION", where a later
// line counts; it is written anew at each start.
type history struct {
	mu   sync.Mutex
	path string
	file *os.File
	last map[string]time.Time
}

// openHistory reads path and writes it anew without what is outdated. Without path, the memory ends with the process.
func openHistory(path string, now time.Time) (*history, error) {
	h := &history{path: path, last: map[string]time.Time{}}
	if path == "" {
		return h, nil
	}
	f, err := os.Open(path)
	if err == nil {
		err = h.read(f, now)
		f.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read history of verified destinations: %w", err)
	}
	if err := h.rewrite(); err != nil {
		return nil, fmt.Errorf("write history of verified destinations: %w", err)
	}
	return h, nil
}

func (h *history) read(f *os.File, now time.Time) error {
	s := bufio.NewScanner(f)
	for s.Scan() {
		day, key, ok := strings.Cut(s.Text(), " ")
		n, err := strconv.ParseInt(day, 10, 64)
		if !ok || err != nil {
			continue // a line that was cut by a crash
		}
		if t := time.Unix(n*86400, 0); now.Sub(t) < historyLife {
			h.put(key, t)
		}
	}
	return s.Err()
}

// put remembers key; when there is no room, the one verified longest ago goes.
func (h *history) put(key string, t time.Time) {
	h.last[key] = t
	if len(h.last) <= maxHistory {
		return
	}
	oldest := key
	for k, x := range h.last {
		if x.Before(h.last[oldest]) {
			oldest = k
		}
	}
	delete(h.last, oldest)
}

// rewrite replaces the file by what is remembered, and keeps it open for more.
func (h *history) rewrite() error {
	tmp, err := os.CreateTemp(filepath.Dir(h.path), "."+filepath.Base(h.path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	w := bufio.NewWriter(tmp)
	for k, t := range h.last {
		fmt.Fprintf(w, "%d %s\n", t.Unix()/86400, k)
	}
	err = errors.Join(w.Flush(), tmp.Sync())
	if err == nil {
		err = os.Rename(tmp.Name(), h.path)
	}
	if err != nil {
		tmp.Close()
		return err
	}
	if h.file != nil {
		h.file.Close()
	}
	h.file = tmp
	return nil
}

// has reports whether key was verified before.
func (h *history) has(key string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.last[key]
	return ok && now.Sub(t) < historyLife
}

// verified remembers key. A line that cannot be written is lost with the process, no more.
func (h *history) verified(key string, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, ok := h.last[key]; ok && now.Sub(t) < historyStep {
		return nil
	}
	h.put(key, now)
	if h.file == nil {
		return nil
	}
	if _, err := fmt.Fprintf(h.file, "%d %s\n", now.Unix()/86400, key); err != nil {
		return fmt.Errorf("write history of verified destinations: %w", err)
	}
	return nil
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil {
		return nil
	}
	err := h.file.Close()
	h.file = nil
	return err
}
