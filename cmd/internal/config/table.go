package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Param is one parameter as its tags describe it.
type Param struct {
	Section string // "LinuxFirewall"
	Key     string // "UnwrapSsl"
	Default string // as an administrator would write it
	Doc     string
	Type    string   // the word shown for the kind of value: "Yes | No", "size", …
	Enum    []string // the only words allowed, when not empty
	Min     string
	Max     string
	None    bool // the word None is allowed
	List    bool // several values: commas on one line, or repeated lines
	Restart bool // a change takes effect at the next start only

	index  []int // of the field in Settings
	format string
	onOff  bool // a boolean that is shown as On/Off rather than Yes/No
}

// Name returns "Section.Key".
func (p *Param) Name() string { return p.Section + "." + p.Key }

// Table is every parameter there is, made from the tags of [Settings].
type Table struct {
	Params   []Param // in the order of the sections and of their fields
	Sections []string
	typ      reflect.Type
}

// NewTable makes the table. It panics when a tag is wrong, which a test of this package finds first.
func NewTable() *Table { return tableOf(reflect.TypeFor[Settings]()) }

func tableOf(typ reflect.Type) *Table {
	t := &Table{typ: typ}
	for i := range typ.NumField() {
		f := typ.Field(i)
		t.Sections = append(t.Sections, f.Name)
		t.walk(f.Name, f.Type, []int{i}, f.Tag.Get("restart") == "yes")
	}
	seen := map[string]bool{}
	for i := range t.Params {
		p := &t.Params[i]
		if name := strings.ToLower(p.Name()); seen[name] {
			panic("config: " + p.Name() + " is described twice")
		} else {
			seen[name] = true
		}
		if err := p.parse([]string{p.Default}, reflect.New(typ).Elem().FieldByIndex(p.index)); err != nil {
			panic("config: default of " + p.Name() + ": " + err.Error())
		}
	}
	return t
}

// walk adds the parameters of a struct: fields with a key tag are parameters, other exported structs are parts whose
// parameters stand in the same section.
func (t *Table) walk(section string, typ reflect.Type, index []int, restart bool) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := append(append([]int(nil), index...), i)
		key, ok := f.Tag.Lookup("key")
		if key == "-" {
			continue
		}
		if !ok {
			if f.Type.Kind() == reflect.Struct && f.IsExported() {
				t.walk(section, f.Type, at, restart || f.Tag.Get("restart") == "yes")
			}
			continue
		}
		p := Param{
			Section: section, Key: key, index: at,
			Default: f.Tag.Get("default"),
			Doc:     f.Tag.Get("doc"),
			Min:     f.Tag.Get("min"),
			Max:     f.Tag.Get("max"),
			None:    f.Tag.Get("none") == "yes" || f.Tag.Get("default") == "None",
			Restart: restart || f.Tag.Get("restart") == "yes",
			format:  f.Tag.Get("type"),
		}
		if e := f.Tag.Get("enum"); e != "" {
			p.Enum = strings.Split(e, "|")
		}
		if !isText(f.Type) && f.Type.Kind() == reflect.Slice {
			p.List = true
		}
		p.onOff = f.Type.Kind() == reflect.Bool && (p.Default == "On" || p.Default == "Off")
		p.Type = p.typeWord(f.Type)
		t.Params = append(t.Params, p)
	}
}

// typeWord says for people what may be written.
func (p *Param) typeWord(typ reflect.Type) string {
	var word string
	elem := typ
	if p.List {
		elem = typ.Elem()
	}
	switch {
	case len(p.Enum) > 0:
		word = strings.Join(p.Enum, " | ")
	case isText(elem):
		word = strings.ToLower(elem.Name())
		if p.format != "" {
			word = p.format
		}
	case elem.Kind() == reflect.Bool && p.onOff:
		word = "On | Off"
	case elem.Kind() == reflect.Bool:
		word = "Yes | No"
	case elem == durationType:
		word = "time"
	case p.format != "":
		word = p.format
	case elem.Kind() == reflect.String:
		word = "text"
	default:
		word = "number"
	}
	if p.List {
		word = "list of " + word
	}
	if p.None {
		word += " | None"
	}
	return word
}

// Find returns the parameter called name, "Section.Key", whatever the case of its letters. The error of an unknown
// name says which name was probably meant.
func (t *Table) Find(name string) (*Param, error) {
	section, key, ok := strings.Cut(name, ".")
	if !ok {
		return nil, fmt.Errorf("%q is not of the form Section.Parameter%s", name, t.meant("", name))
	}
	return t.find(section, key)
}

func (t *Table) find(section, key string) (*Param, error) {
	canonical, err := t.Section(section)
	if err != nil {
		return nil, err
	}
	for i := range t.Params {
		if p := &t.Params[i]; p.Section == canonical && strings.EqualFold(p.Key, key) {
			return p, nil
		}
	}
	hint := t.meant(canonical, key)
	if hint == "" {
		hint = "; mailweir cfshow " + canonical + " shows what there is"
	}
	return nil, fmt.Errorf("unknown parameter %s.%s%s", canonical, key, hint)
}

// Section returns the name of a section as it is spelt here.
func (t *Table) Section(name string) (string, error) {
	for _, s := range t.Sections {
		if strings.EqualFold(s, name) {
			return s, nil
		}
	}
	if s := nearest(name, t.Sections); s != "" {
		return "", fmt.Errorf("unknown section %q; did you mean %s?", name, s)
	}
	return "", fmt.Errorf("unknown section %q; the sections are %s", name, strings.Join(t.Sections, ", "))
}

// meant returns the hint "; did you mean …?" for an unknown parameter of a section, or nothing. A parameter of that
// very name in another section is the best guess there is.
func (t *Table) meant(section, key string) string {
	var here, all []string
	for i := range t.Params {
		p := &t.Params[i]
		if strings.EqualFold(p.Key, key) {
			return "; did you mean " + p.Name() + "?"
		}
		if p.Section == section {
			here = append(here, p.Key)
		}
		all = append(all, p.Key)
	}
	if k := nearest(key, here); k != "" {
		return "; did you mean " + section + "." + k + "?"
	}
	if k := nearest(key, all); k != "" {
		for i := range t.Params {
			if t.Params[i].Key == k {
				return "; did you mean " + t.Params[i].Name() + "?"
			}
		}
	}
	return ""
}

// nearest returns the candidate that is at most a third of its letters away from word, or "".
func nearest(word string, candidates []string) string {
	best, at := "", 1<<30
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < at {
			best, at = c, d
		}
	}
	if at <= max(1, len(best)/3) {
		return best
	}
	return ""
}

// distance is the number of letters to insert, delete, replace or swap with their neighbour to make b of a (optimal
// string alignment).
func distance(a, b string) int {
	if len(a) > 64 {
		a = a[:64] // a line of rubbish shall not cost quadratic time
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
