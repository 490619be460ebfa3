package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// things is a settings struct of its own, so that these tests do not depend on what parameters there are.
type things struct {
	Root struct {
		Name  string        `key:"Name" default:"x" doc:"A name."`
		Limit int           `key:"Limit" default:"8" min:"1" max:"10" doc:"A limit."`
		Wait  time.Duration `key:"Wait" default:"30s" min:"1s" none:"yes" doc:"A time."`
	}
	Mail struct {
		Inspect bool     `key:"Inspect" default:"On" doc:"Inspect."`
		Hosts   []string `key:"Hosts" doc:"Hosts."`
		Langs   []string `key:"Langs" default:"en, de" doc:"Languages."`
		Ports   []string `key:"Ports" default:"Off" doc:"Ports."`
	}
}

func edited(t *testing.T, file string, e Edit) (string, error) {
	t.Helper()
	f, err := ParseFile("f.ini", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	p, err := thingsTable().Find(e.Param)
	if err != nil {
		return "", err
	}
	words := []string{e.Value}
	if p.List {
		words = splitList(e.Value)
	}
	switch e.Op {
	case Set:
		return string(f.set(p, words)), nil
	case Add:
		return string(f.add(p, words)), nil
	case Remove:
		out, err := f.remove(thingsTable(), p, words)
		return string(out), err
	}
	return string(f.drop(f.of(p))), nil
}

func TestEdit(t *testing.T) {
	for _, c := range []struct {
		name, file string
		edit       Edit
		want       string
	}{
		{"new file", "", Edit{"Root.Name", Set, "a"}, "[Root]\nName = a\n"},
		{"new section", "# top\n[Mail]\nInspect=On", Edit{"Root.Name", Set, "a"}, "# top\n[Mail]\nInspect=On\n\n[Root]\nName = a\n"},
		{"new parameter, indented like its brother", "[Root]\n\tLimit=3\n\n# next\n[Mail]\n", Edit{"root.name", Set, "a"},
			"[Root]\n\tLimit=3\n\tName = a\n\n# next\n[Mail]\n"},
		{"new parameter under a bare header", "[Root] ; r\n\n[Mail]\n", Edit{"Root.Name", Set, "a"}, "[Root] ; r\nName = a\n\n[Mail]\n"},
		{"CRLF", "[Root]\r\nLimit = 3\r\n", Edit{"Root.Name", Set, "a"}, "[Root]\r\nLimit = 3\r\nName = a\r\n"},
		{"no end of line", "[Root]\nLimit = 3", Edit{"Root.Name", Set, "a"}, "[Root]\nLimit = 3\nName = a\n"},
		{"only the value changes", "[root]\n  name\t=  old   # why\r\n", Edit{"Root.Name", Set, "new"}, "[root]\n  name\t=  new   # why\r\n"},
		{"quotes stay", "[Root]\nName = \"old\" ; why\n", Edit{"Root.Name", Set, "new"}, "[Root]\nName = \"new\" ; why\n"},
		{"quotes come where needed", "[Root]\nName = old\n", Edit{"Root.Name", Set, "a # b"}, "[Root]\nName = \"a # b\"\n"},
		{"a trailing backslash is quoted", "[Root]\nName = old\n", Edit{"Root.Name", Set, `a\`}, "[Root]\nName = \"a\\\\\"\n"},
		{"an empty value is filled", "[Root]\nName =\nLimit=3\n", Edit{"Root.Name", Set, "a"}, "[Root]\nName = a\nLimit=3\n"},
		{"an empty value before a comment", "[Root]\nName = # none\n", Edit{"Root.Name", Set, "a"}, "[Root]\nName = a # none\n"},
		{"BOM", "\ufeff[Root]\nName=a\n", Edit{"Root.Name", Set, "b"}, "\ufeff[Root]\nName=b\n"},
		{"continued value", "[Root]\nName = one \\\n   two # c\nLimit=3\n", Edit{"Root.Name", Set, "three"}, "[Root]\nName = three # c\nLimit=3\n"},
		{"second part of a section", "[Root]\nLimit=3\n[Mail]\n[Root]\nName=a\n", Edit{"Root.Name", Set, "b"}, "[Root]\nLimit=3\n[Mail]\n[Root]\nName=b\n"},
		{"reset", "[Root]\n# about it\nName=a # b\nLimit=3\n", Edit{"Root.Name", Reset, ""}, "[Root]\n# about it\nLimit=3\n"},
		{"reset of what is not there", "[Root]\n", Edit{"Root.Name", Reset, ""}, "[Root]\n"},

		{"add to nothing", "[Mail]\n", Edit{"Mail.Hosts", Add, "a"}, "[Mail]\nHosts = a\n"},
		{"add to the default", "[Mail]\n", Edit{"Mail.Langs", Add, "fr"}, "[Mail]\nLangs = en, de, fr\n"},
		{"add to one line", "[Mail]\nHosts = a, b # c\n", Edit{"Mail.Hosts", Add, "d"}, "[Mail]\nHosts = a, b, d # c\n"},
		{"add in quotes", "[Mail]\nHosts = \"a\",\"b\"\n", Edit{"Mail.Hosts", Add, "d"}, "[Mail]\nHosts = \"a\",\"b\", \"d\"\n"},
		{"add a line to lines", "[Mail]\n Hosts = a # 1\n Hosts = b # 2\nInspect=On\n", Edit{"Mail.Hosts", Add, "d"},
			"[Mail]\n Hosts = a # 1\n Hosts = b # 2\n Hosts = d\nInspect=On\n"},
		{"add to an empty list", "[Mail]\nHosts =\n", Edit{"Mail.Hosts", Add, "d"}, "[Mail]\nHosts = d\n"},
		{"add two", "[Mail]\nHosts = a\n", Edit{"Mail.Hosts", Add, "b, c"}, "[Mail]\nHosts = a, b, c\n"},
		{"add what holds a comma", "[Mail]\nHosts = a\n", Edit{"Mail.Hosts", Add, `"b,c"`}, "[Mail]\nHosts = a, \"b,c\"\n"},
		{"parentheses hold commas", "[Mail]\nHosts = Auto(p:1,2)\n", Edit{"Mail.Hosts", Add, "Auto(p:3,4)"}, "[Mail]\nHosts = Auto(p:1,2), Auto(p:3,4)\n"},

		{"add to nothing that is called Off", "[Mail]\n", Edit{"Mail.Ports", Add, "P(1,2)"}, "[Mail]\nPorts = P(1,2)\n"},
		{"add to Off", "[Mail]\nPorts = off # c\n", Edit{"Mail.Ports", Add, "P(1,2)"}, "[Mail]\nPorts = P(1,2) # c\n"},
		{"remove down to Off", "[Mail]\nPorts = P(1,2)\n", Edit{"Mail.Ports", Remove, "P(1,2)"}, "[Mail]\n"},

		{"remove the first", "[Mail]\nHosts = a, b ,c # x\n", Edit{"Mail.Hosts", Remove, "A"}, "[Mail]\nHosts = b ,c # x\n"},
		{"remove the middle", "[Mail]\nHosts = a, b ,c # x\n", Edit{"Mail.Hosts", Remove, "b"}, "[Mail]\nHosts = a ,c # x\n"},
		{"remove the last", "[Mail]\nHosts = \"a\", \"b\"\n", Edit{"Mail.Hosts", Remove, "b"}, "[Mail]\nHosts = \"a\"\n"},
		{"remove a line", "[Mail]\nHosts = a\nHosts = b\n", Edit{"Mail.Hosts", Remove, "a"}, "[Mail]\nHosts = b\n"},
		{"remove all there is", "[Mail]\nHosts = a\n", Edit{"Mail.Hosts", Remove, "a"}, "[Mail]\n"},
		{"remove from the default", "[Mail]\n", Edit{"Mail.Langs", Remove, "de"}, "[Mail]\nLangs = en\n"},
		{"remove all of a default", "[Mail]\nLangs = en\n", Edit{"Mail.Langs", Remove, "en"}, "[Mail]\nLangs = \"\"\n"},
		{"set a list on several lines", "[Mail]\nHosts = a # 1\n# c\nHosts = b\nInspect=On\n", Edit{"Mail.Hosts", Set, "d, e"},
			"[Mail]\nHosts = d, e # 1\n# c\nInspect=On\n"},
		{"continued list", "[Mail]\nHosts = a, \\\n  b, \\\n  c\n", Edit{"Mail.Hosts", Remove, "b"}, "[Mail]\nHosts = a, \\\n  c\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := edited(t, c.file, c.edit)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if _, err := ParseFile("f.ini", []byte(got)); err != nil {
				t.Errorf("cannot be read again: %v", err)
			}
		})
	}
}

func TestRemoveWhatIsNotThere(t *testing.T) {
	_, err := edited(t, "[Mail]\nHosts = a, b\n", Edit{"Mail.Hosts", Remove, "c"})
	if err == nil || err.Error() != `Mail.Hosts: "c" is not in the list; it holds a, b` {
		t.Errorf("got %v", err)
	}
	_, err = edited(t, "", Edit{"Mail.Hosts", Remove, "c"})
	if err == nil || err.Error() != `Mail.Hosts: "c" is not in the list, which is empty` {
		t.Errorf("got %v", err)
	}
}

func TestMembers(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{`a, b`, "a|b"},
		{`"ru", "de"`, "ru|de"},
		{`"a, b", c`, "a, b|c"},
		{`Auto(interface:eth0 protected:25,110), Off`, "Auto(interface:eth0 protected:25,110)|Off"},
		{`"a\"b\\c"`, `a"b\c`},
		{`a # comment`, "a"},
		{`a#b`, "a#b"},
		{`Plain(a # b)`, "Plain(a # b)"},
		{`a ; b`, "a"},
		{"a, \\\n\t b, \\\r\n c", "a|b|c"},
		{"one\\\n two", "onetwo"},
		{"one \\\n two", "one two"},
		{`,a,,b,`, "|a||b|"},
		{`"a # b" # c`, "a # b"},
		{`C:\x`, `C:\x`},
		{"a # b \\\n", "a"},
	} {
		f, err := ParseFile("", []byte("[S]\nK = "+c.value+"\n"))
		if err != nil {
			t.Errorf("%q: %v", c.value, err)
			continue
		}
		var got []string
		for _, m := range f.members(&f.entries[0]) {
			got = append(got, m.text)
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%q: got %q, want %q", c.value, got, c.want)
		}
	}
}

func TestJoin(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"Auto(interface:eth0", "protected:25,110,143)"}, "Auto(interface:eth0 protected:25,110,143)"},
		{[]string{"“ru”,", "„de“"}, `"ru", "de"`},
		{[]string{"a\u00a0b"}, "a b"},
		{[]string{" x "}, "x"},
		{nil, ""},
	} {
		if got := Join(c.words); got != c.want {
			t.Errorf("%q: got %q, want %q", c.words, got, c.want)
		}
	}
}

// FuzzEdit makes an edit of a file of any content and demands that the file reads back with exactly that change.
func FuzzEdit(f *testing.F) {
	f.Add("[Root]\nName = a # b\n[Mail]\nHosts = a, \"b\"\n", "new value", true)
	f.Add("[Mail]\r\nHosts = a, \\\r\n b\r\nHosts=c", "x, y", false)
	f.Add("# only\n", `a\`, true)
	f.Fuzz(func(t *testing.T, content, value string, scalar bool) {
		file, err := ParseFile("", []byte(content))
		if err != nil || strings.ContainsAny(value, "\x00\r\n") || notText(value) != "" || strings.TrimSpace(value) != value {
			return
		}
		key := "Mail.Hosts"
		if scalar {
			key = "Root.Name"
		}
		p, err := thingsTable().Find(key)
		if err != nil {
			t.Fatal(err)
		}
		words := []string{value}
		var others []string
		for i := range file.entries {
			if e := &file.entries[i]; !strings.EqualFold(e.key, p.Key) {
				others = append(others, e.section+"."+e.key+"="+file.text(e))
			}
		}
		next, err := ParseFile("", file.set(p, words))
		if err != nil {
			t.Fatalf("%q: %v", file.set(p, words), err)
		}
		if got := strings.Join(flat(next, next.of(p)), "|"); p.List && got != value || !p.List && next.text(next.of(p)[0]) != value {
			t.Fatalf("got %q of %q, want %q", got, next.data, value)
		}
		var after []string
		for i := range next.entries {
			if e := &next.entries[i]; !strings.EqualFold(e.key, p.Key) {
				after = append(after, e.section+"."+e.key+"="+next.text(e))
			}
		}
		if strings.Join(others, "\n") != strings.Join(after, "\n") {
			t.Fatalf("other parameters changed: %q, then %q", others, after)
		}
	})
}

func thingsTable() *Table { return tableOf(reflect.TypeFor[things]()) }

func flat(f *File, entries []*entry) (all []string) {
	for _, e := range entries {
		for _, m := range f.members(e) {
			all = append(all, m.text)
		}
	}
	return all
}
