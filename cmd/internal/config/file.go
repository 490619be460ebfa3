package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// maxFile bounds a configuration file. The longest sensible one is a few kilobytes.
const maxFile = 1 << 20

// File is a configuration file as it stands on disk. It keeps every octet, and knows where in them sections and
// values are, so that an edit touches the octets of one value and no others.
type File struct {
	Path     string
	data     []byte
	sections []section
	entries  []entry
}

// section is one [Section] line. A section may begin more than once.
type section struct {
	name string // as written
	line int
	end  int // offset after its header line
}

// entry is one Parameter = value, with its continuation lines.
type entry struct {
	section    string // as written
	key        string // as written
	line       int
	start, end int // all of its lines, line ends included
	from, to   int // the value, without blanks around it and without a comment after it
}

// ReadFile reads the file at path. A file that does not exist gives an error for which errors.Is(err,
// fs.ErrNotExist) holds.
func ReadFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return ParseFile(path, data)
}

// ParseFile reads data as the content of the file at path. Its error is of type [Problems].
func ParseFile(path string, data []byte) (*File, error) {
	f := &File{Path: path, data: data}
	var problems Problems
	add := func(line int, format string, args ...any) {
		problems = append(problems, Problem{File: path, Line: line, Text: fmt.Sprintf(format, args...)})
	}
	if len(data) > maxFile {
		add(0, "longer than %s; is this a configuration file?", formatSize(maxFile))
		return nil, problems
	}
	s := scanner{data: data}
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		s.at = len("\ufeff")
	}
	current := ""
	for line := 1; s.at < len(data); {
		start := s.at
		first := line
		text := s.line()
		line++
		if bad := notText(text); bad != "" {
			add(first, "%s", bad)
			continue
		}
		trimmed := strings.TrimLeft(text, " \t")
		switch {
		case trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';':
		case trimmed[0] == '[':
			name, err := header(trimmed)
			if err != nil {
				add(first, "%v", err)
			}
			current = name
			f.sections = append(f.sections, section{name: name, line: first, end: s.at})
		default:
			key, _, ok := strings.Cut(trimmed, "=")
			if !ok {
				add(first, "%q is neither a [Section], nor Parameter = value, nor a comment", clip(trimmed))
				continue
			}
			e := entry{section: current, key: strings.TrimRight(key, " \t"), line: first, start: start}
			s.at = start + len(text) - len(trimmed) + len(key) + 1
			lines, err := s.value(&e)
			line = first + lines
			switch {
			case err != nil:
				add(first, "%v", err)
			case e.key == "":
				add(first, "a parameter's name is missing before =")
			case len(f.sections) == 0:
				add(first, "%s stands before the first [Section]", e.key)
			default:
				f.entries = append(f.entries, e)
			}
		}
	}
	if problems != nil {
		return nil, problems
	}
	return f, nil
}

// notText says why a line is not text, or nothing.
func notText(line string) string {
	if !utf8.ValidString(line) {
		return "not UTF-8 text"
	}
	for _, r := range line {
		if r < ' ' && r != '\t' || r == 0x7f {
			return fmt.Sprintf("control character %#02x; only text is allowed here", r)
		}
	}
	return ""
}

// header reads "[Name] # comment".
func header(line string) (string, error) {
	name, rest, ok := strings.Cut(line[1:], "]")
	name = strings.TrimSpace(name)
	rest = strings.TrimLeft(rest, " \t")
	switch {
	case !ok:
		return name, fmt.Errorf("%q lacks the closing ]", clip(line))
	case name == "":
		return name, errors.New("a section's name is missing between [ and ]")
	case rest != "" && rest[0] != '#' && rest[0] != ';':
		return name, fmt.Errorf("%q after [%s]; a parameter belongs on a line of its own", clip(rest), name)
	}
	return name, nil
}

// clip shortens text that is quoted in a message.
func clip(s string) string {
	s = strings.TrimRight(s, " \t")
	if len(s) <= 40 {
		return s
	}
	n := 40
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// scanner walks over the octets of a file.
type scanner struct {
	data []byte
	at   int
}

// line returns the line at s.at without its end, and moves behind it.
func (s *scanner) line() string {
	rest := s.data[s.at:]
	i := bytes.IndexByte(rest, '\n')
	if i < 0 {
		s.at = len(s.data)
		return string(rest)
	}
	s.at += i + 1
	return strings.TrimSuffix(string(rest[:i]), "\r")
}

// value finds the value that begins at s.at and moves behind its last line. It returns the number of lines.
//
// A comment begins with # or ; after a blank, outside of quotes and parentheses; a backslash at the end of a line
// continues the value on the next one.
func (s *scanner) value(e *entry) (lines int, err error) {
	quoted, depth := false, 0
	first := s.at
	e.from, e.to = -1, s.at
	for {
		begin := s.at
		text := s.line()
		lines++
		if bad := notText(text); bad != "" && lines > 1 {
			return lines, errors.New(bad)
		}
		trimmed := strings.TrimRight(text, " \t")
		continued := strings.HasSuffix(trimmed, `\`) && !comment(trimmed, quoted, depth)
		if continued {
			trimmed = trimmed[:len(trimmed)-1]
		}
		blank := true
	chars:
		for i := 0; i < len(trimmed); i++ {
			switch c := trimmed[i]; {
			case quoted && c == '\\' && i+1 < len(trimmed):
				i++
			case c == '"':
				quoted = !quoted
			case quoted:
			case c == '(':
				depth++
			case c == ')':
				depth = max(0, depth-1)
			case (c == '#' || c == ';') && blank && depth == 0:
				break chars
			}
			c := trimmed[i]
			blank = c == ' ' || c == '\t'
			if !blank || quoted {
				if e.from < 0 {
					e.from = begin + i
				}
				e.to = begin + i + 1
			}
		}
		if continued && s.at < len(s.data) {
			continue
		}
		e.end = s.at
		if e.from < 0 { // a value goes behind one blank, if there is any
			if first < len(s.data) && s.data[first] == ' ' {
				first++
			}
			e.from, e.to = first, first
		}
		switch {
		case continued:
			return lines, fmt.Errorf("%s: the file ends after a \\ that continues the value", e.key)
		case quoted:
			return lines, fmt.Errorf("%s: a \" is not closed", e.key)
		}
		return lines, nil
	}
}

// comment says whether a line of a value ends inside of a comment, where a backslash means nothing.
func comment(text string, quoted bool, depth int) bool {
	blank := true
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		case (c == '#' || c == ';') && blank && depth == 0:
			return true
		}
		if i < len(text) {
			blank = text[i] == ' ' || text[i] == '\t'
		}
	}
	return false
}

// member is one value of a list, or the only one of another parameter, with its place in the file.
type member struct {
	from, to int
	text     string // without quotes
	quoted   bool
}

// members splits the value of an entry at commas outside of quotes and parentheses.
func (f *File) members(e *entry) []member {
	var list []member
	quoted, depth, start := false, 0, e.from
	for i := e.from; i < e.to; i++ {
		switch c := f.data[i]; {
		case quoted && c == '\\' && !lineEnd(f.data[i+1:e.to]):
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		case c == ',' && depth == 0:
			list = append(list, f.member(start, i))
			start = i + 1
		}
	}
	return append(list, f.member(start, e.to))
}

// lineEnd says whether nothing but a line end follows: the backslash before it continues a line.
func lineEnd(rest []byte) bool {
	rest = bytes.TrimLeft(rest, " \t")
	return bytes.HasPrefix(rest, []byte("\n")) || bytes.HasPrefix(rest, []byte("\r\n"))
}

// member trims blanks and continued line ends from data[from:to].
func (f *File) member(from, to int) member {
	for from < to {
		rest := f.data[from:to]
		if rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r' || rest[0] == '\n' ||
			rest[0] == '\\' && lineEnd(rest[1:]) {
			from++
			continue
		}
		break
	}
	for to > from {
		c := f.data[to-1]
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\\' && lineEnd(f.data[to:]) {
			to--
			continue
		}
		break
	}
	text, quoted := unquote(join(string(f.data[from:to])))
	return member{from: from, to: to, text: text, quoted: quoted}
}

// join takes continued line ends out of a value, with the blanks of the next line's beginning.
func join(raw string) string {
	if !strings.Contains(raw, "\n") {
		return raw
	}
	lines := strings.Split(raw, "\n")
	for i := range lines {
		if i > 0 {
			lines[i] = strings.TrimLeft(lines[i], " \t")
		}
		if i < len(lines)-1 {
			lines[i] = strings.TrimSuffix(strings.TrimRight(lines[i], " \t\r"), `\`)
		}
	}
	return strings.Join(lines, "")
}

// text returns the value of an entry whose parameter is no list.
func (f *File) text(e *entry) string { return f.member(e.from, e.to).text }

// unquote takes the quotes off a word that is wholly quoted; inside, \" is a quote and \\ a backslash.
func unquote(word string) (string, bool) {
	if len(word) < 2 || word[0] != '"' {
		return word, false
	}
	var b strings.Builder
	for i := 1; i < len(word); i++ {
		switch c := word[i]; {
		case c == '\\' && i+1 < len(word) && (word[i+1] == '"' || word[i+1] == '\\'):
			i++
			b.WriteByte(word[i])
		case c == '"':
			if i != len(word)-1 {
				return word, false // quotes inside of a longer word are part of it
			}
			return b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	return word, false
}

// quote puts a word into quotes.
func quote(word string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

// quoteValue quotes a word only if it would be read otherwise without quotes.
func quoteValue(word string) string {
	if f, err := ParseFile("", []byte("[S]\nk = "+word+"\n")); err == nil && len(f.entries) == 1 &&
		f.text(&f.entries[0]) == word && word != "" {
		return word
	}
	return quote(word)
}

// quoteMember is quoteValue for a word in a list.
func quoteMember(word string) string {
	if f, err := ParseFile("", []byte("[S]\nk = "+word+"\n")); err == nil && len(f.entries) == 1 {
		if m := f.members(&f.entries[0]); len(m) == 1 && m[0].text == word && word != "" {
			return word
		}
	}
	return quote(word)
}
