// Package builtin is the engine that is always there: it knows the harmless test patterns EICAR and GTUBE and the
// signatures which an administrator puts into a directory, in ClamAV's formats .hdb, .hsb and .ndb.
//
// An object is read once, in blocks; each block is hashed (only if a signature of that kind and size exists) and
// searched for one fixed run of octets per signature while it is still in the cache; where a run is found, the rest
// of the signature is compared there. Files of the directory are looked at on use, at most every two seconds, and
// loaded anew when one has changed: scans that run go on with the set they began with. A line which cannot be used is
// reported with its file and number, and costs nothing but itself; a file which can no longer be read keeps the
// signatures it last gave.
//
// The engine looks at the octets it is given and takes nothing apart: decoding is package mimetree's, archives are
// package unpack's. docs/reference/signatures.md lists which forms of .ndb are understood. The work spent on one object
// is bounded; an object that asks for more is reported as unchecked ("limits"), never as clean.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mailweir/inspect"
)

// Config is what the gateway wires in. The zero value is an engine that knows the test patterns only.
type Config struct {
	Dir  string           // signature files, not recursive; empty or missing: none
	Log  *slog.Logger     // nil: discard
	Now  func() time.Time // nil: time.Now
	Poll time.Duration    // how often, at most, the directory is looked at; 0: 2 s; below 0: only by Reload
}

// Engine is an inspect.Engine.
type Engine struct {
	cfg     Config
	db      atomic.Pointer[database]
	polled  atomic.Int64 // when the directory was last looked at, Unix ns
	buffers sync.Pool

	mu     sync.Mutex // held while loading
	files  map[string]*file
	status Status
}

// Status tells what is loaded.
type Status struct {
	Signatures int          `json:"signatures"` // all, the test patterns not counted
	Hashes     int          `json:"hashes"`
	Patterns   int          `json:"patterns"`
	Bad        int          `json:"bad"` // lines that could not be used
	Loaded     time.Time    `json:"loaded"`
	Error      string       `json:"error,omitempty"` // why the directory could not be read the last time
	Files      []FileStatus `json:"files,omitempty"`
}

// FileStatus tells what one signature file gave.
type FileStatus struct {
	Name       string   `json:"name"`
	Signatures int      `json:"signatures"`
	Bad        int      `json:"bad"`
	Problems   []string `json:"problems,omitempty"` // the first ones, as file:line: reason
	Error      string   `json:"error,omitempty"`    // why it could not be read; its former signatures are still in use
}

// Open loads the signature files of cfg.Dir. A directory that does not exist is an empty one: it may be made later.
func Open(cfg Config) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Poll == 0 {
		cfg.Poll = 2 * time.Second
	}
	e := &Engine{cfg: cfg, files: map[string]*file{}}
	e.buffers.New = func() any { return new(buffers) }
	if cfg.Dir != "" {
		if info, err := os.Stat(cfg.Dir); err == nil && !info.IsDir() {
			return nil, fmt.Errorf("open signature directory: %s is not a directory", cfg.Dir)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open signature directory: %w", err)
		}
	}
	if err := e.Reload(); err != nil {
		return nil, err
	}
	return e, nil
}

// Name implements inspect.Engine.
func (e *Engine) Name() string { return "builtin" }

// UsesSum says whether it helps to be given the SHA-256 of every object. A sum that is wanted for objects of a few sizes
// only is computed here, on the way.
func (e *Engine) UsesSum() bool { return e.db.Load().always&kindSHA256 != 0 }

// Status returns what is loaded now.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Files = append([]FileStatus(nil), s.Files...)
	return s
}

// Inspect implements inspect.Engine.
func (e *Engine) Inspect(ctx context.Context, o *inspect.Object) ([]inspect.Finding, error) {
	e.poll()
	b := e.buffers.Get().(*buffers)
	defer e.buffers.Put(b)
	s := scan{db: e.db.Load(), obj: o, buf: b, size: o.Body.Size()}
	return s.run(ctx)
}

// poll loads the directory anew when it is time to look at it and something has changed there. Only one caller does
// the work; the others go on at once with what is loaded.
func (e *Engine) poll() {
	if e.cfg.Poll < 0 {
		return
	}
	now, last := e.cfg.Now().UnixNano(), e.polled.Load()
	if d := now - last; d >= 0 && d < int64(e.cfg.Poll) || !e.polled.CompareAndSwap(last, now) {
		return
	}
	if !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	if err := e.loadLocked(false); err != nil && e.status.Error != err.Error() {
		e.status.Error = err.Error()
		e.cfg.Log.Warn("signatures not reloaded, the former stay in use", "err", err)
	}
}

// Reload looks at the directory now and loads what has changed. After an error the former signatures stay in use.
func (e *Engine) Reload() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.polled.Store(e.cfg.Now().UnixNano())
	err := e.loadLocked(true)
	if err != nil {
		e.status.Error = err.Error()
	}
	return err
}
