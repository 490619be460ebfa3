package inspecttest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/inspecttest"
)

func message(content string) *inspect.Message {
	return &inspect.Message{ID: "m", Body: inspect.Bytes(content)}
}

func Example() {
	reject := inspect.Verdict{Action: inspect.Reject, Reason: "threat"}
	r := &inspecttest.Recorder{Next: inspecttest.If("virus", reject, inspecttest.Pass())}
	for _, text := range []string{"hello", "a virus"} {
		v := r.Scan(context.Background(), &inspect.Message{ID: "m", Body: inspect.Bytes(text)})
		fmt.Println(v.Action, v.Reason)
	}
	fmt.Println(len(r.Seen()), string(r.Seen()[1].Body))
	// Output:
	// Pass clean
	// Reject threat
	// 2 a virus
}

func TestScript(t *testing.T) {
	s := inspecttest.Script(inspect.Verdict{Action: inspect.Pass}, inspect.Verdict{Action: inspect.Reject})
	for _, want := range []inspect.Action{inspect.Pass, inspect.Reject, inspect.Defer} {
		if v := s.Scan(context.Background(), message("")); v.Action != want {
			t.Errorf("action %v, want %v", v.Action, want)
		}
	}
}

func TestSlowAndGate(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	g := inspecttest.NewGate(inspecttest.Pass())
	for _, s := range []inspect.Scanner{inspecttest.Slow(time.Hour, inspecttest.Pass()), g} {
		if v := s.Scan(ctx, message("")); v.Action != inspect.Defer || v.Err == nil {
			t.Errorf("verdict %+v", v)
		}
	}
	<-g.Arrived
	close(g.Release)
	for _, s := range []inspect.Scanner{inspecttest.Slow(0, inspecttest.Pass()), g} {
		if v := s.Scan(context.Background(), message("")); v.Action != inspect.Pass {
			t.Errorf("verdict %+v", v)
		}
	}
}

func TestEngines(t *testing.T) {
	o := &inspect.Object{Path: "1", Body: inspect.Bytes("a needle")}
	e := inspecttest.Finds("needle", "Win.Joke.X")
	found, err := e.Inspect(context.Background(), o)
	if err != nil || len(found) != 1 || found[0].Category != inspect.Joke || found[0].Path != "1" || len(e.Objects()) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	_, err = inspecttest.Fails(inspect.Broken).Inspect(context.Background(), o)
	var f *inspect.Failure
	if !errors.As(err, &f) || f.Category != inspect.Broken {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := inspecttest.Hangs().Inspect(ctx, o); err == nil {
		t.Error("hangs without an error")
	}
}
