// Package inspecttest has scanners and engines that answer as they are told, for tests of doors and of the core.
//
// Everything here is safe for concurrent use. Nothing judges a message: what a test does not tell is Defer, as
// everywhere.
package inspecttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"mailweir/inspect"
)

// Func makes a function an inspect.Scanner.
type Func func(ctx context.Context, m *inspect.Message) inspect.Verdict

// Scan calls f.
func (f Func) Scan(ctx context.Context, m *inspect.Message) inspect.Verdict { return f(ctx, m) }

// Always returns a scanner that gives v every time.
func Always(v inspect.Verdict) inspect.Scanner {
	return Func(func(context.Context, *inspect.Message) inspect.Verdict { return v })
}

// Pass returns a scanner that finds everything clean.
func Pass() inspect.Scanner { return Always(inspect.Verdict{Action: inspect.Pass, Reason: "clean"}) }

// Script returns a scanner that gives its verdicts one after the other, and Defer when there are no more.
func Script(verdicts ...inspect.Verdict) inspect.Scanner {
	var mu sync.Mutex
	return Func(func(context.Context, *inspect.Message) inspect.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if len(verdicts) == 0 {
			return inspect.Verdict{Reason: "script is over", Err: errors.New("script is over")}
		}
		v := verdicts[0]
		verdicts = verdicts[1:]
		return v
	})
}

// If returns a scanner that gives v for messages which contain text, and asks next for others.
func If(text string, v inspect.Verdict, next inspect.Scanner) inspect.Scanner {
	return Func(func(ctx context.Context, m *inspect.Message) inspect.Verdict {
		b, err := io.ReadAll(inspect.Reader(m.Body))
		if err != nil {
			return inspect.Verdict{Reason: "broken", Err: err}
		}
		if bytes.Contains(b, []byte(text)) {
			return v
		}
		return next.Scan(ctx, m)
	})
}

// Slow returns a scanner that asks next after d, or defers as soon as the context ends.
func Slow(d time.Duration, next inspect.Scanner) inspect.Scanner {
	return Func(func(ctx context.Context, m *inspect.Message) inspect.Verdict {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return next.Scan(ctx, m)
		case <-ctx.Done():
			return inspect.Verdict{Reason: "unchecked:" + inspect.Timeout, Err: ctx.Err()}
		}
	})
}

// Gate is a scanner that holds messages until it is told to let them go.
type Gate struct {
	Next    inspect.Scanner
	Arrived chan struct{} // receives one value for each message that has come
	Release chan struct{} // gives way to one message for each value; closed: to all
}

// NewGate returns a closed Gate before next.
func NewGate(next inspect.Scanner) *Gate {
	return &Gate{Next: next, Arrived: make(chan struct{}, 1024), Release: make(chan struct{})}
}

// Scan waits to be released, or defers as soon as the context ends.
func (g *Gate) Scan(ctx context.Context, m *inspect.Message) inspect.Verdict {
	g.Arrived <- struct{}{}
	select {
	case <-g.Release:
		return g.Next.Scan(ctx, m)
	case <-ctx.Done():
		return inspect.Verdict{Reason: "unchecked:" + inspect.Timeout, Err: ctx.Err()}
	}
}

// Seen is what a Recorder saw of one message.
type Seen struct {
	Message inspect.Message // without its bodies, which do not outlive Scan
	Body    []byte
	Views   [][]byte
	Verdict inspect.Verdict
}

// Recorder is a scanner that remembers what it was given. Next makes the verdicts; nil passes everything.
type Recorder struct {
	Next inspect.Scanner

	mu   sync.Mutex
	seen []Seen
}

// Scan remembers m and asks Next.
func (r *Recorder) Scan(ctx context.Context, m *inspect.Message) inspect.Verdict {
	next := r.Next
	if next == nil {
		next = Pass()
	}
	s := Seen{Message: *m, Body: all(m.Body)}
	for _, v := range m.Views {
		s.Views = append(s.Views, all(v))
	}
	s.Message.Body, s.Message.Views = nil, nil
	s.Verdict = next.Scan(ctx, m)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, s)
	return s.Verdict
}

// Seen returns what was seen so far.
func (r *Recorder) Seen() []Seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Seen(nil), r.seen...)
}

func all(b inspect.Body) []byte {
	data, err := io.ReadAll(inspect.Reader(b))
	if err != nil {
		return nil
	}
	return data
}

// Engine is an inspect.Engine that calls Do. The zero value finds nothing.
type Engine struct {
	ID string // its name; empty: "fake"
	Do func(ctx context.Context, o *inspect.Object) ([]inspect.Finding, error)

	mu      sync.Mutex
	objects []Object
}

// Object is what an Engine was given.
type Object struct {
	Path, Name, Type string
	Sum              [32]byte
	Body             []byte
}

// Name implements inspect.Engine.
func (e *Engine) Name() string {
	if e.ID == "" {
		return "fake"
	}
	return e.ID
}

// Inspect implements inspect.Engine.
func (e *Engine) Inspect(ctx context.Context, o *inspect.Object) ([]inspect.Finding, error) {
	e.mu.Lock()
	e.objects = append(e.objects, Object{o.Path, o.Name, o.Type, o.Sum, all(o.Body)})
	e.mu.Unlock()
	if e.Do == nil {
		return nil, nil
	}
	return e.Do(ctx, o)
}

// Objects returns what the engine was given so far.
func (e *Engine) Objects() []Object {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Object(nil), e.objects...)
}

// Finds returns an engine that finds threat name in objects which contain text.
func Finds(text, name string) *Engine {
	return &Engine{Do: func(_ context.Context, o *inspect.Object) ([]inspect.Finding, error) {
		if !strings.Contains(string(all(o.Body)), text) {
			return nil, nil
		}
		return []inspect.Finding{{Kind: inspect.Threat, Name: name, Category: inspect.CategoryOf(name), Path: o.Path, Engine: "fake"}}, nil
	}}
}

// Fails returns an engine that cannot look at anything, for a reason of that category.
func Fails(category string) *Engine {
	return &Engine{Do: func(context.Context, *inspect.Object) ([]inspect.Finding, error) {
		return nil, &inspect.Failure{Category: category, Err: errors.New("as told")}
	}}
}

// Hangs returns an engine that does nothing until its context ends.
func Hangs() *Engine {
	return &Engine{Do: func(ctx context.Context, _ *inspect.Object) ([]inspect.Finding, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
}

// Panics returns an engine with a fault in it.
func Panics() *Engine {
	return &Engine{Do: func(context.Context, *inspect.Object) ([]inspect.Finding, error) { panic("as told") }}
}
