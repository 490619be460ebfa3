package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// row is one numbered case.
type row struct{ id, priority, protocol, title string }

// parseCases reads the table: id, priority, protocol, title, separated by tabs.
func parseCases(text string) ([]row, error) {
	var rows []row
	seen := map[string]bool{}
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			return nil, fmt.Errorf("cases.tsv line %d has %d fields, wanted 4", i+1, len(f))
		}
		if seen[f[0]] {
			return nil, fmt.Errorf("cases.tsv line %d repeats %s", i+1, f[0])
		}
		seen[f[0]] = true
		rows = append(rows, row{f[0], f[1], f[2], f[3]})
	}
	return rows, nil
}

// ids returns the cases that a test name bears and whether each was written with its hyphen, in which form it cannot
// be meant otherwise.
func ids(test string) (plain, hyphened []string) {
	dashed := regexp.MustCompile(`(?:^|[^A-Za-z0-9])((?:[SPITMX]-\d{3})|(?:G-\d{2}))(?:$|[^0-9])`)
	packed := regexp.MustCompile(`([SPITMX])(\d{3})|(G)(\d{2})`)
	first, rest, _ := strings.Cut(test, "/")
	// Names overlap by their separators ("S-121 S-122"), so look again from behind each hit.
	for s := rest; ; {
		m := dashed.FindStringSubmatchIndex(s)
		if m == nil {
			break
		}
		hyphened = append(hyphened, s[m[2]:m[3]])
		s = s[m[3]:]
	}
	for _, m := range packed.FindAllStringSubmatchIndex(first, -1) {
		before, after := byte('_'), byte('_')
		if m[0] > 0 {
			before = first[m[0]-1]
		}
		if m[1] < len(first) {
			after = first[m[1]]
		}
		// TestSMTP250 and TestRSA2048 name no case.
		if before >= 'A' && before <= 'Z' || after >= '0' && after <= '9' {
			continue
		}
		id := first[m[0]:m[1]]
		plain = append(plain, id[:1]+"-"+id[1:])
	}
	slices.Sort(hyphened)
	slices.Sort(plain)
	return slices.Compact(plain), slices.Compact(hyphened)
}

// bearer returns the shortest leading part of a test name that bears the case: a subtest of a test that is named after
// a case belongs to that test.
func bearer(test, id string) string {
	parts := strings.Split(test, "/")
	for n := 1; n < len(parts); n++ {
		head := strings.Join(parts[:n], "/")
		plain, hyphened := ids(head)
		if slices.Contains(plain, id) || slices.Contains(hyphened, id) {
			return head
		}
	}
	return test
}
