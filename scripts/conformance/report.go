package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// shownTests is how many tests of a case the page names before it only counts them.
const shownTests = 4

// proof is what a run says about one case.
type proof struct {
	state string   // passed, failed, not covered
	tests []string // "package Test", sorted
}

// prove collects the tests of each case.
func prove(cases []row, r *results) map[string]proof {
	tests := map[string][]string{}
	failed := map[string]bool{}
	for _, o := range r.outcomes {
		if o.result == "skip" {
			continue
		}
		plain, hyphened := ids(o.test)
		for _, id := range append(plain, hyphened...) {
			pkg := strings.TrimPrefix(o.pkg, "mailweir/")
			tests[id] = append(tests[id], pkg+" "+bearer(o.test, id))
			failed[id] = failed[id] || o.result == "fail"
		}
	}
	out := map[string]proof{}
	for _, c := range cases {
		p := proof{state: "not covered", tests: tests[c.id]}
		slices.Sort(p.tests)
		p.tests = slices.Compact(p.tests)
		switch {
		case failed[c.id]:
			p.state = "failed"
		case len(p.tests) > 0:
			p.state = "passed"
		}
		out[c.id] = p
	}
	return out
}

// report writes the page.
func report(cases []row, r *results) []byte {
	proofs := prove(cases, r)
	var b bytes.Buffer
	b.WriteString(`# Conformance

Written by ` + "`scripts/test -update`" + ` from a run of all tests; do not edit. Each numbered case is shown by the tests that
bear its id in their names; a case without one is not covered, whatever the code may do. Priority 1 comes before any
user's traffic, 2 and 3 later. In the titles C is the client, S the server, G the gateway.

`)
	summary(&b, cases, proofs)
	protocol := ""
	for _, c := range cases {
		if c.protocol != protocol {
			protocol = c.protocol
			fmt.Fprintf(&b, "\n## %s\n\n| case | priority | state | what | tests |\n|---|---|---|---|---|\n", heading(protocol))
		}
		p := proofs[c.id]
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.id, c.priority, p.state, c.title, cell(p.tests))
	}
	return b.Bytes()
}

// summary counts cases by protocol, those of priority 1 apart.
func summary(b *bytes.Buffer, cases []row, proofs map[string]proof) {
	type count struct{ all, passed, failed, first, firstPassed int }
	counts := map[string]*count{}
	var order []string
	total := &count{}
	for _, c := range cases {
		if counts[c.protocol] == nil {
			counts[c.protocol] = &count{}
			order = append(order, c.protocol)
		}
		for _, n := range []*count{counts[c.protocol], total} {
			n.all++
			switch proofs[c.id].state {
			case "passed":
				n.passed++
			case "failed":
				n.failed++
			}
			if c.priority == "1" {
				n.first++
				if proofs[c.id].state == "passed" {
					n.firstPassed++
				}
			}
		}
	}
	b.WriteString("| | cases | passed | failed | not covered | of priority 1 | passed |\n|---|--:|--:|--:|--:|--:|--:|\n")
	line := func(name string, n *count) {
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d | %d |\n", name, n.all, n.passed, n.failed, n.all-n.passed-n.failed, n.first, n.firstPassed)
	}
	for _, p := range order {
		line(heading(p), counts[p])
	}
	line("together", total)
}

func heading(protocol string) string {
	switch protocol {
	case "all":
		return "Every protocol"
	case "faults":
		return "Faults"
	}
	return protocol
}

// cell names the first tests and counts the rest.
func cell(tests []string) string {
	var names []string
	for i, t := range tests {
		if i == shownTests && len(tests) > shownTests+1 {
			names = append(names, fmt.Sprintf("and %d more", len(tests)-shownTests))
			break
		}
		names = append(names, "`"+strings.NewReplacer("|", "/", "`", "'").Replace(t)+"`")
	}
	return strings.Join(names, ", ")
}
