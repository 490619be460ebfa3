package arch

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// Standards is the list in which every RFC that the sources cite must stand.
const Standards = "docs/standards.md"

// banned returns what must not stand in any file of the project: where and with what it was written is nobody's
// business and of no use elsewhere. The words are put together here so that this file does not hold them.
func banned() *regexp.Regexp {
	words := []string{"/wo" + "rk/", `\bsha` + "red/", "go" + `lang\.org/proxy`, "proxy" + `\.golang\.org`,
		"clau" + "de", "anthro" + "pic", "copi" + `lot\b`, "chat" + "gpt", "TO" + "DO", "FIX" + "ME"}
	return regexp.MustCompile(`(?i:` + strings.Join(words[:len(words)-2], "|") + `)|\b(?:` + strings.Join(words[len(words)-2:], "|") + `)\b`)
}

// read reports whether a file is prose or source that people read.
func read(name string) bool {
	switch path.Ext(name) {
	case ".go", ".md", ".sh", ".service", ".ini", ".txtar", ".dlg", ".tsv", ".nft", "":
		return true
	}
	return false
}

// prose complains about words, and about RFCs that are cited and not listed.
func prose(root fs.FS) (bad []Complaint, err error) {
	cite := regexp.MustCompile(`RFC[ -]?([1-9][0-9]{2,4})\b`)
	words := banned()
	listed := map[string]bool{}
	list, err := fs.ReadFile(root, Standards)
	if err != nil {
		return nil, fmt.Errorf("read list of standards: %w", err)
	}
	for _, m := range cite.FindAllStringSubmatch(string(list), -1) {
		listed[m[1]] = true
	}
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == ".git" || name == "bin" || name == "testdata" || d.Name() == "fuzz" || d.Name() == "corpus" {
				return fs.SkipDir
			}
			return nil
		}
		if !read(name) || !d.Type().IsRegular() {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return fmt.Errorf("read text: %w", err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if w := words.FindString(line); w != "" {
				bad = append(bad, Complaint{name, i + 1, fmt.Sprintf("says %q", w)})
			}
			for _, m := range cite.FindAllStringSubmatch(line, -1) {
				if !listed[m[1]] {
					bad = append(bad, Complaint{name, i + 1, "cites RFC " + m[1] + ", which " + Standards + " does not list"})
				}
			}
		}
		return nil
	})
	return bad, err
}
