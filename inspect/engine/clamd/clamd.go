// Package clamd is the engine that asks ClamAV's daemon.
//
// Each object gets a connection of its own: one on which something went wrong can then never answer for another
// object, and connecting to a unix socket costs less than a hundredth of the daemon's work. How many are open at once
// is bounded; who finds all of them in use waits until its context ends. A body that lies in a file is handed over as
// a descriptor (FILDES) when the socket is a unix socket, anything else as a stream (INSTREAM).
//
// Only a whole answer that says OK means clean. No answer, half of one, one that is not understood, "ERROR": each is an
// *inspect.Failure with its category. After a failure the daemon must answer PING before it is given another object;
// while it does not, objects fail at once, and it is asked again after a growing pause.
//
// Limits of the daemon's own (StreamMaxLength, MaxScanSize, MaxRecursion …) that it tells about are "limits"; those
// that it keeps to itself are not known here: set AlertExceedsMax and AlertEncrypted in clamd.conf to hear of them.
package clamd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"mailweir/inspect"
)

// Settings are what an administrator writes.
type Settings struct {
	ClamdSocket         string        `key:"ClamdSocket" default:"" doc:"Where clamd listens: the path of a unix socket or ip:port. Empty: clamd is not asked."`
	ClamdConnections    int           `key:"ClamdConnections" default:"8" min:"1" max:"1000" doc:"How many objects clamd is given at once; further ones wait within ScanTimeout. Not more than MaxThreads of clamd.conf."`
	ClamdTimeout        time.Duration `key:"ClamdTimeout" default:"25s" min:"1s" max:"1h" doc:"How long clamd may take for one object; longer is unchecked (timeout)."`
	ClamdConnectTimeout time.Duration `key:"ClamdConnectTimeout" default:"3s" min:"100ms" max:"1m" doc:"How long clamd may take to accept a connection, and to answer PING after a failure; longer is unchecked (unavailable)."`
}

// Check tells what is wrong with the settings.
func (s *Settings) Check() error {
	_, _, err := s.address()
	return err
}

func (s *Settings) address() (network, address string, err error) {
	if strings.HasPrefix(s.ClamdSocket, "/") {
		return "unix", s.ClamdSocket, nil
	}
	if _, err := netip.ParseAddrPort(s.ClamdSocket); err != nil {
		return "", "", fmt.Errorf("ClamdSocket %q is neither an absolute path nor ip:port", s.ClamdSocket)
	}
	return "tcp", s.ClamdSocket, nil
}

// Config is what the gateway wires in.
type Config struct {
	Settings
	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: time.Now
}

// Engine is an inspect.Engine.
type Engine struct {
	cfg              Config
	network, address string
	slots            chan struct{}

	mu     sync.Mutex
	status Status
	retry  time.Time     // not asked before, while State is Failed
	pause  time.Duration // the last one
}

// State is what is known of the daemon.
type State string

// The states. It begins as Suspect: nothing is known yet.
const (
	Ready   State = "ready"
	Suspect State = "suspect" // something went wrong: PING first
	Failed  State = "failed"  // does not answer
)

// Status tells how the daemon does.
type Status struct {
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error,omitempty"` // the last failure
	Busy    int       `json:"busy"`            // objects being looked at
	Objects int64     `json:"objects"`
	Failed  int64     `json:"failed"`
}

// The pause after which a daemon that did not answer is asked again. It is short: all mail waits for it.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 5 * time.Second
)

// New makes an engine. It does not connect: the daemon may come up later.
func New(cfg Config) (*Engine, error) {
	network, address, err := cfg.address()
	if err != nil {
		return nil, err
	}
	if cfg.ClamdConnections == 0 {
		cfg.ClamdConnections = 8
	}
	if cfg.ClamdTimeout == 0 {
		cfg.ClamdTimeout = 25 * time.Second
	}
	if cfg.ClamdConnectTimeout == 0 {
		cfg.ClamdConnectTimeout = 3 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	e := &Engine{cfg: cfg, network: network, address: address, slots: make(chan struct{}, cfg.ClamdConnections)}
	e.status = Status{State: Suspect, Since: cfg.Now()}
	return e, nil
}

// Name implements inspect.Engine.
func (e *Engine) Name() string { return "clamd" }

// UsesSum says that an object's hash is of no use here.
func (e *Engine) UsesSum() bool { return false }

// Status returns how the daemon does.
func (e *Engine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Busy = len(e.slots)
	return s
}

// Inspect implements inspect.Engine.
func (e *Engine) Inspect(ctx context.Context, o *inspect.Object) ([]inspect.Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ClamdTimeout)
	defer cancel()
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return nil, failure(inspect.Timeout, fmt.Errorf("wait for one of %d connections: %w", cap(e.slots), ctx.Err()))
	}
	if err := e.ready(ctx); err != nil {
		return nil, err
	}
	line, err := e.ask(ctx, o.Body)
	if err != nil {
		return nil, e.failed(ctx, err)
	}
	found, err := e.answer(line, o)
	e.mu.Lock()
	e.status.Objects++
	e.mu.Unlock()
	if err != nil {
		// The daemon lives and says that it cannot: that is about the object, unless it is about the daemon.
		var f *inspect.Failure
		if errors.As(err, &f) && f.Category == inspect.Unavailable {
			return nil, e.failed(ctx, err)
		}
		return nil, err
	}
	return found, nil
}

// Ping asks the daemon for a sign of life.
func (e *Engine) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ClamdConnectTimeout)
	defer cancel()
	c, err := e.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.write([]byte("zPING\x00")); err != nil {
		return fmt.Errorf("send PING: %w", err)
	}
	line, err := c.line()
	if err != nil {
		return fmt.Errorf("read answer to PING: %w", err)
	}
	if line != "PONG" {
		return fmt.Errorf("answer to PING is %q", line)
	}
	return nil
}

// ready returns nil when the daemon may be given an object.
func (e *Engine) ready(ctx context.Context) error {
	e.mu.Lock()
	state, last, now := e.status.State, e.status.Error, e.cfg.Now()
	if state == Failed && now.Before(e.retry) {
		e.mu.Unlock()
		return failure(inspect.Unavailable, fmt.Errorf("asked again in %v: %s", e.retry.Sub(now).Round(time.Millisecond), last))
	}
	if state == Failed { // this caller asks; the others go on failing meanwhile
		e.retry = now.Add(e.cfg.ClamdConnectTimeout + firstPause)
	}
	e.mu.Unlock()
	if state == Ready {
		return nil
	}
	err := e.Ping(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.setLocked(Ready, nil)
		return nil
	}
	e.status.Failed++
	if ctx.Err() != nil { // too little time was left to tell
		e.retry = now
		return failure(inspect.Timeout, err)
	}
	switch {
	case state == Failed:
		e.pause = min(2*e.pause, lastPause)
		e.retry = e.cfg.Now().Add(e.pause)
	case e.status.State != Failed:
		e.pause = firstPause
		e.retry = e.cfg.Now().Add(e.pause)
	}
	e.setLocked(Failed, err)
	return failure(inspect.Unavailable, err)
}

// failed records that something went wrong and returns it with its category.
func (e *Engine) failed(ctx context.Context, err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.Failed++
	if e.status.State == Ready {
		e.setLocked(Suspect, err)
	} else {
		e.status.Error = err.Error()
	}
	var f *inspect.Failure
	if errors.As(err, &f) {
		return err
	}
	var timeout net.Error
	if ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
		return failure(inspect.Timeout, err)
	}
	return failure(inspect.Unavailable, err)
}

// setLocked changes the state; what an administrator wants to know of that goes into the log, once.
func (e *Engine) setLocked(s State, err error) {
	if err != nil {
		e.status.Error = err.Error()
	}
	if e.status.State == s {
		return
	}
	switch {
	case s == Failed:
		e.cfg.Log.Warn("clamd does not answer: what it should look at is unchecked", "address", e.address, "err", err)
	case s == Ready && e.status.State == Failed:
		e.cfg.Log.Info("clamd answers again", "address", e.address)
	}
	e.status.State, e.status.Since = s, e.cfg.Now()
}

func failure(category string, err error) error {
	return &inspect.Failure{Category: category, Err: fmt.Errorf("clamd: %w", err)}
}
