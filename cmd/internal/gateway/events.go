package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"mailweir/cmd/internal/control"
	"mailweir/inspect"
)

const (
	ringSize  = 1000 // past events that are kept in memory
	queueSize = 4096 // events that may wait for the disk
	readers   = 256  // events that may wait for one follower
)

// events takes every event of the gateway: into a ring in memory, into counters, to those who follow, and into a file
// that is renamed when it is full. Record never waits for the disk or for a follower.
type events struct {
	path  string
	size  int64
	files int
	log   *slog.Logger
	queue chan inspect.Event
	done  chan struct{}

	mu        sync.Mutex
	closed    bool
	ring      []inspect.Event
	next      int // where the next event goes once the ring is full
	followers map[chan inspect.Event]bool
	messages  map[string]int64
	findings  map[string]int64
	names     map[string]int64
	written   int64
	dropped   int64
	reopen    bool
	err       error
}

// newEvents opens the event log and starts its writer, which ends with Close.
func newEvents(path string, size int64, files int, log *slog.Logger) (*events, error) {
	w := &eventFile{path: path, limit: size, keep: files}
	if err := w.open(); err != nil {
		return nil, err
	}
	e := &events{
		path: path, size: size, files: files, log: log,
		queue: make(chan inspect.Event, queueSize), done: make(chan struct{}),
		followers: map[chan inspect.Event]bool{},
		messages:  map[string]int64{}, findings: map[string]int64{}, names: map[string]int64{},
	}
	go e.write(w)
	return e, nil
}

// Record implements inspect.Recorder.
func (e *events) Record(ev inspect.Event) {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	ev.Time = ev.Time.UTC()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	if len(e.ring) < ringSize {
		e.ring = append(e.ring, ev)
	} else {
		e.ring[e.next] = ev
		e.next = (e.next + 1) % ringSize
	}
	e.countLocked(ev)
	for f := range e.followers {
		select {
		case f <- ev:
		default: // reads too slowly: its stream ends here, and it knows
			delete(e.followers, f)
			close(f)
		}
	}
	select {
	case e.queue <- ev:
	default:
		e.dropped++
	}
}

func (e *events) countLocked(ev inspect.Event) {
	e.names[ev.Event]++
	if ev.Event == "message" {
		e.messages[ev.Action]++
	}
	if ev.Event == "unscanned" { // comes behind the message's own event, with the same findings
		return
	}
	for _, f := range ev.Findings {
		name := f.Kind
		if f.Kind == inspect.Unchecked {
			name += ":" + f.Category
		}
		e.findings[name]++
	}
}

// errSlow ends the stream of a follower that does not keep up.
var errSlow = errors.New("events came faster than they were read; some are missing")

// each calls fn with the last events, and then with new ones if q.Follow.
func (e *events) each(ctx context.Context, q control.Query, fn func(inspect.Event) error) error {
	e.mu.Lock()
	past := append(append([]inspect.Event(nil), e.ring[e.next:]...), e.ring[:e.next]...)
	past = past[max(0, len(past)-q.Last):]
	var follow chan inspect.Event
	if q.Follow && !e.closed {
		follow = make(chan inspect.Event, readers)
		e.followers[follow] = true
	}
	e.mu.Unlock()
	if follow != nil {
		defer func() {
			e.mu.Lock()
			delete(e.followers, follow)
			e.mu.Unlock()
		}()
	}
	for _, ev := range past {
		if err := fn(ev); err != nil {
			return err
		}
	}
	if follow == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-follow:
			if !ok {
				return errSlow
			}
			if err := fn(ev); err != nil {
				return err
			}
		}
	}
}

// write is the writer: it takes events off the queue until it is closed.
func (e *events) write(w *eventFile) {
	defer close(e.done)
	failing := false
	for ev := range e.queue {
		e.mu.Lock()
		reopen := e.reopen
		e.reopen = false
		e.mu.Unlock()
		err := w.put(ev, reopen)
		if err == nil && len(e.queue) == 0 {
			err = w.flush()
		}
		e.mu.Lock()
		if e.err = err; err == nil {
			e.written++
		} else {
			e.dropped++
		}
		e.mu.Unlock()
		if err != nil && !failing {
			e.log.Error("event log cannot be written; mail goes on", "path", e.path, "err", err)
		}
		failing = err != nil
	}
	if err := w.close(); err != nil {
		e.log.Error("event log cannot be closed", "path", e.path, "err", err)
	}
}

// rotate makes the writer open its file anew before the next event, in case somebody has moved it away.
func (e *events) rotate() {
	e.mu.Lock()
	e.reopen = true
	e.mu.Unlock()
}

// Close writes what waits and ends the writer and all followers.
func (e *events) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	for f := range e.followers {
		delete(e.followers, f)
		close(f)
	}
	close(e.queue)
	e.mu.Unlock()
	<-e.done
}

// stat fills in what the events tell.
func (e *events) stat(s *control.Stat) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Messages, s.Findings, s.Events = clone(e.messages), clone(e.findings), clone(e.names)
	s.EventLog = control.EventLog{Path: e.path, Written: e.written, Dropped: e.dropped}
	if e.err != nil {
		s.EventLog.Error = e.err.Error()
	}
}

func clone(m map[string]int64) map[string]int64 {
	out := make(map[string]int64, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// eventFile is the event log on disk: path, and path.1 … path.keep when it is full.
type eventFile struct {
	path  string
	limit int64
	keep  int
	f     *os.File
	buf   *bufio.Writer
	size  int64
}

func (w *eventFile) open() error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open event log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open event log: %w", err)
	}
	w.f, w.size, w.buf = f, info.Size(), bufio.NewWriterSize(f, 64<<10)
	return nil
}

// put appends one event. After an error the file is closed, and the next call opens it again.
func (w *eventFile) put(ev inspect.Event, reopen bool) (err error) {
	line, err := json.Marshal(ev)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	line = append(line, '\n')
	if reopen && w.f != nil {
		if err := w.close(); err != nil {
			return err
		}
	}
	if w.f != nil && w.size > 0 && w.size+int64(len(line)) > w.limit {
		if err := w.close(); err != nil {
			return err
		}
		if err := w.shift(); err != nil {
			return err
		}
	}
	if w.f == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	if _, err := w.buf.Write(line); err != nil {
		return errors.Join(fmt.Errorf("write event log: %w", err), w.abandon())
	}
	w.size += int64(len(line))
	return nil
}

// shift renames path.1 to path.2 and so on, and path to path.1.
func (w *eventFile) shift() error {
	for i := w.keep - 1; i >= 1; i-- {
		err := os.Rename(fmt.Sprintf("%s.%d", w.path, i), fmt.Sprintf("%s.%d", w.path, i+1))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rename event log: %w", err)
		}
	}
	if err := os.Rename(w.path, w.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rename event log: %w", err)
	}
	return nil
}

func (w *eventFile) flush() error {
	if w.f == nil {
		return nil
	}
	if err := w.buf.Flush(); err != nil {
		return errors.Join(fmt.Errorf("write event log: %w", err), w.abandon())
	}
	return nil
}

// abandon closes the file without another attempt to write what is buffered.
func (w *eventFile) abandon() error {
	err := w.f.Close()
	w.f = nil
	return err
}

func (w *eventFile) close() error {
	if w.f == nil {
		return nil
	}
	err := w.buf.Flush()
	err = errors.Join(err, w.f.Close())
	w.f = nil
	if err != nil {
		return fmt.Errorf("close event log: %w", err)
	}
	return nil
}
