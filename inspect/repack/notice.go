package repack

import (
	"bytes"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"unicode"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

//go:embed templates/en/repack.txt
var builtIn embed.FS

const (
	templateName = "en/repack.txt"
	maxNotice    = 64 << 10
	maxWord      = 300 // characters of anything that strangers wrote
)

// Notice is what a template can show. Everything that strangers wrote is one line without control characters.
type Notice struct {
	Whole        bool // the whole message was replaced, not a part of it
	Subject      string
	From         string
	To           string
	Date         string
	MessageID    string
	Reason       string
	Threats      []Threat
	Archive      string // file name of the attached archive; empty when there is none
	PasswordHint string
	QuarantineID string
	Contacts     string
	Product      string
	Host         string
}

// Threat is one thing that was found.
type Threat struct{ Name, Category, Object string }

// loadTemplate reads the template of dir, or the built-in one where dir has none.
func loadTemplate(dir string) (*template.Template, error) {
	if dir != "" {
		b, err := os.ReadFile(filepath.Join(dir, templateName))
		if err == nil {
			return parseTemplate(string(b))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read template: %w", err)
		}
	}
	b, err := builtIn.ReadFile("templates/" + templateName)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	return parseTemplate(string(b))
}

func parseTemplate(s string) (*template.Template, error) {
	t, err := template.New(templateName).Parse(s)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	return t, nil
}

// capped is a buffer with an end.
type capped struct{ bytes.Buffer }

// Write implements io.Writer.
func (c *capped) Write(p []byte) (int, error) {
	if c.Len()+len(p) > maxNotice {
		return 0, fmt.Errorf("the notice is longer than %d octets", maxNotice)
	}
	return c.Buffer.Write(p)
}

// render makes the text of a notice, lines ending in LF.
func render(t *template.Template, n Notice) (string, error) {
	var out capped
	if err := t.Execute(&out, n); err != nil {
		return "", fmt.Errorf("write notice: %w", err)
	}
	return strings.TrimRight(strings.ReplaceAll(out.String(), "\r\n", "\n"), "\n") + "\n", nil
}

// textPart makes a MIME entity of text: 7-bit, lines of at most 76 characters, without the last line end.
func textPart(text string, extra string) inspect.Bytes {
	const head = "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: inline\r\n"
	var b bytes.Buffer
	b.WriteString(head + extra)
	if plain(text) {
		b.WriteString("Content-Transfer-Encoding: 7bit\r\n\r\n")
		b.WriteString(strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\r\n"))
		return b.Bytes()
	}
	b.WriteString("Content-Transfer-Encoding: base64\r\n\r\n")
	s := base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(text, "\n", "\r\n")))
	for len(s) > 76 {
		b.WriteString(s[:76] + "\r\n")
		s = s[76:]
	}
	b.WriteString(s)
	return b.Bytes()
}

// plain says whether text can stand in a message as it is, and cannot be taken for a delimiter.
func plain(text string) bool {
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) > 76 || strings.HasPrefix(line, "--") && line != "-- " || strings.HasPrefix(line, "From ") {
			return false
		}
	}
	return strings.IndexFunc(text, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' }) < 0
}

// oneLine makes words of strangers harmless in a text: one line, no control characters, none that turn the direction of
// writing, not too long.
func oneLine(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if n++; n > maxWord {
			b.WriteString("…")
			break
		}
		switch {
		case unicode.IsSpace(r) || unicode.IsControl(r):
			r = ' '
		case unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r):
			r = '\uFFFD'
		}
		b.WriteRune(r)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// notice gathers what all notices of a message have in common.
func (r *Repacker) notice(root *mimetree.Part, id, quarantineID string) Notice {
	word := func(field string) string { return oneLine(mimetree.Words(root.Get(field))) }
	return Notice{
		Subject: word("Subject"), From: word("From"), To: word("To"), Date: word("Date"), MessageID: word("Message-ID"),
		Archive: archiveName, PasswordHint: r.cfg.RepackPassword.hint(id), QuarantineID: quarantineID,
		Contacts: r.cfg.TemplateContacts, Product: "mailweir", Host: r.cfg.Host,
	}
}

// threats turns findings into what a template shows.
func threats(bad []BadPart) (out []Threat, reason string) {
	reason = "harmful content"
	seen := map[Threat]bool{}
	for _, b := range bad {
		for _, f := range b.Findings {
			if f.Kind != inspect.Threat && f.Kind != inspect.Unchecked {
				continue
			}
			t := Threat{Name: oneLine(f.Name), Category: oneLine(f.Category), Object: oneLine(objectName(b.Part, f.Path))}
			if t.Name == "" {
				t.Name = oneLine(f.Detail)
			}
			if len(out) < 100 && !seen[t] { // several engines find the same
				seen[t] = true
				out = append(out, t)
			}
		}
	}
	return out, reason
}

// objectName is what a reader of the message knows an object by: its name and the names around it, without the number of
// the part, if there is a name.
func objectName(part *mimetree.Part, path string) string {
	number, name, _ := strings.Cut(path, "/")
	switch {
	case name != "" && strings.Trim(number, "0123456789.") == "":
		return name
	case part != nil && part.Name != "" && name == "":
		return part.Name
	}
	return path
}
