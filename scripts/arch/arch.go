// Package arch reads the sources of mailweir and says where they leave the shape that docs/architecture.md fixes:
// which package may import which, who owns which library, and what a source file may hold.
//
// It parses files and never asks the go command, because a test that shells out is served a cached pass over a rule
// that has been broken since. [Check] is the whole contract: a file tree in, complaints out, in a stable order.
//
// Test files are held to the rules on words and size only: a test may import whatever proves its point.
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
)

// Module is the name of the module whose packages have floors.
const Module = "mailweir"

// file is one parsed source file.
type file struct {
	name    string // slash-separated, relative to the root
	dir     string
	test    bool
	lines   int
	imports []imported
	syntax  *ast.File
	set     *token.FileSet
}

type imported struct {
	path string
	line int
}

// own returns the directory of an import of this module, or false for anybody else's package.
func (i imported) own() (string, bool) {
	if i.path == Module {
		return ".", true
	}
	return strings.CutPrefix(i.path, Module+"/")
}

// Complaint is one place where the sources leave the rules.
type Complaint struct {
	File string
	Line int
	Text string
}

// String returns the complaint as file:line: text.
func (c Complaint) String() string { return fmt.Sprintf("%s:%d: %s", c.File, c.Line, c.Text) }

// Check reads every source file below root and returns what is wrong with them, sorted. An error means that the tree
// could not be read, not that it is bad.
func Check(root fs.FS) ([]Complaint, error) {
	files, err := load(root)
	if err != nil {
		return nil, err
	}
	var all []Complaint
	for _, f := range files {
		all = append(all, size(f)...)
		if f.test {
			continue
		}
		all = append(all, arrows(f)...)
		all = append(all, libraries(f)...)
		all = append(all, form(f)...)
	}
	all = append(all, comments(files)...)
	all = append(all, state(files)...)
	words, err := prose(root)
	if err != nil {
		return nil, err
	}
	all = append(all, words...)
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.File != b.File {
			return a.File < b.File
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Text < b.Text
	})
	return all, nil
}

// load parses every Go file that the go command would build.
func load(root fs.FS) ([]*file, error) {
	var files []*file
	set := token.NewFileSet()
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if hidden(name) || d.Name() == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" || hidden(name) {
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return fmt.Errorf("read source: %w", err)
		}
		syntax, err := parser.ParseFile(set, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse source: %w", err)
		}
		f := &file{name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), syntax: syntax, set: set}
		f.lines = strings.Count(string(src), "\n")
		for _, spec := range syntax.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("parse import: %w", err)
			}
			f.imports = append(f.imports, imported{p, set.Position(spec.Pos()).Line})
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// hidden reports whether the go command overlooks a name.
func hidden(name string) bool {
	base := path.Base(name)
	return base != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_"))
}

func (f *file) line(p token.Pos) int { return f.set.Position(p).Line }
