package config

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// Op is what an edit does.
type Op string

// The edits that cfset makes.
const (
	Set    Op = "set"    // the parameter has this value, and no other
	Add    Op = "add"    // one more member of a list
	Remove Op = "remove" // one member of a list less
	Reset  Op = "reset"  // back to the default: its lines are deleted
)

// Edit is one change of one parameter.
type Edit struct {
	Param string `json:"param"` // "Section.Key", whatever the case
	Op    Op     `json:"op"`
	Value string `json:"value,omitempty"`
}

// Join makes one value of the words of a command line: they are joined by a blank, typographic quotes and blanks
// that a terminal or a text processor put there become the plain ones.
func Join(words []string) string {
	return strings.TrimSpace(strings.NewReplacer(
		"“", `"`, "”", `"`, "„", `"`, "«", `"`, "»", `"`, "″", `"`,
		"‘", "'", "’", "'", "‚", "'",
		"\u00a0", " ", "\u202f", " ", "\u2009", " ",
	).Replace(strings.Join(words, " ")))
}

// Apply makes an edit and returns the file that results, read and checked; f stays as it is.
func (t *Table) Apply(f *File, e Edit) (*Loaded, error) {
	p, err := t.Find(e.Param)
	if err != nil {
		return nil, err
	}
	words := []string{e.Value}
	if p.List {
		words = splitList(e.Value)
	} else if w, ok := unquote(e.Value); ok {
		words = []string{w}
	}
	if e.Op != Reset && e.Op != Remove {
		if err := p.check(t.typ, words); err != nil {
			return nil, Problem{Param: p.Name(), Text: err.Error()}
		}
	}
	if (e.Op == Add || e.Op == Remove) && !p.List {
		return nil, Problem{Param: p.Name(), Text: "takes one value and is not a list; set it without -a and -e"}
	}
	if (e.Op == Add || e.Op == Remove) && len(words) == 0 {
		return nil, Problem{Param: p.Name(), Text: "a value is missing"}
	}
	var data []byte
	switch e.Op {
	case Set:
		data = f.set(p, words)
	case Add:
		data = f.add(p, words)
	case Remove:
		data, err = f.remove(t, p, words)
	case Reset:
		data = f.drop(f.of(p))
	default:
		err = fmt.Errorf("unknown edit %q", e.Op)
	}
	if err != nil {
		return nil, err
	}
	changed, err := ParseFile(f.Path, data)
	if err != nil {
		return nil, err
	}
	return t.Read(changed)
}

// of returns the entries of a parameter.
func (f *File) of(p *Param) []*entry {
	var list []*entry
	for i := range f.entries {
		e := &f.entries[i]
		if strings.EqualFold(e.section, p.Section) && strings.EqualFold(e.key, p.Key) {
			list = append(list, e)
		}
	}
	return list
}

// splice replaces data[from:to].
func (f *File) splice(from, to int, text string) []byte {
	return bytes.Join([][]byte{f.data[:from], []byte(text), f.data[to:]}, nil)
}

// drop deletes the lines of entries.
func (f *File) drop(entries []*entry) []byte {
	var out []byte
	at := 0
	for _, e := range entries {
		out = append(out, f.data[at:e.start]...)
		at = e.end
	}
	return append(out, f.data[at:]...)
}

// write returns words as a value in the file, in quotes if the value that was there before had them.
func write(p *Param, words []string, quoted bool) string {
	out := make([]string, len(words))
	for i, w := range words {
		switch {
		case quoted:
			out[i] = quote(w)
		case p.List:
			out[i] = quoteMember(w)
		default:
			out[i] = quoteValue(w)
		}
	}
	return strings.Join(out, ", ")
}

// set gives a parameter a value: in the place of the old one, whose further lines go, or on a new line.
func (f *File) set(p *Param, words []string) []byte {
	old := f.of(p)
	if len(old) == 0 {
		return f.insert(p, write(p, words, false))
	}
	first := old[0]
	text := write(p, words, f.members(first)[0].quoted)
	if first.from == first.to {
		text = f.spaced(first.from, text)
	}
	out := f.splice(first.from, first.to, text)
	rest := &File{data: out}
	shift := len(out) - len(f.data)
	for _, e := range old[1:] {
		rest.entries = append(rest.entries, entry{start: e.start + shift, end: e.end + shift})
	}
	entries := make([]*entry, len(rest.entries))
	for i := range entries {
		entries[i] = &rest.entries[i]
	}
	return rest.drop(entries)
}

// spaced puts the blanks around a value that goes where none is, between = and a comment.
func (f *File) spaced(at int, text string) string {
	if f.data[at-1] == '=' {
		text = " " + text
	}
	if at < len(f.data) && !strings.ContainsRune(" \t\r\n", rune(f.data[at])) {
		text += " "
	}
	return text
}

// nothing is the word by which a list of this kind says that it has no member, where there is one.
func (p *Param) nothing() string {
	if p.List && (p.Default == "Off" || p.Default == "None") {
		return p.Default
	}
	return ""
}

// defaults returns the members that a list has when nothing is written.
func (p *Param) defaults() []string {
	if p.nothing() != "" {
		return nil
	}
	return splitList(p.Default)
}

// add puts members at the end of a list: on its line when it has one line, on a new line when it has several.
func (f *File) add(p *Param, words []string) []byte {
	old := f.of(p)
	if len(old) == 0 {
		return f.insert(p, write(p, append(p.defaults(), words...), false))
	}
	if p.nothing() != "" && len(old) == 1 && strings.EqualFold(f.text(old[0]), p.nothing()) {
		return f.set(p, words) // the first member takes the place of Off
	}
	last := old[len(old)-1]
	members := f.members(last)
	text := write(p, words, members[len(members)-1].quoted)
	if len(old) > 1 {
		line := string(f.data[last.start:last.from]) + text + f.eol()
		return f.splice(last.end, last.end, f.missingEOL(last.end)+line)
	}
	if last.from < last.to {
		text = ", " + text
	} else {
		text = f.spaced(last.from, text)
	}
	return f.splice(last.to, last.to, text)
}

// remove takes members out of a list. What the list holds only by default is written down first.
func (f *File) remove(t *Table, p *Param, words []string) ([]byte, error) {
	work := f
	if len(f.of(p)) == 0 && len(p.defaults()) > 0 {
		filled, err := ParseFile(f.Path, f.insert(p, write(p, p.defaults(), false)))
		if err != nil {
			return nil, err
		}
		work = filled
	}
	for _, w := range words {
		data, ok := work.removeOne(p, w)
		if !ok {
			return nil, Problem{Param: p.Name(), Text: fmt.Sprintf("%q is not in the list%s", w, work.contents(p))}
		}
		next, err := ParseFile(f.Path, data)
		if err != nil {
			return nil, err
		}
		work = next
	}
	// A list that has a default must say that it is empty, or the default comes back.
	if len(p.defaults()) > 0 && len(work.of(p)) == 0 {
		return work.insert(p, `""`), nil
	}
	return work.data, nil
}

func (f *File) contents(p *Param) string {
	var all []string
	for _, e := range f.of(p) {
		for _, m := range f.members(e) {
			if m.text != "" {
				all = append(all, quoteMember(m.text))
			}
		}
	}
	if len(all) == 0 {
		return ", which is empty"
	}
	return "; it holds " + strings.Join(all, ", ")
}

func (f *File) removeOne(p *Param, word string) ([]byte, bool) {
	for _, e := range f.of(p) {
		members := f.members(e)
		for i, m := range members {
			if !strings.EqualFold(m.text, word) {
				continue
			}
			switch {
			case len(members) == 1:
				return f.splice(e.start, e.end, ""), true
			case i == 0:
				return f.splice(m.from, members[1].from, ""), true
			default:
				return f.splice(members[i-1].to, m.to, ""), true
			}
		}
	}
	return nil, false
}

// insert puts a new parameter behind the last one of its section, in the way that one is indented, or makes the
// section at the end of the file.
func (f *File) insert(p *Param, value string) []byte {
	at, indent := -1, ""
	for _, s := range f.sections {
		if strings.EqualFold(s.name, p.Section) {
			at = s.end
		}
	}
	for i := range f.entries {
		e := &f.entries[i]
		if at >= 0 && strings.EqualFold(e.section, p.Section) && e.end > at {
			at = e.end
			line := f.data[e.start:]
			indent = string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
		}
	}
	line := indent + p.Key + " = " + value + f.eol()
	if at >= 0 {
		return f.splice(at, at, f.missingEOL(at)+line)
	}
	end := len(f.data)
	gap := ""
	if len(bytes.TrimSpace(f.data)) > 0 {
		gap = f.missingEOL(end) + f.eol()
	}
	return f.splice(end, end, gap+"["+p.Section+"]"+f.eol()+line)
}

// eol is the line end of this file: that of its first line.
func (f *File) eol() string {
	if i := bytes.IndexByte(f.data, '\n'); i > 0 && f.data[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// missingEOL is the line end that the line before offset at lacks.
func (f *File) missingEOL(at int) string {
	if at == 0 || f.data[at-1] == '\n' {
		return ""
	}
	return f.eol()
}
