package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	for _, c := range []struct {
		name            string
		plain, hyphened []string
	}{
		{"TestS121", []string{"S-121"}, nil},
		{"TestS121AndG07", []string{"G-07", "S-121"}, nil},
		{"TestS121_S122", []string{"S-121", "S-122"}, nil},
		{"TestSMTP250", nil, nil},
		{"TestRSA2048", nil, nil},
		{"TestX/S-121_LF_dot_CRLF", nil, []string{"S-121"}},
		{"TestX/S-121_S-122,S-123", nil, []string{"S-121", "S-122", "S-123"}},
		{"TestX/S-121-S-122", nil, []string{"S-121", "S-122"}},
		{"TestX/G-01_clean/sub", nil, []string{"G-01"}},
		{"TestX/TLS-121", nil, nil},
		{"TestX/S-1210", nil, nil},
		{"TestX001Kill/after_dot", []string{"X-001"}, nil},
	} {
		plain, hyphened := ids(c.name)
		if !slices.Equal(plain, c.plain) || !slices.Equal(hyphened, c.hyphened) {
			t.Errorf("%s: %v %v, want %v %v", c.name, plain, hyphened, c.plain, c.hyphened)
		}
	}
}

func TestCasesTable(t *testing.T) {
	rows, err := parseCases(casesTSV)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		plain, hyphened := ids("Test/" + r.id)
		if len(plain) != 0 || !slices.Equal(hyphened, []string{r.id}) || !slices.Contains([]string{"1", "2", "3"}, r.priority) || r.title == "" {
			t.Errorf("bad row %+v", r)
		}
	}
	for _, bad := range []string{"S-001\t1\tSMTP", "S-001\t1\tSMTP\ta\nS-001\t1\tSMTP\tb"} {
		if _, err := parseCases(bad); err == nil {
			t.Errorf("table %q was accepted", bad)
		}
	}
}

// events is a run as go test -json prints it, without the fields that are not read.
func events(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		f := strings.Fields(l)
		b.WriteString(`{"Action":"` + f[0] + `","Package":"mailweir/` + f[1] + `"`)
		if len(f) > 2 {
			b.WriteString(`,"Test":"` + f[2] + `"`)
		}
		if len(f) > 3 {
			b.WriteString(`,"Output":"` + strings.Join(f[3:], " ") + `\n"`)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name   string
		events string
		strict bool
		code   int
		page   string // must stand in the page
		out    string // must stand in the output
	}{
		{"passed", events("pass proxy TestX/S-001_a", "pass proxy TestX", "pass proxy"), true, 0, "| S-001 | 1 | passed | Banner | `proxy TestX/S-001_a` |", "2 passed, 0 failed, 0 skipped\n"},
		{"one of two failed", events("output proxy TestX/S-001_a why: it broke", "pass divert TestS001", "fail proxy TestX/S-001_a", "fail proxy"), false, 1, "| S-001 | 1 | failed |", "why: it broke"},
		{"not covered", events("pass proxy TestX", "pass proxy"), false, 0, "| S-001 | 1 | not covered | Banner |  |", "1 passed"},
		{"skipped is not covered", events("skip proxy TestX/S-001", "pass proxy"), false, 0, "| S-001 | 1 | not covered |", "1 skipped"},
		{"skipped is failed when strict", events("skip proxy TestX/S-001", "pass proxy"), true, 1, "", "counts as failed here: mailweir/proxy TestX/S-001"},
		{"passed-over seed", events("skip proxy FuzzX/seed#0", "pass proxy"), true, 0, "", ""},
		{"package that does not build", events("fail proxy"), false, 1, "", "FAIL\tmailweir/proxy"},
		{"died", events("output proxy TestX=panic TestX gone", "output proxy TestX last words", "fail proxy"), false, 1, "", "last words"},
		{"unknown case", events("pass proxy TestX/S-999", "pass proxy"), false, 1, "", "does not exist: S-999"},
		{"subtests belong to their test", events("pass p TestS001/a", "pass p TestS001/b", "pass p TestS001", "pass p"), false, 0, "| Banner | `p TestS001` |", ""},
		{"text between events", "go: warning\n" + events("pass p TestX", "pass p"), false, 0, "", "go: warning"},
	} {
		t.Run(c.name, func(t *testing.T) {
			page := filepath.Join(t.TempDir(), "page.md")
			var out bytes.Buffer
			code, err := run(strings.NewReader(c.events), &out, page, true, c.strict)
			if err != nil || code != c.code {
				t.Fatalf("code %d, err %v, want %d; output:\n%s", code, err, c.code, out.String())
			}
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), c.page) {
				t.Errorf("page lacks %q", c.page)
			}
			if !strings.Contains(out.String(), c.out) {
				t.Errorf("output lacks %q:\n%s", c.out, out.String())
			}
			// Comparing with the page just written must find no difference, and another page must be told.
			if code, _ := run(strings.NewReader(c.events), &out, page, false, c.strict); code != c.code {
				t.Errorf("comparing: code %d, want %d", code, c.code)
			}
			if err := os.WriteFile(page, append(text, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
			out.Reset()
			if code, _ := run(strings.NewReader(c.events), &out, page, false, c.strict); code != 1 || !strings.Contains(out.String(), "is not what this run gives") {
				t.Errorf("a changed page gave code %d:\n%s", code, out.String())
			}
		})
	}
}

func TestPageDoesNotDependOnOrder(t *testing.T) {
	rows, err := parseCases(casesTSV)
	if err != nil {
		t.Fatal(err)
	}
	page := func(lines ...string) string {
		r, err := readRun(strings.NewReader(events(lines...)), &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		return string(report(rows, r))
	}
	a := page("pass a TestX/S-001_1", "pass b TestX/S-001_2", "pass c TestX/S-002", "pass c")
	b := page("pass c TestX/S-002", "pass c", "pass b TestX/S-001_2", "pass a TestX/S-001_1")
	if a != b {
		t.Error("the page depends on the order of the run")
	}
}
