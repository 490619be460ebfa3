package arch

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func TestSources(t *testing.T) {
	bad, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range bad {
		t.Error(c)
	}
}

// TestBrokenRulesAreSeen breaks each rule in a tree of two or three files.
func TestBrokenRulesAreSeen(t *testing.T) {
	long := strings.Repeat("\n", maxFileLines+1)
	for _, c := range []struct {
		name, file, text, want string
	}{
		{"nothing wrong", "proxy/smtp/smtp.go", "// Package smtp x.\npackage smtp\nimport _ \"mailweir/inspect\"\n", ""},
		{"higher floor", "proxy/proxy.go", "// Package proxy x.\npackage proxy\nimport _ \"mailweir/proxy/smtp\"\n", "lower floors only"},
		{"same floor", "certs/certs.go", "// Package certs x.\npackage certs\nimport _ \"mailweir/divert\"\n", "lower floors only"},
		{"no floor", "proxy/ftp/ftp.go", "// Package ftp x.\npackage ftp\n", "has no floor"},
		{"imports no floor", "proxy/smtp/smtp.go", "// Package smtp x.\npackage smtp\nimport _ \"mailweir/util\"\n", "which has no floor"},
		{"door to core", "proxy/smtp/smtp.go", "// Package smtp x.\npackage smtp\nimport _ \"mailweir/inspect/maild\"\n", "a door knows the core by"},
		{"door to divert", "proxy/smtp/smtp.go", "// Package smtp x.\npackage smtp\nimport _ \"mailweir/divert\"\n", "doors take connections"},
		{"core to certs", "inspect/spool/spool.go", "// Package spool x.\npackage spool\nimport _ \"mailweir/certs\"\n", "the core does not know"},
		{"unwrap to certs", "tlsunwrap/t.go", "// Package tlsunwrap x.\npackage tlsunwrap\nimport _ \"mailweir/certs\"\n", "takes a Minter"},
		{"wire with sockets", "proxy/smtpwire/w.go", "// Package smtpwire x.\npackage smtpwire\nimport _ \"net\"\n", "neither opens nor logs"},
		{"owned library", "proxy/proxy.go", "// Package proxy x.\npackage proxy\nimport _ \"github.com/google/nftables/expr\"\n", "belongs to divert"},
		{"test helper in code", "proxy/smtp/s.go", "// Package smtp x.\npackage smtp\nimport _ \"mailweir/proxy/proxytest\"\n", "outside of a test"},
		{"tests are free", "proxy/smtp/s_test.go", "package smtp\nimport _ \"mailweir/inspect/maild\"\n", ""},
		{"no comment", "certs/certs.go", "package certs\n", "0 package comments"},
		{"init", "certs/certs.go", "// Package certs x.\npackage certs\nfunc init() {}\n", "init function"},
		{"goroutine", "certs/certs.go", "// Package certs x.\npackage certs\nfunc f() { go f() }\n", "starts a goroutine"},
		{"mutex", "certs/certs.go", "// Package certs x.\npackage certs\nimport \"sync\"\nvar mu sync.Mutex\n", "is state"},
		{"changed variable", "certs/certs.go", "// Package certs x.\npackage certs\nvar n int\nfunc f() { n++ }\n", "is changed by"},
		{"changed map", "certs/certs.go", "// Package certs x.\npackage certs\nvar m = map[int]int{}\nfunc f() { m[1] = 2 }\n", "is changed by"},
		{"local of the same name", "certs/certs.go", "// Package certs x.\npackage certs\nvar n int\nfunc f(n int) { n++ }\n", ""},
		{"long file", "certs/certs.go", "// Package certs x.\npackage certs\n" + long, "lines, more than"},
		{"long function", "certs/certs.go", "// Package certs x.\npackage certs\nfunc f() {\n" + long[:maxFuncLines] + "}\n", "function f has"},
		{"RFC not listed", "docs/x.md", "see RFC " + "9999\n", "does not list"},
		{"RFC listed", "docs/x.md", "see RFC 5321\n", ""},
		{"words", "docs/x.md", "see /wo" + "rk/main\n", "says"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := fstest.MapFS{
				"docs/standards.md": {Data: []byte("| RFC 5321 |\n")},
				c.file:              {Data: []byte(c.text)},
			}
			bad, err := Check(tree)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				if len(bad) > 0 {
					t.Fatalf("complaints: %v", bad)
				}
				return
			}
			for _, b := range bad {
				if strings.Contains(b.String(), c.want) {
					return
				}
			}
			t.Fatalf("got %v, want a complaint with %q", bad, c.want)
		})
	}
}

func TestTwoPackageComments(t *testing.T) {
	bad, err := Check(fstest.MapFS{
		"docs/standards.md": {Data: []byte("")},
		"certs/a.go":        {Data: []byte("// Package certs x.\npackage certs\n")},
		"certs/b.go":        {Data: []byte("// Package certs y.\npackage certs\n")},
	})
	if err != nil || len(bad) != 1 || !strings.Contains(bad[0].Text, "2 package comments") {
		t.Fatalf("got %v, %v", bad, err)
	}
}
