package proxytest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// dialogue is one script.
type dialogue struct {
	title   string
	options map[string]string
	refuses bool
	vary    []variation
	steps   []step

	file, text string // where it stands, to parse it once more for each value of its variables
	first      int
}

type variation struct {
	name   string
	values []string
}

// step is one line.
type step struct {
	where  string // file:line
	line   string // as written
	side   byte   // 'C', 'S', or 0
	op     string // ">", "<", "<~", …, or a word
	octets []byte // text with escapes resolved
	re     *regexp.Regexp
	args   []string
	d      time.Duration
	n      int
}

// parseFile reads the dialogues of a file. vars are values for $NAME.
func parseFile(name string) ([]*dialogue, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var list []*dialogue
	line := 1
	for part := range strings.SplitSeq(string(b), "\n---\n") {
		d, err := parseDialogue(name, part, line, nil)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
		line += strings.Count(part, "\n") + 2
	}
	return list, nil
}

// parseDialogue parses the text of one dialogue whose first line is number first of the file.
func parseDialogue(name, text string, first int, vars map[string]string) (*dialogue, error) {
	d := &dialogue{options: map[string]string{}, file: name, text: text, first: first}
	if err := d.parse(name, text, first, vars); err != nil {
		return nil, err
	}
	if d.title == "" {
		return nil, fmt.Errorf("%s:%d: a dialogue begins with its title: # S-000 what it shows", name, first)
	}
	if vars == nil {
		for _, vars := range d.combinations() { // so that mistakes show early
			if _, err := parseDialogue(name, text, first, vars); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// combinations returns the values of the variables in every combination; none when there are no variables.
func (d *dialogue) combinations() []map[string]string {
	var list []map[string]string
	for _, v := range d.vary {
		var next []map[string]string
		for _, value := range v.values {
			if len(list) == 0 {
				next = append(next, map[string]string{v.name: value})
			}
			for _, c := range list {
				m := maps.Clone(c)
				m[v.name] = value
				next = append(next, m)
			}
		}
		list = next
	}
	return list
}

func (d *dialogue) parse(name, text string, first int, vars map[string]string) error {
	for i, l := range strings.Split(text, "\n") {
		where := fmt.Sprintf("%s:%d", name, first+i)
		l = strings.TrimRight(l, " \t\r")
		if strings.HasPrefix(l, "#") {
			if d.title == "" {
				d.title = strings.TrimSpace(l[1:])
			}
			continue
		}
		if l == "" {
			continue
		}
		word, rest, _ := strings.Cut(l, " ")
		switch word {
		case "option":
			k, v, _ := strings.Cut(rest, " ")
			d.options[k] = substitute(v, vars)
			continue
		case "vary":
			f := strings.Fields(rest)
			if len(f) < 2 {
				return fmt.Errorf("%s: vary NAME VALUE…", where)
			}
			d.vary = append(d.vary, variation{f[0], f[1:]})
			continue
		case "include":
			file := filepath.Join(filepath.Dir(name), rest)
			b, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			if err := d.parse(file, string(b), 1, vars); err != nil {
				return err
			}
			continue
		}
		if l == "S refuses" {
			d.refuses = true
			continue
		}
		if vars == nil && len(d.vary) > 0 {
			continue // its values come later
		}
		if err := d.parseStep(where, substitute(l, vars)); err != nil {
			return err
		}
	}
	return nil
}

// substitute puts the values of variables in.
func substitute(s string, vars map[string]string) string {
	for k, v := range vars {
		s = strings.ReplaceAll(s, "$"+k, v)
	}
	return s
}

// macros are steps that stand for several.
func (d *dialogue) macro(where, word, rest string) (bool, error) {
	var lines []string
	switch word {
	case "greet":
		lines = append(lines, "S> 220 mx.example ESMTP", "C< 220 mx.example ESMTP", "C> EHLO client.example", "S< EHLO client.example")
		lines = append(lines, ehloLines(rest)...)
		lines = append(lines, "C<* 250")
	case "hello": // EHLO without a banner
		lines = append(lines, "C> EHLO client.example", "S< EHLO client.example")
		lines = append(lines, ehloLines(rest)...)
		lines = append(lines, "C<* 250")
	case "envelope":
		for i, a := range strings.Fields(rest) {
			cmd := "RCPT TO:<" + a + ">"
			if i == 0 {
				cmd = "MAIL FROM:<" + a + ">"
			}
			lines = append(lines, "C> "+cmd, "S< "+cmd, "S> 250 2.1.0 Ok", "C< 250 2.1.0 Ok")
		}
	default:
		return false, nil
	}
	for _, l := range lines {
		if err := d.parseStep(where, l); err != nil {
			return true, err
		}
	}
	return true, nil
}

func ehloLines(keywords string) []string {
	texts := []string{"mx.example"}
	for k := range strings.SplitSeq(keywords, ",") {
		if k = strings.TrimSpace(k); k != "" {
			texts = append(texts, k)
		}
	}
	var lines []string
	for i, t := range texts {
		sep := "-"
		if i == len(texts)-1 {
			sep = " "
		}
		lines = append(lines, "S> 250"+sep+t)
	}
	return lines
}

// parseStep parses one line and appends its steps.
func (d *dialogue) parseStep(where, l string) error {
	word, rest, _ := strings.Cut(l, " ")
	s := step{where: where, line: l, op: word}
	fail := func(err error) error { return fmt.Errorf("%s: %s: %w", where, l, err) }
	if done, err := d.macro(where, word, rest); done || err != nil {
		return err
	}
	var err error
	switch word {
	case "C", "S":
		s.side = word[0]
		s.args = strings.Fields(rest)
		if len(s.args) == 0 {
			return fail(fmt.Errorf("a word is missing"))
		}
		switch s.op = s.args[0]; s.op {
		case "eof", "reset", "gone", "close", "half", "rst", "undialed", "dialed":
		case "silent":
			s.d = 40 * time.Millisecond
			if len(s.args) > 1 {
				s.d, err = time.ParseDuration(s.args[1])
			}
		case "split":
			if len(s.args) != 2 {
				return fail(fmt.Errorf("a number is missing"))
			}
			s.n, err = strconv.Atoi(s.args[1])
		default:
			return fail(fmt.Errorf("unknown word"))
		}
	case "C>", "C>>", "C<", "C<<", "C<.", "S>", "S>>", "S<", "S<<", "S<.":
		s.side, s.op = word[0], word[1:]
		s.octets, err = unescape(rest)
		if s.op == ">" {
			s.octets = append(s.octets, '\r', '\n')
		}
	case "C<*", "S<*":
		s.side, s.op = word[0], word[1:]
		s.n, err = strconv.Atoi(rest)
	case "C<~", "S<~":
		s.side, s.op = word[0], word[1:]
		s.re, err = regexp.Compile("^(?s:" + rest + ")$")
	case "scanned~", "event~", "view~":
		s.re, err = regexp.Compile(rest)
	case "scanned", "view":
		s.octets, err = unescape(rest)
		s.args = strings.Fields(rest)
	case "repeat":
		n, inner, _ := strings.Cut(rest, " ")
		if s.n, err = strconv.Atoi(n); err == nil {
			one := dialogue{}
			if err := one.parseStep(where, inner); err != nil {
				return err
			}
			for range s.n {
				d.steps = append(d.steps, one.steps...)
			}
			return nil
		}
	case "verdict":
		s.args = strings.Fields(rest)
		if len(s.args) == 0 {
			return fail(fmt.Errorf("a word is missing"))
		}
		if s.args[0] == "after" && len(s.args) == 2 {
			s.d, err = time.ParseDuration(s.args[1])
		} else if _, ok := actions[s.args[0]]; !ok && s.args[0] != "hang" && s.args[0] != "panic" {
			return fail(fmt.Errorf("unknown verdict"))
		}
	case "event", "no-event", "tls":
		s.args = strings.Fields(rest)
		if word != "tls" && len(s.args) != 1 {
			return fail(fmt.Errorf("the name of an event is missing"))
		}
	case "pause", "timeout":
		s.d, err = time.ParseDuration(rest)
	case "drain", "stop":
	default:
		return fail(fmt.Errorf("unknown step"))
	}
	if err != nil {
		return fail(err)
	}
	d.steps = append(d.steps, s)
	return nil
}

// unescape resolves the escapes of the package comment.
func unescape(s string) ([]byte, error) {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		if i++; i == len(s) {
			return nil, fmt.Errorf("backslash at the end")
		}
		switch s[i] {
		case 'r':
			out = append(out, '\r')
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case '0':
			out = append(out, 0)
		case 's':
			out = append(out, ' ')
		case '\\':
			out = append(out, '\\')
		case 'x':
			if i+2 >= len(s) {
				return nil, fmt.Errorf(`\x needs two digits`)
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`\x needs two digits`)
			}
			out = append(out, byte(v))
			i += 2
		case '{':
			end := closing(s, i)
			if end < 0 {
				return nil, fmt.Errorf(`\{ without }`)
			}
			count, text, ok := strings.Cut(s[i+1:end], ":")
			n, err := strconv.Atoi(count)
			if !ok || err != nil || n < 0 {
				return nil, fmt.Errorf(`\{N:text} expected`)
			}
			b, err := unescape(text)
			if err != nil {
				return nil, err
			}
			for range n {
				out = append(out, b...)
			}
			i = end
		default:
			return nil, fmt.Errorf("unknown escape \\%c", s[i])
		}
	}
	return out, nil
}

// closing returns the index of the brace that closes the one at i.
func closing(s string, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}
