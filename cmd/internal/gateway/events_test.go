package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"mailweir/cmd/internal/control"
	"mailweir/inspect"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// names reads the names of the events in a file.
func names(t *testing.T, path string) (out []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var e inspect.Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v: %q", path, err, s.Text())
		}
		if e.Time.IsZero() {
			t.Errorf("%s: no time: %s", path, s.Text())
		}
		out = append(out, e.Event)
	}
	return out
}

func TestEventLogIsRenamedWhenFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	e, err := newEvents(path, 1000, 2, quiet())
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	for i := range n {
		e.Record(inspect.Event{Event: fmt.Sprintf("event-%03d", i)})
	}
	e.Close()
	e.Record(inspect.Event{Event: "too late"}) // and harmless
	var all []string
	for _, p := range []string{path + ".2", path + ".1", path} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 1000 {
			t.Errorf("%s has %d octets", p, info.Size())
		}
		all = append(all, names(t, p)...)
	}
	for i, name := range all {
		if want := fmt.Sprintf("event-%03d", n-len(all)+i); name != want {
			t.Fatalf("got %s at %d, want %s", name, i, want)
		}
	}
	if _, err := os.Stat(path + ".3"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a third file is kept: %v", err)
	}
}

func TestEventLogGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	for _, name := range []string{"first", "second"} {
		e, err := newEvents(path, 1<<20, 2, quiet())
		if err != nil {
			t.Fatal(err)
		}
		e.Record(inspect.Event{Event: name})
		e.Close()
	}
	if got := names(t, path); len(got) != 2 {
		t.Errorf("got %q", got)
	}

	// Moved away by somebody else: after a reload it is made anew.
	e, err := newEvents(path, 1<<20, 2, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	e.rotate()
	e.Record(inspect.Event{Event: "third"})
	e.Close()
	if got := names(t, path); len(got) != 1 || got[0] != "third" {
		t.Errorf("got %q", got)
	}
}

func TestEventLogCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := newEvents(filepath.Join(dir, "e"), 1<<20, 1, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	e.rotate() // the file is to be opened anew, in a directory that is gone
	for range 3 {
		e.Record(inspect.Event{Event: "x"})
	}
	e.Close()
	var s control.Stat
	e.stat(&s)
	if s.EventLog.Dropped != 3 || s.EventLog.Error == "" || s.Events["x"] != 3 {
		t.Errorf("got %+v", s.EventLog)
	}
}

// TestRecordNeverWaits fills every queue there is while nobody takes anything out.
func TestRecordNeverWaits(t *testing.T) {
	e := &events{queue: make(chan inspect.Event, 2), followers: map[chan inspect.Event]bool{},
		messages: map[string]int64{}, findings: map[string]int64{}, names: map[string]int64{}}
	follower := make(chan inspect.Event, 1)
	e.followers[follower] = true
	for range 10 {
		e.Record(inspect.Event{Event: "x"})
	}
	if e.dropped != 8 || e.names["x"] != 10 {
		t.Errorf("dropped %d, counted %d", e.dropped, e.names["x"])
	}
	if len(e.followers) != 0 {
		t.Error("a follower that does not read is kept")
	}
	if _, ok := <-follower; !ok {
		t.Error("what it was sent is lost")
	}
	if _, ok := <-follower; ok {
		t.Error("its stream has not ended")
	}
}

func TestFollow(t *testing.T) {
	e, err := newEvents(filepath.Join(t.TempDir(), "e"), 1<<20, 1, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for i := range ringSize + 5 {
		e.Record(inspect.Event{Event: fmt.Sprint(i)})
	}
	var got []string
	collect := func(ev inspect.Event) error { got = append(got, ev.Event); return nil }
	if err := e.each(context.Background(), control.Query{Last: 2}, collect); err != nil || fmt.Sprint(got) != "[1003 1004]" {
		t.Errorf("got %v, %v", got, err)
	}
	got = nil
	if err := e.each(context.Background(), control.Query{Last: 1 << 30}, collect); err != nil || len(got) != ringSize || got[0] != "5" {
		t.Errorf("got %d from %q, %v", len(got), got[0], err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	seen := make(chan string)
	wg.Go(func() {
		if err := e.each(ctx, control.Query{Last: 1, Follow: true}, func(ev inspect.Event) error { seen <- ev.Event; return nil }); err != nil {
			t.Error(err)
		}
	})
	if s := <-seen; s != "1004" {
		t.Errorf("got %s", s)
	}
	e.Record(inspect.Event{Event: "new"})
	if s := <-seen; s != "new" {
		t.Errorf("got %s", s)
	}
	cancel()
	wg.Wait()
	broken := errors.New("gone")
	if err := e.each(context.Background(), control.Query{Last: 1}, func(inspect.Event) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestCounters(t *testing.T) {
	e := &events{messages: map[string]int64{}, findings: map[string]int64{}, names: map[string]int64{}}
	for _, ev := range []inspect.Event{
		{Event: "message", Action: "Pass"},
		{Event: "message", Action: "Reject", Findings: []inspect.Finding{{Kind: inspect.Threat, Category: inspect.KnownVirus}, {Kind: inspect.Unchecked, Category: inspect.Limits}}},
		{Event: "message", Action: "Pass", Findings: []inspect.Finding{{Kind: inspect.Unchecked, Category: inspect.Encrypted}}},
		{Event: "unscanned", Action: "Pass", Findings: []inspect.Finding{{Kind: inspect.Unchecked, Category: inspect.Encrypted}}}, // of the same message
		{Event: "connection", Action: "Refused"},
	} {
		e.countLocked(ev)
	}
	var s control.Stat
	e.stat(&s)
	if fmt.Sprint(s.Messages, s.Findings, s.Events) != "map[Pass:2 Reject:1] map[threat:1 unchecked:encrypted:1 unchecked:limits:1] map[connection:1 message:3 unscanned:1]" {
		t.Errorf("got %v %v %v", s.Messages, s.Findings, s.Events)
	}
}
