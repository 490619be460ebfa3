package arch

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages returns the Markdown pages of the project by name, relative to its root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	add := func(name string) {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	for _, name := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} {
		add(name)
	}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			add(filepath.ToSlash(strings.TrimPrefix(f, filepath.FromSlash("../../"))))
		}
	}
	return all
}

// fenced matches blocks of code, in which brackets are no links.
var fenced = regexp.MustCompile("(?s)\n```.*?\n```")

// TestDocsLinks follows every relative link, and every path that a page names as a file of this project.
func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	named := regexp.MustCompile("`((?:docs|scripts|cmd|proxy|inspect|divert|tlsunwrap|certs)/[A-Za-z0-9_./-]*[A-Za-z0-9_])/?`")
	for name, text := range pages(t) {
		prose := fenced.ReplaceAllString(text, "")
		for _, m := range link.FindAllStringSubmatch(prose, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join("../..", path.Join(path.Dir(name), m[1]))); err != nil {
				t.Errorf("%s: link to %s: there is no such page", name, m[1])
			}
		}
		for _, m := range named.FindAllStringSubmatch(prose, -1) {
			_, planned := floorOf(m[1])                   // a package may have its floor before it is there
			if planned || m[1] == "docs/conformance.md" { // made by scripts/test
				continue
			}
			if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
				t.Errorf("%s: names %s, which is not there", name, m[1])
			}
		}
	}
}

// TestDocsSettings finds parameters that a page names and that do not exist.
func TestDocsSettings(t *testing.T) {
	all := pages(t)
	table := all["docs/reference/settings.md"]
	known := map[string]bool{}
	section := ""
	for _, line := range strings.Split(table, "\n") {
		if s, ok := strings.CutPrefix(line, "## ["); ok {
			section = strings.TrimSuffix(s, "]")
		}
		if cell := strings.Split(line, "|"); section != "" && len(cell) > 2 {
			known[section+"."+strings.TrimSpace(cell[1])] = true
		}
	}
	if len(known) < 50 {
		t.Fatalf("docs/reference/settings.md lists %d parameters", len(known))
	}
	parameter := regexp.MustCompile(`\b(?:Root|LinuxFirewall|Smtp|MailD|MailQuarantine|ClamD)\.[A-Z][A-Za-z0-9]+\b`)
	for name, text := range all {
		for _, p := range parameter.FindAllString(text, -1) {
			if !known[p] && p != "LinuxFirewall.UnwarpSsl" { // an example of a wrong name
				t.Errorf("%s: names %s, which does not exist", name, p)
			}
		}
	}
}

// TestDocsGuideIsWhole finds pages of the guide that its table of contents does not list.
func TestDocsGuideIsWhole(t *testing.T) {
	all := pages(t)
	for name := range all {
		if dir, file := path.Split(name); dir == "docs/guide/" && file != "README.md" &&
			!strings.Contains(all["docs/guide/README.md"], "("+file+")") {
			t.Errorf("docs/guide/README.md does not list %s", file)
		}
	}
}

// TestDocsDependencies finds direct dependencies for which docs/design has no line of argument.
func TestDocsDependencies(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	page := pages(t)["docs/design/000-dependencies.md"]
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(mod), -1) {
		if !strings.Contains(page, "`"+m[1]+"`") {
			t.Errorf("docs/design/000-dependencies.md has no line for %s", m[1])
		}
	}
}
