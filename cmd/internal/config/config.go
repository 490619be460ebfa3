// Package config is the configuration file of mailweir, and the one table of all its settings.
//
// [Settings] is a struct of the Settings of the other packages. [Table] is made of its tags by reflection, and is all
// there is to know about a parameter: it reads and checks values, answers cfshow, checks cfset, and writes the
// reference manual and the annotated example. [File] is the ini file itself, octet for octet; an [Edit] touches the
// octets of one value and leaves comments, order, quoting, indentation and line ends as the administrator wrote them.
//
// An unknown section, an unknown parameter and a value that cannot be read are errors, all reported together with
// file and line; nothing is ever ignored. A file is at most one megabyte of UTF-8 text.
package config

import (
	"errors"
	"io/fs"
	"reflect"
	"strings"
)

// DefaultPath is the configuration file unless --config names another.
const DefaultPath = "/etc/mailweir/mailweir.ini"

// Loaded is a configuration that was read and found good.
type Loaded struct {
	Settings Settings
	File     *File
	Table    *Table
}

// Load reads the file at path. Where there is none, every parameter has its default if path is [DefaultPath]; any
// other path was named by somebody and must exist.
func Load(path string) (*Loaded, error) {
	file, err := ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultPath {
		file, err = &File{Path: path}, nil
	}
	if err != nil {
		return nil, err
	}
	return NewTable().Read(file)
}

// Default returns the settings of an empty file.
func Default() Settings {
	l, err := NewTable().Read(&File{})
	if err != nil {
		panic("config: the defaults do not fit together: " + err.Error())
	}
	return l.Settings
}

// Read makes settings of a file. Its error is of type [Problems] and tells everything that is wrong.
func (t *Table) Read(f *File) (*Loaded, error) {
	l := &Loaded{File: f, Table: t}
	v := reflect.ValueOf(&l.Settings).Elem()
	var problems Problems
	for _, s := range f.sections {
		if _, err := t.Section(s.name); err != nil {
			problems = append(problems, Problem{File: f.Path, Line: s.line, Text: err.Error()})
		}
	}
	values := map[*Param]*given{}
	for i := range f.entries {
		e := &f.entries[i]
		if _, err := t.Section(e.section); err != nil {
			continue // said once, at its header
		}
		p, err := t.find(e.section, e.key)
		if err != nil {
			problems = append(problems, Problem{File: f.Path, Line: e.line, Text: err.Error()})
			continue
		}
		g := values[p]
		if g == nil {
			g = &given{line: e.line}
			values[p] = g
		} else if !p.List {
			problems = append(problems, Problem{f.Path, e.line, p.Name(),
				"set a second time; line " + itoa(g.line) + " sets it already, keep one of the two"})
			continue
		}
		g.words = append(g.words, f.words(p, e)...)
		if err := p.check(t.typ, f.words(p, e)); err != nil {
			problems = append(problems, Problem{f.Path, e.line, p.Name(), err.Error()})
			g.bad = true
		}
	}
	for i := range t.Params {
		p := &t.Params[i]
		words := []string{p.Default}
		g := values[p]
		if g != nil && g.bad {
			continue
		}
		if g != nil {
			words = g.words
		} else if p.List {
			words = splitList(p.Default)
		}
		if err := p.parse(words, v.FieldByIndex(p.index)); err != nil {
			problems = append(problems, Problem{f.Path, g.at(), p.Name(), err.Error()})
		}
	}
	if len(problems) == 0 {
		problems = t.together(f, v)
	}
	if err := problems.sorted(); err != nil {
		return nil, err
	}
	return l, nil
}

// given is what a file says about one parameter.
type given struct {
	line  int
	words []string
	bad   bool
}

func (g *given) at() int {
	if g == nil {
		return 0
	}
	return g.line
}

// words returns the values that one line gives to a parameter.
func (f *File) words(p *Param, e *entry) []string {
	if !p.List {
		return []string{f.text(e)}
	}
	var words []string
	for _, m := range f.members(e) {
		if m.text != "" {
			words = append(words, m.text)
		}
	}
	return words
}

// splitList splits a list as it is written in the file.
func splitList(text string) []string {
	f := &File{data: []byte(text)}
	var words []string
	for _, m := range f.members(&entry{from: 0, to: len(text)}) {
		if m.text != "" {
			words = append(words, m.text)
		}
	}
	return words
}

// check reads values into nowhere.
func (p *Param) check(typ reflect.Type, words []string) error {
	return p.parse(words, reflect.New(typ).Elem().FieldByIndex(p.index))
}

// together asks every part that has a Check method whether its settings fit together.
func (t *Table) together(f *File, v reflect.Value) Problems {
	var problems Problems
	var ask func(section string, v reflect.Value, when string)
	ask = func(section string, v reflect.Value, when string) {
		if when != "" && v.FieldByName(when).IsZero() {
			return // a part that is not in use
		}
		if c, ok := v.Addr().Interface().(interface{ Check() error }); ok {
			for _, err := range split(c.Check()) {
				problems = append(problems, t.blame(f, section, err))
			}
		}
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if _, isParam := field.Tag.Lookup("key"); !isParam && field.IsExported() && field.Type.Kind() == reflect.Struct {
				ask(section, v.Field(i), field.Tag.Get("when"))
			}
		}
	}
	for i := range v.NumField() {
		ask(v.Type().Field(i).Name, v.Field(i), v.Type().Field(i).Tag.Get("when"))
	}
	return problems
}

// split takes a joined error apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// blame finds the parameter and the line that an error of several settings names first.
func (t *Table) blame(f *File, section string, err error) Problem {
	pr := Problem{File: f.Path, Param: section, Text: err.Error()}
	for i := range t.Params {
		p := &t.Params[i]
		rest, ok := strings.CutPrefix(pr.Text, p.Key)
		if p.Section == section && ok && (strings.HasPrefix(rest, ": ") || strings.HasPrefix(rest, ` "`)) {
			pr.Param, pr.Text = p.Name(), strings.TrimPrefix(rest[1:], " ")
			for _, e := range f.of(p) {
				pr.Line = e.line
				break
			}
			return pr
		}
	}
	first := 1 << 30
	for i := range f.entries {
		e := &f.entries[i]
		if !strings.EqualFold(e.section, section) {
			continue
		}
		if at := strings.Index(strings.ToLower(pr.Text), strings.ToLower(e.key)); at >= 0 && at < first {
			first, pr.Line = at, e.line
		}
	}
	return pr
}

// Value returns a parameter's value as an administrator would write it, and whether it differs from the default.
func (l *Loaded) Value(p *Param) (text string, changed bool) {
	v := reflect.ValueOf(&l.Settings).Elem()
	text = p.show(v.FieldByIndex(p.index))
	return text, text != p.shownDefault(l.Table.typ)
}

// shownDefault is the default as Value would show it.
func (p *Param) shownDefault(typ reflect.Type) string {
	v := reflect.New(typ).Elem().FieldByIndex(p.index)
	words := []string{p.Default}
	if p.List {
		words = splitList(p.Default)
	}
	if err := p.parse(words, v); err != nil {
		panic("config: default of " + p.Name() + ": " + err.Error())
	}
	return p.show(v)
}

// RestartNeeded names the parameters that have just changed, differ from those of the start and take effect only at the
// next one.
func RestartNeeded(started, before, now *Settings) (names []string) {
	t := NewTable()
	for i := range t.Params {
		p := &t.Params[i]
		show := func(s *Settings) string { return p.show(reflect.ValueOf(s).Elem().FieldByIndex(p.index)) }
		if p.Restart && show(now) != show(started) && show(now) != show(before) {
			names = append(names, p.Name())
		}
	}
	return names
}
