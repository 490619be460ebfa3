// Command conformance turns a run of `go test -json` into docs/conformance.md: every numbered case of cases.tsv with
// the tests that show it.
//
// A test shows a case by bearing its id in its name: "S-121" in a subtest's name, TestS121… as a function; one name may
// bear several. Nothing is marked by hand. The page holds no times, no machine and no counts that depend on either, so
// that two runs of the same sources write the same octets.
//
// While it reads, it prints what plain `go test` would have printed: the output of what failed, a line a package, and
// a closing line "N passed, N failed, N skipped". Its exit status is 1 when a test failed or the page on disk is not
// the page that this run gives, and 2 when it could not do its work.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"io"
	"os"
)

//go:embed cases.tsv
var casesTSV string

func main() {
	page := flag.String("page", "docs/conformance.md", "the page to compare or write")
	update := flag.Bool("update", false, "write the page instead of comparing it")
	strict := flag.Bool("strict", false, "a skipped test is a failure")
	flag.Parse()
	code, err := run(os.Stdin, os.Stdout, *page, *update, *strict)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

// run reads test events from in, prints the plain run to out, and compares or writes the page.
func run(in io.Reader, out io.Writer, page string, update, strict bool) (code int, err error) {
	cases, err := parseCases(casesTSV)
	if err != nil {
		return 0, fmt.Errorf("read cases: %w", err)
	}
	r, err := readRun(in, out)
	if err != nil {
		return 0, fmt.Errorf("read test events: %w", err)
	}
	if r.failed > 0 || len(r.broken) > 0 {
		code = 1
	}
	for _, p := range r.broken {
		fmt.Fprintln(out, "FAIL\t"+p)
	}
	if strict {
		for _, s := range r.unexcused() {
			fmt.Fprintln(out, "a test that did not run counts as failed here:", s)
			code = 1
		}
	}
	unknown := r.unknown(cases)
	for _, u := range unknown {
		fmt.Fprintln(out, "names a case that does not exist:", u)
		code = 1
	}
	text := report(cases, r)
	if update {
		if err := os.WriteFile(page, text, 0o644); err != nil {
			return 0, fmt.Errorf("write page: %w", err)
		}
	} else if old, err := os.ReadFile(page); err != nil || !bytes.Equal(old, text) {
		fmt.Fprintf(out, "%s is not what this run gives: run scripts/test -update and commit it\n%s", page, difference(old, text))
		code = 1
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return code, nil
}

// difference shows the first lines in which two pages differ.
func difference(old, now []byte) string {
	var b bytes.Buffer
	a, c := bytes.Split(old, []byte("\n")), bytes.Split(now, []byte("\n"))
	have := map[string]bool{}
	for _, l := range a {
		have[string(l)] = true
	}
	shown := 0
	for _, l := range c {
		if have[string(l)] {
			continue
		}
		if shown++; shown > 20 {
			b.WriteString("  …\n")
			break
		}
		fmt.Fprintf(&b, "  + %s\n", l)
	}
	return b.String()
}
