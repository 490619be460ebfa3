package config

import (
	"fmt"
	"io"
	"strings"
)

// Annotate writes a configuration file that describes each of params and holds the value that it has; what has its
// default is commented out.
func (l *Loaded) Annotate(w io.Writer, params []*Param) error {
	var b strings.Builder
	section := ""
	for _, p := range params {
		if p.Section != section {
			if section != "" {
				b.WriteByte('\n')
			}
			section = p.Section
			fmt.Fprintf(&b, "[%s]\n", section)
		}
		b.WriteByte('\n')
		for _, line := range wrap(p.Doc, 110) {
			b.WriteString("# " + line + "\n")
		}
		b.WriteString("# " + p.limits() + "\n")
		value, changed := l.Value(p)
		if !p.List {
			value = quoteValue(value)
			if value == `""` {
				value = ""
			}
		}
		if !changed {
			b.WriteByte('#')
		}
		b.WriteString(strings.TrimRight(p.Key+" = "+value, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// limits says in one line what may be written.
func (p *Param) limits() string {
	s := p.Type
	switch {
	case p.Min != "" && p.Max != "":
		s += ", " + p.Min + " to " + p.Max
	case p.Min != "":
		s += ", at least " + p.Min
	case p.Max != "":
		s += ", at most " + p.Max
	}
	if p.Restart {
		s += "; takes effect at the next start"
	}
	return s
}

// Markdown writes the reference page of all parameters.
func (t *Table) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Settings

<!-- Made from the tags of the Settings of each package: go test ./cmd/internal/config -update -->

The configuration file is ` + "`" + DefaultPath + "`" + `, unless ` + "`--config`" + ` names another one. ` + "`mailweir cfset`" + ` changes it and
leaves every other octet as it is; ` + "`mailweir cfshow`" + ` shows it; ` + "`mailweir cfshow --ini`" + ` prints an annotated one.

` + "```ini" + `
# a comment; this is one too
[LinuxFirewall]                    # names of sections and parameters may be in upper or lower case
UnwrapSsl = Yes                    # Yes, True, On, 1 or No, False, Off, 0
InputDivert = Auto(interface:eth0 protected:25,587)
TlsBypass = "a.example", b.example # a list: commas on one line,
TlsBypass = c.example              # or repeated lines, which add up
TlsTrustedCa = /etc/mailweir/one.pem, \
               /etc/mailweir/two.pem
` + "```" + `

A comment begins with # or ; at the beginning of a line or after a blank. A value with such a sequence in it, with a
comma that does not separate, or with blanks around it stands in double quotes, within which \" is a quote and \\ a
backslash. Times have units: 10s, 3m, 1h20m, 30d. So have sizes: 64b, 256kb, 10mb, 2gb, in powers of 1024.

An unknown section, an unknown parameter, a parameter set twice that is no list, and a value that cannot be read are
errors: ` + "`cfset`" + ` refuses them, a gateway that is told to reload keeps its former settings, and one that starts does not.

`)
	for _, s := range t.Sections {
		fmt.Fprintf(&b, "## [%s]\n\n| parameter | value | default | meaning |\n|---|---|---|---|\n", s)
		for i := range t.Params {
			p := &t.Params[i]
			if p.Section != s {
				continue
			}
			def := "empty"
			if p.Default != "" {
				def = "`" + p.Default + "`"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", p.Key, cell(p.limits()), cell(def), cell(p.Doc))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// cell escapes text for a cell of a Markdown table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(s)
}

// wrap breaks text into lines of at most width characters.
func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
