package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is one line of go test -json.
type event struct {
	Action     string
	Package    string
	Test       string
	Output     string
	ImportPath string
}

// outcome is how one test ended.
type outcome struct{ pkg, test, result string }

// results is everything that a stream of events said.
type results struct {
	outcomes                []outcome
	passed, failed, skipped int      // tests and subtests
	broken                  []string // packages that failed without a test failing
}

// readRun reads events until the end of in and prints the plain run to out.
func readRun(in io.Reader, out io.Writer) (*results, error) {
	r := &results{}
	output := map[string][]string{}
	failedIn := map[string]bool{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				// Not an event: what the go command itself has to say.
				fmt.Fprint(out, string(line))
			} else {
				r.take(e, out, output, failedIn)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	// Tests that were begun and never ended: their process died, and this is what they had said.
	var unended []string
	for key := range output {
		unended = append(unended, key)
	}
	slices.Sort(unended)
	for _, key := range unended {
		fmt.Fprintf(out, "--- DIED: %s\n%s", strings.ReplaceAll(key, "\t", " "), strings.Join(output[key], ""))
		r.failed++
	}
	slices.Sort(r.broken)
	return r, nil
}

func (r *results) take(e event, out io.Writer, output map[string][]string, failedIn map[string]bool) {
	key := e.Package + "\t" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "output":
		if e.Test == "" {
			// Package lines: "ok …", "FAIL …", "? … [no test files]", panics outside of tests.
			if s := strings.TrimSpace(e.Output); s != "PASS" && !strings.HasPrefix(s, "-test.shuffle") {
				fmt.Fprint(out, e.Output)
			}
			return
		}
		output[key] = append(output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			if e.Action == "fail" && !failedIn[e.Package] {
				r.broken = append(r.broken, e.Package)
			}
			return
		}
		r.outcomes = append(r.outcomes, outcome{e.Package, e.Test, e.Action})
		switch e.Action {
		case "pass":
			r.passed++
		case "skip":
			r.skipped++
		case "fail":
			r.failed++
			failedIn[e.Package] = true
			for _, l := range output[key] {
				if !strings.HasPrefix(l, "=== ") {
					fmt.Fprint(out, l)
				}
			}
		}
		delete(output, key)
	}
}

// unexcused returns the tests that were skipped. Seeds that a fuzz target passes over are none of them.
func (r *results) unexcused() (names []string) {
	for _, o := range r.outcomes {
		if o.result == "skip" && !strings.HasPrefix(o.test, "Fuzz") {
			names = append(names, o.pkg+" "+o.test)
		}
	}
	slices.Sort(names)
	return names
}

// unknown returns the tests that bear an id which no case has.
func (r *results) unknown(cases []row) (names []string) {
	known := map[string]bool{}
	for _, c := range cases {
		known[c.id] = true
	}
	for _, o := range r.outcomes {
		_, hyphened := ids(o.test)
		for _, id := range hyphened {
			if !known[id] {
				names = append(names, id+" in "+o.pkg+" "+o.test)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
